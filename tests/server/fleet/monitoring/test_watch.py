"""Fleets are judged once an interval, whatever processes there are, and alerts follow: raised, told, silenced, cleared."""

import json
from typing import Any

import pytest
from sqlalchemy import select

from server.base.errors import Conflict, Invalid, NotFound
from server.fleet.fleets import fleets
from server.fleet.fleets.fleets import Wish
from server.fleet.monitoring import alerts, observations, settings, silences, views, watch
from server.fleet.monitoring.alerts import ALERT_STATES
from server.fleet.monitoring.intervals import INTERVAL_S, KEPT_S, SETTLED_S, interval_of
from server.fleet.monitoring.retention import remove_alerts
from server.fleet.monitoring.rules import Kind
from server.fleet.monitoring.watch import CATCH_UP, Watch
from server.registry import audit, events
from server.registry.models.monitoring import FleetAlert, FleetObservation, FleetWatch
from server.registry.models.rollouts import Rollout, RolloutGroup
from tests.server.atonce import at_once
from tests.server.devices import NOW
from tests.support.serverside import ServerSide

AT = interval_of(NOW)


class Fleet:
    """A fleet of one device, whose intervals are made up and judged one after the other."""

    def __init__(self, server: ServerSide, fleet_id: str = "tills") -> None:
        self.server, self.fleet_id, self.at = server, fleet_id, AT
        with server.database.write() as session:
            fleets.create(session, fleet_id, Wish(), NOW)
        self.judge()

    @property
    def now(self) -> int:
        """When the present interval has settled."""
        return self.at + INTERVAL_S + SETTLED_S

    def judge(self) -> int:
        return Watch(self.server.database).run(self.now)

    def goes(self, failed: int, times: int = 1, contacts: int = 100) -> None:
        """Intervals in which so many contacts fail, each judged."""
        for _ in range(times):
            self.at += INTERVAL_S
            with self.server.database.write() as session:
                row = observations.row_of(session, self.fleet_id, self.at)
                row.contacts, row.failed = contacts, failed
            assert self.judge() >= 1

    def set(self, **changes: Any) -> None:
        with self.server.database.write() as session:
            settings.set_thresholds(session, self.fleet_id, changes, self.now)

    def alerts(self, *, cleared: bool = False) -> list[FleetAlert]:
        with self.server.database.read() as session:
            return alerts.listed(session, "", 100, self.fleet_id, cleared=cleared)

    def told(self) -> list[tuple[str, str]]:
        """Kind of event, and severity."""
        with self.server.database.read() as session:
            found = [row for row in events.listed(session, 0, 100) if row.kind.startswith("alert.")]
        return [(row.kind, str(row.fields["severity"])) for row in found]

    def audited(self) -> list[str]:
        with self.server.database.read() as session:
            return [row.event for row in audit.tail(session, 100) if ".alert" in row.event or "silence" in row.event]


@pytest.fixture
def fleet(server: ServerSide) -> Fleet:
    made = Fleet(server)
    made.set(window=1, anomalies=False)
    return made


def test_an_alert_is_raised_once_told_once_and_cleared(fleet: Fleet) -> None:
    fleet.goes(10, 2)
    assert fleet.alerts() == []
    fleet.goes(10, 4)
    [row] = fleet.alerts()
    assert (row.kind, row.severity, row.state, row.value, row.bound) == ("error-rate", "warning", "raised", 0.1, 0.05)
    assert row.detail == "10 % of the contacts failed; the threshold is 5 %"
    assert fleet.told() == [("alert.raised", "warning")]
    fleet.goes(0, 6)
    assert fleet.alerts() == []
    [row] = fleet.alerts(cleared=True)
    assert (row.state, row.cleared_at) == ("cleared", fleet.now)
    assert fleet.told() == [("alert.raised", "warning"), ("alert.cleared", "warning")]
    assert fleet.audited() == ["fleet.alert_raised", "fleet.alert_cleared"]
    fleet.goes(10, 3)
    assert len(fleet.alerts(cleared=True)) == 2


def test_what_becomes_worse_is_told_again_also_if_somebody_has_taken_note(fleet: Fleet) -> None:
    fleet.goes(10, 3)
    [row] = fleet.alerts()
    with fleet.server.database.write() as session:
        alerts.acknowledge(session, row.id, "olga", fleet.now)
    fleet.goes(10)
    [row] = fleet.alerts()
    assert (row.state, row.acknowledged_by) == ("acknowledged", "olga")
    with fleet.server.database.write() as session, pytest.raises(Conflict, match="is acknowledged already"):
        alerts.acknowledge(session, row.id, "otto", fleet.now)
    fleet.goes(50, 3)
    [row] = fleet.alerts()
    assert (row.state, row.severity, row.acknowledged_by, row.value) == ("raised", "critical", None, 0.5)
    fleet.goes(10, 6)  # better, and told by nobody
    [row] = fleet.alerts()
    assert (row.severity, row.told) == ("warning", "critical")
    assert fleet.told() == [("alert.raised", "warning"), ("alert.raised", "critical")]
    with fleet.server.database.read() as session:
        assert views.figures(session, fleet.now).raised == {"info": 0, "warning": 1, "critical": 1}
        with pytest.raises(NotFound, match="fleets alerts list"):
            alerts.required(session, "fa-0")


