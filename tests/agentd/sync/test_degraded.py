"""Degraded mode: entered when a secret is due and cannot be had, left when it can, ended with grace."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.sync.degraded import TRANSITIONS, Degraded, Event, Mode, Outlook, events, moved, step
from common.statetable import UnknownTransition

FINE = Outlook(has_server=True, failures=0, due=False, ended=False, held=False)
EVERY = [(mode, event) for mode in Mode for event in Event]


@pytest.mark.parametrize(("mode", "event"), EVERY, ids=[f"{mode}-{event}" for mode, event in EVERY])
def test_every_mode_knows_its_events_and_no_others(mode: Mode, event: Event) -> None:
    if event in TRANSITIONS[mode]:
        assert step(mode, event) is TRANSITIONS[mode][event]
    else:
        with pytest.raises(UnknownTransition):
            step(mode, event)


@pytest.mark.parametrize(
    ("outlook", "mode"),
    [
        (FINE, Mode.ONLINE),
        (replace(FINE, failures=50), Mode.ONLINE),
        (replace(FINE, due=True), Mode.ONLINE),
        (replace(FINE, due=True, failures=2), Mode.ONLINE),
        (replace(FINE, due=True, failures=3), Mode.DEGRADED),
        (replace(FINE, due=True, has_server=False), Mode.DEGRADED),
        (replace(FINE, held=True), Mode.DEGRADED),
        (replace(FINE, due=True, ended=True, failures=3), Mode.EXPIRED),
        (replace(FINE, due=True, ended=True), Mode.ONLINE),
    ],
)
def test_what_it_takes(outlook: Outlook, mode: Mode) -> None:
    assert moved(Degraded(), outlook, 5).mode is mode


def test_a_week_without_a_server() -> None:
    state = Degraded()
    story = [
        (10, replace(FINE, failures=5), Mode.ONLINE, None),
        (20, replace(FINE, failures=6, due=True), Mode.DEGRADED, 20),
        (30, replace(FINE, failures=60, due=True), Mode.DEGRADED, 20),
        (40, replace(FINE, failures=70, due=True, ended=True), Mode.EXPIRED, 20),
        (50, replace(FINE, failures=80, due=True, ended=True), Mode.EXPIRED, 20),
        (60, FINE, Mode.ONLINE, None),
    ]
    for now, outlook, mode, since in story:
        state = moved(state, outlook, now)
        assert (state.mode, state.since) == (mode, since)


def test_it_is_left_as_soon_as_the_server_answers() -> None:
    cut = moved(Degraded(), replace(FINE, failures=3, due=True), 1)
    assert moved(cut, replace(FINE, due=True), 2) == Degraded(Mode.ONLINE, None)


def test_a_switch_changes_no_date_and_can_be_taken_back() -> None:
    held = moved(Degraded(), replace(FINE, held=True), 7)
    assert (held.mode, held.since, held.held) == (Mode.DEGRADED, 7, True)
    assert moved(held, replace(FINE, held=True, due=True, ended=True), 9).mode is Mode.EXPIRED
    assert moved(held, FINE, 9) == Degraded()


outlooks = st.builds(Outlook, st.booleans(), st.integers(0, 6), st.booleans(), st.booleans(), st.booleans())


@given(st.lists(outlooks, max_size=12))
def test_every_story_stays_within_the_table_and_ends_where_one_look_would(story: list[Outlook]) -> None:
    state = Degraded()
    for now, outlook in enumerate(story):
        # Grace of a secret that is not due cannot have ended.
        seen = replace(outlook, ended=outlook.ended and outlook.due)
        state = moved(state, seen, now)
        assert (state.since is None) == (state.mode is Mode.ONLINE)
        assert events(state, seen) == ()
        wanted = (seen.due and (not seen.has_server or seen.failures >= 3)) or seen.held
        if not (seen.ended and state.mode is Mode.EXPIRED):
            assert (state.mode is not Mode.ONLINE) == wanted
