"""Worlds are given back after each test, and each record that a test's agent writes is one of those that the page lists."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from audittrail.chain import Chain
from scripts.audit_events import COUNTED, found_events
from tests.agentd.world import World, meta


@pytest.fixture
def make_world() -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(*metas: Any, **options: Any) -> World:
        made.append(World(*(metas or (meta(),)), **options))
        return made[-1]

    yield make
    for world in made:
        world.vault.close()


DECLARED = found_events()


MARK, FILLING = "test.mark", {"pad"}
"""What tests write to find a place in the log, and to fill it."""


def _check(event: str, outcome: str, fields: dict[str, Any]) -> None:
    """Fails a test that writes a record which docs/audit-fields.md does not have."""
    if event == MARK:
        return
    outcomes = DECLARED.get(event)
    assert outcomes is not None, f"scripts/audit_events.py does not find {event!r}"
    assert outcome in outcomes, f"scripts/audit_events.py does not find the outcome {outcome!r} of {event!r}"
    unknown = set(fields) - outcomes[outcome] - set(COUNTED) - FILLING
    assert not unknown, f"scripts/audit_events.py does not find {sorted(unknown)} of {event!r}, {outcome!r}"


@pytest.fixture(autouse=True)
def records_are_declared(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if request.path.parent.name == "audit":
        return  # the tests of the log itself make up records
    append = Chain.append

    def checked(self: Chain, time: float, mono: float, event: str, outcome: str, fields: dict[str, Any]) -> bytes:
        _check(event, outcome, fields)
        return append(self, time, mono, event, outcome, fields)

    monkeypatch.setattr(Chain, "append", checked)
