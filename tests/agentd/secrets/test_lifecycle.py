"""The table is all that can happen to a secret version; time moves a state on for the look of it, never in the store."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.secrets.lifecycle import (
    STATE_NUMBERS,
    TRANSITIONS,
    Event,
    Limits,
    State,
    grace_until,
    next_change,
    state_at,
    step,
    valid_until,
)
from common.statetable import UnknownTransition
from tests.agentd.world import DAY, T0, meta

EXPECTED = {
    ("ACTIVE", "superseded"): "GRACE",
    ("ACTIVE", "validity_ended"): "GRACE",
    ("ACTIVE", "invalidated"): "INVALIDATED",
    ("GRACE", "superseded"): "GRACE",
    ("GRACE", "grace_ended"): "INVALIDATED",
    ("GRACE", "invalidated"): "INVALIDATED",
}


@pytest.mark.parametrize("event", list(Event))
@pytest.mark.parametrize("state", list(State))
def test_every_state_with_every_event(state: State, event: Event) -> None:
    before = {each: dict(row) for each, row in TRANSITIONS.items()}
    expected = EXPECTED.get((state.value, event.value))
    if expected is None:
        with pytest.raises(UnknownTransition, match=f"{event.value}.*{state.value}"):
            step(state, event)
    else:
        assert step(state, event) is State(expected)
    assert before == TRANSITIONS


@given(st.lists(st.sampled_from(list(Event))))
def test_nothing_comes_back_from_invalidated(events: list[Event]) -> None:
    state, order = State.ACTIVE, [State.ACTIVE, State.GRACE, State.INVALIDATED]
    for event in events:
        before = state
        try:
            state = step(state, event)
        except UnknownTransition:
            assert state is before
        assert order.index(state) >= order.index(before)


def test_the_numbers_in_the_anchor_never_change() -> None:
    assert STATE_NUMBERS == {State.ACTIVE: 1, State.GRACE: 2, State.INVALIDATED: 3}


@pytest.mark.parametrize(
    ("stored", "seconds", "expected"),
    [
        ("ACTIVE", -5, "ACTIVE"),
        ("ACTIVE", DAY - 1, "ACTIVE"),
        ("ACTIVE", DAY, "GRACE"),
        ("ACTIVE", 8 * DAY - 1, "GRACE"),
        ("ACTIVE", 8 * DAY, "INVALIDATED"),
        ("GRACE", 0, "GRACE"),
        ("GRACE", 8 * DAY - 1, "GRACE"),
        ("GRACE", 8 * DAY, "INVALIDATED"),
        ("INVALIDATED", 0, "INVALIDATED"),
    ],
)
def test_time_moves_a_state_on(stored: str, seconds: int, expected: str) -> None:
    each = meta(state=stored)
    assert state_at(each, T0 + seconds, Limits()) is State(expected)
    assert each.state == stored


limits = st.builds(Limits, st.none() | st.integers(60, 5 * DAY), st.none() | st.integers(60, 20 * DAY))


@given(limits)
def test_local_periods_only_shorten(local: Limits) -> None:
    each = meta()
    assert valid_until(each, local) <= each.valid_until
    assert grace_until(each, local) <= each.grace_until
    assert valid_until(each, local) <= grace_until(each, local)


@given(st.sampled_from(list(State)), limits, st.integers(-DAY, 10 * DAY))
def test_the_state_stays_until_its_next_change(state: State, local: Limits, seconds: int) -> None:
    each, now = meta(state=state.value), T0 + seconds
    changes = next_change(each, now, local)
    present = state_at(each, now, local)
    if changes is None:
        assert state_at(each, now + 1000 * DAY, local) is present
    else:
        assert changes > now
        assert state_at(each, changes - 1, local) is present
        assert state_at(each, changes, local) is not present


def test_a_clock_that_jumps_forward_and_back_changes_nothing_for_good() -> None:
    each = meta()
    assert state_at(each, T0 + 1000 * DAY, Limits()) is State.INVALIDATED
    assert state_at(each, T0, Limits()) is State.ACTIVE
    assert msgspec.structs.asdict(each) == msgspec.structs.asdict(meta())
