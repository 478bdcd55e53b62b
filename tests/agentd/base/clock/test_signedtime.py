"""What a server-signed time does to the clock: every combination of witnesses, and the second contact."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.base.clock.signedtime import (
    CONFIRM_AFTER_S,
    JUDGMENTS,
    UNSETTLED,
    Says,
    Standing,
    Witnesses,
    advanced,
    judge,
    weigh,
)
from agentd.base.clock.timeanchor import TOLERANCE_S, Reading, Since, TimeAnchor

NOW = 1_800_000_000
DAY = 86_400
RUNNING = Witnesses(NOW, TOLERANCE_S, NOW)
DEAD = Witnesses(NOW - 3 * DAY, None, 0)
"""The battery is dead: after a restart, neither the clock nor the counters know the time."""
OFF = Witnesses(NOW - 40 * DAY, None, NOW)
"""The machine was off; its clock is right."""
ANCHOR = TimeAnchor(NOW, True, Reading(1_000_000, 1))


def test_the_table_has_a_judgment_for_everything_that_the_witnesses_may_say() -> None:
    assert set(JUDGMENTS) == set(itertools.product(Says, Says))
    for (elapsed, wall), standing in JUDGMENTS.items():
        said = {elapsed, wall}
        assert (standing is Standing.TAKEN) == (Says.AGREES in said)
        assert (standing is Standing.HELD) == (Says.AGREES not in said and Says.CONTRADICTS in said)
        assert (standing is Standing.PROVISIONAL) == (said == {Says.ABSENT})


@pytest.mark.parametrize(
    ("witnesses", "ahead", "standing"),
    [
        (RUNNING, 1, Standing.TAKEN),
        (RUNNING, TOLERANCE_S, Standing.TAKEN),
        (RUNNING, 3600, Standing.HELD),
        (RUNNING, 8 * DAY, Standing.HELD),
        (RUNNING, 400 * DAY, Standing.HELD),
        (RUNNING, -TOLERANCE_S, Standing.TAKEN),
        (RUNNING, -3600, Standing.BEHIND),
        (Witnesses(NOW, TOLERANCE_S, 0), 5, Standing.TAKEN),  # elapsed time alone
        (Witnesses(NOW, TOLERANCE_S, 0), 8 * DAY, Standing.HELD),
        (Witnesses(NOW, TOLERANCE_S, NOW + 8 * DAY), 8 * DAY, Standing.TAKEN),  # the wall clock alone
        (OFF, 0, Standing.TAKEN),
        (OFF, 8 * DAY, Standing.HELD),
        (OFF, -3600, Standing.HELD),
        (OFF, -41 * DAY, Standing.BEHIND),
        (DEAD, 0, Standing.PROVISIONAL),
        (DEAD, 400 * DAY, Standing.PROVISIONAL),
        (DEAD, -3 * DAY, Standing.TAKEN),
        (DEAD, -4 * DAY, Standing.BEHIND),
    ],
)
def test_a_time_is_judged_by_the_witnesses(witnesses: Witnesses, ahead: int, standing: Standing) -> None:
    assert judge(NOW + ahead, witnesses, fresh=True) is standing


@pytest.mark.parametrize(
    ("witnesses", "ahead", "standing"),
    [
        (RUNNING, -DAY, Standing.PAST),
        (OFF, -DAY, Standing.TAKEN),  # a lower bound that the clock allows
        (OFF, DAY, Standing.HELD),
        (DEAD, -DAY, Standing.PROVISIONAL),
        (DEAD, -5 * DAY, Standing.PAST),
    ],
)
def test_a_statement_that_was_carried_may_be_old_and_not_young(witnesses: Witnesses, ahead: int, standing: Standing) -> None:
    assert judge(NOW + ahead, witnesses, fresh=False) is standing


@pytest.mark.parametrize(
    ("seconds", "drift", "confirmed"),
    [
        (CONFIRM_AFTER_S, 0, True),
        (CONFIRM_AFTER_S - 1, 0, False),
        (3600, TOLERANCE_S, True),
        (3600, TOLERANCE_S + 3, False),
        (3600, -TOLERANCE_S - 3, False),
        (30 * DAY, 0, True),
    ],
)
@pytest.mark.parametrize("witnesses", [RUNNING, DEAD], ids=["held", "provisional"])
def test_a_second_contact_confirms_if_the_servers_clock_has_gone_on(
    witnesses: Witnesses, seconds: int, drift: int, confirmed: bool
) -> None:
    first = TimeAnchor(NOW + 8 * DAY, True, Reading(0, 1))
    later = Witnesses(
        witnesses.floor + seconds, witnesses.exact_s, witnesses.wall + seconds if witnesses is RUNNING else seconds
    )
    signed = first.signed + seconds + drift
    weighed = weigh(signed, later, fresh=True, first=first, passed=Since(seconds * 1000, True))
    assert (weighed.standing is Standing.TAKEN, weighed.moves, weighed.confirmed) == (confirmed,) * 3
    assert weighed.dropped is (abs(drift) > TOLERANCE_S + 2)


def test_the_machine_must_have_been_running() -> None:
    first = TimeAnchor(NOW, True, Reading(0, 1))
    weighed = weigh(NOW + 7200, DEAD, fresh=True, first=first, passed=Since(7_200_000, False))
    assert (weighed.standing, weighed.moves, weighed.dropped) == (Standing.PROVISIONAL, False, True)


def test_a_clock_that_is_set_right_confirms_at_once() -> None:
    first = TimeAnchor(NOW, True, Reading(0, 1))
    witnesses = Witnesses(NOW - 3 * DAY, None, NOW + 60)
    weighed = weigh(NOW + 60, witnesses, fresh=True, first=first, passed=Since(60_000, True))
    assert (weighed.standing, weighed.moves, weighed.confirmed) == (Standing.TAKEN, True, True)


times = st.integers(0, 2 * NOW)
witnesses = st.builds(Witnesses, st.floats(0, 2 * NOW), st.none() | st.floats(TOLERANCE_S, 10 * TOLERANCE_S), times)
firsts = st.none() | st.builds(TimeAnchor, times, st.booleans(), st.just(Reading(0, 1)))
passed = st.builds(Since, st.integers(0, 10**9), st.booleans())


@given(times, witnesses, st.booleans(), firsts, passed)
def test_whatever_is_signed(signed: int, seen: Witnesses, fresh: bool, first: TimeAnchor | None, since: Since) -> None:
    weighed = weigh(signed, seen, fresh=fresh, first=first, passed=since)
    # A signed time never lowers the floor.
    assert not weighed.moves or signed > seen.floor
    assert not (weighed.confirmed and weighed.dropped)
    assert not ((weighed.confirmed or weighed.dropped) and first is None)
    agrees = Says.AGREES in (seen.elapsed_says(signed, fresh=fresh), seen.wall_says(signed, fresh=fresh))
    if weighed.moves and not agrees:
        # Nothing on this machine agrees: only a second contact after half an hour can have done that.
        assert weighed.confirmed and first is not None and fresh and since.running
        assert since.least_ms >= CONFIRM_AFTER_S * 1000 and advanced(first, signed, since)
    if weighed.standing in UNSETTLED:
        assert not weighed.moves and not weighed.confirmed


@given(st.integers(0, 400 * DAY), st.integers(-TOLERANCE_S, TOLERANCE_S), st.booleans())
def test_one_wrong_minute_moves_nothing(ahead: int, wall: int, running: bool) -> None:
    """The machine knows the time by its clock, its counters or both; the server is wrong once, by any amount."""
    seen = Witnesses(NOW, TOLERANCE_S, NOW + wall) if running else Witnesses(NOW - DAY, None, NOW + wall)
    weighed = weigh(NOW + TOLERANCE_S * 2 + 1 + ahead, seen, fresh=True, first=None, passed=None)
    assert (weighed.standing, weighed.moves) == (Standing.HELD, False)
    right = weigh(NOW + 1, seen, fresh=True, first=TimeAnchor(NOW + ahead + 700, True, Reading(0, 1)), passed=Since(0, True))
    assert (right.standing, right.moves, right.dropped) == (Standing.TAKEN, True, True)
