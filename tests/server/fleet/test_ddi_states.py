"""The states of an action, and the windows that the server keeps for clients that know none."""

from datetime import UTC, datetime

import pytest

from common.statetable import UnknownTransition
from contracts.directive import Day, DeploymentWindow
from server.fleet.ddi.action_states import ACTION_STATES, OPEN, Event, State
from server.fleet.ddi.windows import is_open


def test_an_action_that_has_ended_changes_no_more() -> None:
    for state in set(State) - set(OPEN):
        for event in Event:
            with pytest.raises(UnknownTransition):
                ACTION_STATES.step(state, event)


def test_nothing_leads_from_a_success_back_to_its_installation() -> None:
    known = {event for state, event, _ in ACTION_STATES if state is State.INSTALLED}
    assert known == {Event.PROVE, Event.FAIL, Event.WITHDRAW}


def test_only_what_the_device_was_to_stop_is_stopped_by_it() -> None:
    assert {state for state, event, _ in ACTION_STATES if event in (Event.STOP, Event.GO_ON)} == {State.CANCELING}


NIGHT = DeploymentWindow(zone="Europe/Berlin", days=(Day.FRIDAY,), start="22:00", end="05:00")
NOON = DeploymentWindow(zone="UTC", days=(Day.FRIDAY, Day.SUNDAY), start="12:00", end="13:00")


@pytest.mark.parametrize(
    ("window", "at", "expected"),
    [
        (None, "2026-12-01T00:00", True),
        (NOON, "2026-12-04T11:59", False),
        (NOON, "2026-12-04T12:00", True),
        (NOON, "2026-12-04T13:00", False),
        (NOON, "2026-12-05T12:30", False),
        (NOON, "2026-12-06T12:30", True),
        (NIGHT, "2026-12-04T20:59", False),
        (NIGHT, "2026-12-04T21:00", True),
        (NIGHT, "2026-12-05T03:59", True),
        (NIGHT, "2026-12-05T04:00", False),
        (NIGHT, "2026-12-04T02:00", False),
        (NIGHT, "2026-07-03T20:00", True),
        (DeploymentWindow(zone="Nowhere/City", days=(Day.MONDAY,), start="23:00", end="01:00"), "2026-12-01T00:30", False),
    ],
)
def test_a_window_is_open_by_its_zone_and_into_the_next_day(window: DeploymentWindow | None, at: str, expected: bool) -> None:
    assert is_open(window, int(datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp())) is expected


def test_a_zone_that_the_server_does_not_know_keeps_the_window_shut_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """In UTC it would open in the middle of some shop's day."""
    always = DeploymentWindow(zone="Nowhere/Else", days=tuple(Day), start="00:00", end="23:59")
    assert not any(is_open(always, at) for at in range(0, 86_400, 3600))
    told = [each for each in caplog.records if "does not know their time zone" in each.message]
    assert [each.__dict__["fields"] for each in told] == [{"zone": "Nowhere/Else"}]