def test_a_silence_hides_until_it_ends_and_no_longer(fleet: Fleet) -> None:
    with fleet.server.database.write() as session:
        until = fleet.now + 5 * INTERVAL_S
        made = silences.add(session, silences.Wish("tills", Kind.ERROR_RATE, until, "we move"), "olga", fleet.now)
        other = silences.add(session, silences.Wish(None, Kind.LATE, until, ""), "olga", fleet.now)
    fleet.goes(10, 4)
    assert len(fleet.alerts()) == 1
    assert fleet.told() == []
    fleet.goes(10, 1)
    assert fleet.told() == [("alert.raised", "warning")]
    with fleet.server.database.read() as session:
        assert silences.listed(session, "", 9, fleet.now) == []
    with fleet.server.database.write() as session:
        with pytest.raises(Conflict, match="has ended already"):
            silences.end(session, made.id, fleet.now)
        with pytest.raises(NotFound, match="no silence 'fs-0'"):
            silences.end(session, "fs-0", fleet.now)
        silences.end(session, other.id, NOW)
    assert fleet.audited()[:3] == ["fleet.alerts_silenced", "fleet.alerts_silenced", "fleet.alert_raised"]


def test_what_is_over_before_its_silence_is_told_to_nobody(fleet: Fleet) -> None:
    with fleet.server.database.write() as session:
        silences.add(session, silences.Wish(None, None, fleet.now + 86_400, ""), "olga", fleet.now)
    fleet.goes(10, 3)
    fleet.goes(0, 6)
    assert [row.state for row in fleet.alerts(cleared=True)] == ["cleared"]
    assert fleet.told() == []


@pytest.mark.parametrize("ends_in", [0, -5, silences.LONGEST_S + 1])
def test_a_silence_has_an_end(fleet: Fleet, ends_in: int) -> None:
    with fleet.server.database.write() as session, pytest.raises(Invalid, match="after 30 days at the latest"):
        silences.add(session, silences.Wish(None, None, NOW + ends_in, ""), "olga", NOW)


def test_two_processes_judge_an_interval_once(fleet: Fleet) -> None:
    fleet.goes(10, 2)
    fleet.at += INTERVAL_S
    with fleet.server.database.write() as session:
        row = observations.row_of(session, "tills", fleet.at)
        row.contacts, row.failed = 100, 10
    assert sum(at_once([fleet.judge] * 4)) == 1
    assert len(fleet.alerts()) == 1
    assert fleet.told() == [("alert.raised", "warning")]
    assert fleet.judge() == 0


def test_after_a_pause_the_last_hour_is_judged_and_what_is_older_is_left_out(fleet: Fleet) -> None:
    fleet.goes(0)
    begin = fleet.at
    for n in range(1, 41):
        with fleet.server.database.write() as session:
            row = observations.row_of(session, "tills", begin + n * INTERVAL_S)
            row.contacts, row.failed = 100, 10 if n <= 28 else 0
    fleet.at = begin + 40 * INTERVAL_S
    assert fleet.judge() == CATCH_UP
    assert fleet.alerts(cleared=True) == []


def test_a_clock_that_was_ahead_does_not_stop_the_judgments(fleet: Fleet) -> None:
    with fleet.server.database.write() as session:
        session.get_one(FleetWatch, "tills").judged_until = NOW + 30 * 86_400
    fleet.goes(10, 3)
    assert len(fleet.alerts()) == 1


def test_a_fleet_that_cannot_be_judged_keeps_no_other_from_it(fleet: Fleet) -> None:
    other = Fleet(fleet.server, "other")
    with fleet.server.database.write() as session:
        session.get_one(FleetWatch, "other").thresholds = '{"zone": "Mars/Olympus"}'
    assert other.at == AT
    fleet.goes(10, 3)
    assert len(fleet.alerts()) == 1


def test_an_interval_in_which_nobody_came_was_observed(fleet: Fleet) -> None:
    fleet.at += INTERVAL_S
    fleet.judge()
    with fleet.server.database.read() as session:
        row = session.get_one(FleetObservation, ("tills", fleet.at))
        assert (row.contacts, row.devices) == (0, None)


