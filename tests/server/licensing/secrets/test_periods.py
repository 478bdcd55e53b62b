"""How far a secret is dated back: an hour at most, and never so far that an agent finds it overdue."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.rotation.table import rotation_time
from server.licensing.secrets.periods import BACKDATE_S, backdate

NOW, DAY = 1_800_000_000, 86_400


@pytest.mark.parametrize(
    ("interval", "age", "seconds"),
    [
        (DAY, None, 3600),
        (DAY, DAY, 3600),
        (DAY, 36_000, 3600),
        (DAY, 600, 60),
        (DAY, 0, 0),
        (DAY, -8 * DAY, 0),  # the former secret was dated by a wrong clock
        (600, None, 60),
        (9, None, 0),
    ],
)
def test_it_is_an_hour_or_a_tenth(interval: int, age: int | None, seconds: int) -> None:
    assert backdate(interval, age) == seconds


@given(st.integers(1, 400 * DAY), st.none() | st.integers(-400 * DAY, 400 * DAY))
def test_no_secret_is_due_when_it_comes(interval: int, age: int | None) -> None:
    back = backdate(interval, age)
    assert 0 <= back <= BACKDATE_S
    for agent in ("a", "b", "c"):
        due = rotation_time(agent, 7, NOW - back, NOW + interval)
        assert due > NOW or interval < 10


@given(st.integers(60, DAY), st.integers(0, 30))
def test_an_interval_of_the_agents_own_settles(local: int, _seed: int) -> None:
    """An agent that counts a shorter interval from `valid_from` rotates as often as it wants to, and not all the time."""
    made, age, rotations = NOW, None, 0
    now = NOW
    while now < NOW + 20 * local:
        begin = now - backdate(DAY, age)
        made, rotations = now, rotations + 1
        now = max(now + 1, begin + local)
        age = now - made
    assert rotations <= 25


def test_dates_never_go_back() -> None:
    made, begin = NOW, NOW - backdate(DAY, None)
    for step in (1, 10, 600, 3600, DAY, 10 * DAY):
        following = made + step - backdate(DAY, step)
        assert following >= begin
        made, begin = made + step, following
