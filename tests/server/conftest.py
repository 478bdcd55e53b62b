"""Servers for the tests: the same one on SQLite and on PostgreSQL."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from common.files import write_atomic
from scripts.server_audit_events import found_events
from server.base.settings import SETTINGS, Place, settings_of
from server.registry import audit
from server.registry.database import sqlite_url
from server.wiring import Plan, create_server
from tests.server.devices import ISSUER, NOW
from tests.support.postgres import Postgres
from tests.support.serverside import ServerSide, open_server
from tests.support.softhsm import Token, token

DECLARED = found_events()
MADE_UP = frozenset({"tests/server/registry/test_audit.py"})
"""Tests of the log itself, which make up records."""
PROBE = "probe"
"""The event of records that only fill the log: those of other tests, and none of the server's."""


def _check(actor: str, event: str, outcome: str, fields: dict[str, Any]) -> None:
    """Fails a test that writes a record which docs/server-audit-events.md does not have."""
    declared = DECLARED.get(event)
    assert declared is not None, f"scripts/server_audit_events.py does not find {event!r}"
    assert actor.split()[0] in declared.actors, f"scripts/server_audit_events.py does not find {actor!r} of {event!r}"
    assert outcome in declared.outcomes, f"scripts/server_audit_events.py does not find the outcome {outcome!r} of {event!r}"
    unknown = fields.keys() - declared.all_fields
    assert not unknown, f"scripts/server_audit_events.py does not find {sorted(unknown)} of {event!r}"


@pytest.fixture(autouse=True)
def records_are_declared(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if str(request.path.relative_to(request.config.rootpath)) in MADE_UP:
        return
    append = audit.append

    def checked(session: Any, entries: Sequence[audit.Entry]) -> None:
        for each in entries:
            if each.event != PROBE:
                _check(each.actor, each.event, each.outcome, each.fields)
        append(session, entries)

    monkeypatch.setattr(audit, "append", checked)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """The URL of an empty database; None for the server's own SQLite file."""
    if request.param == "sqlite":
        yield None
    else:
        cluster: Postgres = request.getfixturevalue("postgres")
        with cluster.database() as made:
            yield made


@pytest.fixture(scope="session")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str | None], Path]:
    """Gives the directory of a server that is copied for each test: to make keys takes time. With SQLite if there is no URL."""
    made: dict[bool, Path] = {}

    def find(url: str | None) -> Path:
        if (url is None) not in made:
            base = tmp_path_factory.mktemp("founded")
            create_server(base / "server", Plan(ISSUER, ("localhost",), base / "root.key", None), NOW, url)
            made[url is None] = base
        return made[url is None]

    return find


@pytest.fixture(scope="session")
def postgres_template(postgres: Postgres, founded: Callable[[str | None], Path]) -> Iterator[tuple[str, Path]]:
    """A PostgreSQL database with a server in it, to be copied."""
    with postgres.database() as url:
        yield url, founded(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def directory(request: pytest.FixtureRequest, tmp_path: Path, founded: Callable[[str | None], Path]) -> Iterator[Path]:
    """The directory of a server that was made, and is not open; the root's key is `root.key` beside it."""
    with ExitStack() as stack:
        url, base = None, None
        if request.param == "postgresql":
            cluster: Postgres = request.getfixturevalue("postgres")
            template, base = request.getfixturevalue("postgres_template")
            url = stack.enter_context(cluster.database(template))
        shutil.copytree(base or founded(None), tmp_path, dirs_exist_ok=True)
        made = tmp_path / "server"
        place = Place(made, url or sqlite_url(made / "server.db"), str(made / "master.key"))
        write_atomic(made / SETTINGS, settings_of(place))
        yield made


@pytest.fixture
def server(directory: Path) -> Iterator[ServerSide]:
    """An open server without agents."""
    made = open_server(directory)
    yield made
    made.close()


@pytest.fixture(scope="session")
def hsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Token]:
    """A PKCS #11 token, without keys at first."""
    with token(tmp_path_factory.mktemp("token")) as made:
        yield made