def test_updates_that_fail_count_in_the_interval_in_which_they_did(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([7, 7, 9])
    monkeypatch.setattr(watch, "update_failures", lambda _session, _fleet: next(found))
    with fleet.server.database.write() as session:
        session.get_one(FleetWatch, "tills").update_failures = None
    fleet.goes(0, 3)
    with fleet.server.database.read() as session:
        rows = session.scalars(select(FleetObservation).order_by(FleetObservation.at))
        assert [row.updates for row in rows][-3:] == [0, 0, 2]


def test_failures_of_updates_are_those_of_the_fleets_rollouts(fleet: Fleet) -> None:
    with fleet.server.database.write() as session:
        for n, fleet_id in enumerate(("tills", "tills", "other")):
            session.add(
                Rollout(
                    id=f"r{n}", fleet_id=fleet_id, product="pos", path="p", version="1", build_id="b", policy="{}",
                    state="running", detail="", created_by="olga", created_at=NOW, updated_at=NOW, revision=1,
                )
            )  # fmt: skip
            session.add(
                RolloutGroup(
                    rollout_id=f"r{n}", number=1, name="", state="running", success_percent=90, failure_percent=10, total=9,
                    waiting=0, under_way=0, proved=0, failed=n + 1, left_out=0, seconds=0,
                )
            )  # fmt: skip
        session.flush()
        assert watch.update_failures(session, "tills") == 3
        assert watch.update_failures(session, "nobody") == 0


def test_a_fleet_that_is_deleted_has_no_open_alerts(fleet: Fleet) -> None:
    fleet.goes(10, 3)
    with fleet.server.database.write() as session:
        fleets.remove(session, "tills", fleet.now)
    fleet.judge()
    assert [row.state for row in fleet.alerts(cleared=True)] == ["cleared"]
    assert fleet.told()[-1] == ("alert.cleared", "warning")
    with fleet.server.database.read() as session:
        assert session.get(FleetWatch, "tills") is None


def test_alerts_go_90_days_after_their_end_and_open_ones_stay(fleet: Fleet) -> None:
    fleet.goes(10, 3)
    fleet.goes(0, 6)
    fleet.goes(10, 3)
    with fleet.server.database.write() as session:
        assert remove_alerts(session, fleet.now) == 0
        assert remove_alerts(session, fleet.now + KEPT_S) == 1
    assert [row.state for row in fleet.alerts(cleared=True)] == ["raised"]


def test_thresholds_that_are_gone_clear_their_alerts(fleet: Fleet) -> None:
    fleet.goes(10, 3)
    fleet.set(error_rate={})
    fleet.goes(10)
    assert fleet.alerts() == []


def test_thresholds_are_changed_one_by_one_and_audited(fleet: Fleet) -> None:
    fleet.set(error_rate={"critical": 0.5})
    with fleet.server.database.read() as session:
        found, revision = settings.thresholds_for(session, "tills")
        last = audit.tail(session, 1)[0]
    assert (found.window, found.error_rate.warning, found.error_rate.critical, revision) == (1, None, 0.5, 3)
    assert (last.event, last.fields["thresholds"]["window"]) == ("fleet.thresholds_set", 1)
    for changes in ({}, {"windows": 2}, {"window": 2.5}, {"window": 10**9}):
        with pytest.raises(Invalid):
            fleet.set(**changes)


def test_metrics_have_what_was_found_lately(fleet: Fleet) -> None:
    fleet.goes(10, 3)
    with fleet.server.database.read() as session:
        found = views.figures(session, fleet.now)
        assert (found.error_rates, found.open) == ({"tills": 0.1}, {("tills", "warning"): 1})
        assert found.latencies_p95_s == {}  # no latencies in what was made up
        assert views.figures(session, fleet.now + 7200).error_rates == {}
    fleet.goes(5, contacts=6)
    with fleet.server.database.read() as session:
        assert views.figures(session, fleet.now).error_rates == {}


def test_the_states_of_alerts() -> None:
    assert {(state.value, event.value): then.value for state, event, then in ALERT_STATES} == {
        ("raised", "acknowledge"): "acknowledged",
        ("raised", "worsen"): "raised",
        ("raised", "clear"): "cleared",
        ("acknowledged", "worsen"): "raised",
        ("acknowledged", "clear"): "cleared",
    }


def test_what_is_stored_is_json_that_another_release_may_leave_behind(fleet: Fleet) -> None:
    fleet.goes(10)
    with fleet.server.database.write() as session:
        row = session.get_one(FleetWatch, "tills")
        assert set(json.loads(row.standings)) == {
            f"{k}/{s}" for k in ("error-rate", "latency") for s in ("warning", "critical")
        }
        row.standings, row.health = '{"a": {"state": "odd"}}', '{"x": 1}'
    with fleet.server.database.read() as session:
        assert views.health_of('{"x": 1}') is None
        assert views.figures(session, fleet.now).error_rates == {}
    fleet.goes(10, 3)
    assert len(fleet.alerts()) == 1
