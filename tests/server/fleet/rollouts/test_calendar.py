"""When a deployment window is open, also where clocks change."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from server.fleet.rollouts.calendar import next_opening, open_at
from server.ota.windows import parse_window

NIGHT = parse_window("mon-fri 22:00-05:00 Europe/Berlin")


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def test_a_window_over_midnight_belongs_to_the_day_on_which_it_opens() -> None:
    friday, saturday = at("2026-07-03T20:00:00"), at("2026-07-04T02:59:59")  # 22:00 and 04:59:59 in Berlin
    assert open_at(NIGHT, friday) and open_at(NIGHT, saturday)
    assert not open_at(NIGHT, friday - 1) and not open_at(NIGHT, saturday + 1)
    assert next_opening(NIGHT, saturday + 1) == at("2026-07-06T20:00:00"), "not before Monday"
    assert next_opening(NIGHT, friday + 60) == friday + 60
    assert open_at(None, 0) and next_opening(None, 7) == 7


@given(st.integers(at("2026-01-01T00:00:00"), at("2027-12-31T00:00:00")))
def test_the_next_opening_is_open_and_nothing_is_between(now: int) -> None:
    found = next_opening(NIGHT, now)
    assert open_at(NIGHT, found) and (found == now) == open_at(NIGHT, now) and now <= found <= now + 4 * 86_400
    assert found == now or not open_at(NIGHT, found - 1)
