"""How many statements a contact costs: what every device does at every contact is bounded, whatever else changes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event

from contracts.contact.updates import OutcomeState
from tests.server.fleet.rollouts.machines import World
from tests.support.serverside import ServerSide


@contextmanager
def counted(server: ServerSide) -> Iterator[list[str]]:
    """The statements on the transaction's own connection; beginnings are not counted."""
    found: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith("BEGIN"):
            found.append(statement)

    event.listen(server.database.engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(server.database.engine, "before_cursor_execute", note)


def test_a_contact_takes_no_more_statements_than_it_needs(server: ServerSide) -> None:
    world = World(server, 12)
    world.round()
    world.start(groups=["4", "rest"], success_percent=100, failure_percent=100)
    first, other, later = *world.of_group(1)[:2], world.of_group(2)[0]
    world.contact(other)  # loads the keys that sign

    def costs(act: Callable[[], Any]) -> list[str]:
        with counted(server) as found:
            act()
        return found

    waiting = costs(lambda: world.contact(later))
    assert len(waiting) <= 9, "its group waits: " + "\n".join(waiting)
    ordered = costs(lambda: world.contact(first))
    assert len(ordered) <= 28, "it is given its order: " + "\n".join(ordered)
    assert first.directive is not None
    first.says(OutcomeState.PROGRESS, "booting")
    assert len(costs(lambda: world.contact(first))) <= 18
    first.work()
    proved = costs(lambda: world.contact(first))
    assert len(proved) <= 23, "it proves the update: " + "\n".join(proved)
    # All devices of a group change its row: between that and the commit there are the records and the events, nothing else.
    place = next(number for number, each in enumerate(proved) if each.startswith("UPDATE rollout_group"))
    after = [" ".join(each.split()[:2]) for each in proved[place + 1 :]]
    assert after == ["UPDATE counter", "SELECT audit.hash", "INSERT INTO", "UPDATE counter", "INSERT INTO"]
