"""A table knows its transitions and refuses every other; the state machines of the tree are drawn from such tables."""

from enum import StrEnum

import pytest

from common.statetable import Table, UnknownTransition


class Door(StrEnum):
    OPEN = "open"
    SHUT = "shut"
    LOCKED = "locked"


class Act(StrEnum):
    PUSHED = "pushed"
    PULLED = "pulled"
    KEYED = "keyed"


TRANSITIONS = {
    Door.OPEN: {Act.PUSHED: Door.SHUT},
    Door.SHUT: {Act.PULLED: Door.OPEN, Act.KEYED: Door.LOCKED},
    Door.LOCKED: {},
}
TABLE = Table("a door", TRANSITIONS)


@pytest.mark.parametrize("act", Act)
@pytest.mark.parametrize("door", Door)
def test_every_event_in_every_state(door: Door, act: Act) -> None:
    if act in TRANSITIONS[door]:
        assert TABLE.step(door, act) is TRANSITIONS[door][act]
    else:
        with pytest.raises(UnknownTransition, match=f"^'{act.value}' cannot happen to a door that is {door.value}$"):
            TABLE.step(door, act)


def test_states_events_and_rows_come_in_the_order_of_the_table() -> None:
    assert TABLE.states == (Door.OPEN, Door.SHUT, Door.LOCKED)
    assert TABLE.events == (Act.PUSHED, Act.PULLED, Act.KEYED)
    assert list(TABLE) == [
        (Door.OPEN, Act.PUSHED, Door.SHUT),
        (Door.SHUT, Act.PULLED, Door.OPEN),
        (Door.SHUT, Act.KEYED, Door.LOCKED),
    ]


def test_a_transition_into_nowhere_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="shut -> keyed -> locked leads to a state that has no row"):
        Table("a door", {Door.SHUT: {Act.KEYED: Door.LOCKED}})
