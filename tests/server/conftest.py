"""Servers for the tests: the same one on SQLite and on PostgreSQL."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from server.office import Office, Plan, found_office, open_office
from tests.server.devices import ISSUER, NOW
from tests.support.postgres import Postgres, shared_postgres
from tests.support.softhsm import Token, token


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Postgres]:
    """The PostgreSQL server of this run, which all workers share."""
    base = tmp_path_factory.getbasetemp()
    with shared_postgres(base if worker_id == "master" else base.parent) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def new_url(request: pytest.FixtureRequest) -> Iterator[Callable[[], str | None]]:
    """Gives the URL of an empty database; None for the server's own SQLite file."""
    with ExitStack() as stack:
        if request.param == "sqlite":
            yield lambda: None
        else:
            server: Postgres = request.getfixturevalue("postgres")
            yield lambda: stack.enter_context(server.database())


@pytest.fixture
def url(new_url: Callable[[], str | None]) -> str | None:
    """The URL of an empty database; None for the server's own SQLite file."""
    return new_url()


@pytest.fixture
def directory(tmp_path: Path, url: str | None) -> Path:
    """The directory of a server that was made, and is not open."""
    found_office(tmp_path / "server", Plan(ISSUER, ("localhost",), tmp_path / "root.key", None), NOW, url)
    return tmp_path / "server"


@pytest.fixture
def office(directory: Path) -> Iterator[Office]:
    """An open server without agents."""
    made = open_office(directory)
    yield made
    made.close()


@pytest.fixture(scope="session")
def hsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Token]:
    """A PKCS #11 token, without keys at first."""
    with token(tmp_path_factory.mktemp("token")) as made:
        yield made
