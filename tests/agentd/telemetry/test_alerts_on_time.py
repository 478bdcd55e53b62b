"""Each alert of LA-17 comes at its second, not one earlier, is told once, and its end is told too. Time is a parameter."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agentd.ota.hindrances import PATIENCE_S, UNREACHABLE, Hindrance
from agentd.ota.table import Failure, Step, Update
from agentd.sockets.unauthorized import UnauthorizedPeers
from agentd.sync.cycle import ContactRecord
from agentd.sync.mode import Kept
from agentd.telemetry.alerts import ALERT_DEGRADED_S, ALERT_FAILURES
from hwsec.backend import BackendState
from ipc.peer import Peer
from tests.agentd.telemetry.alertworld import STATUS, AlertWorld, failing
from tests.agentd.world import DAY, T0, World, meta

DUE, ENDS = T0 + DAY, T0 + 8 * DAY
"""When a successor of the secret is overdue, and when its grace ends."""
Make = Callable[..., World]


@pytest.fixture
def alerts(tmp_path: Path, make_world: Make) -> AlertWorld:
    return AlertWorld(tmp_path, make_world(meta()))


def test_more_than_three_failed_rotations(alerts: AlertWorld) -> None:
    for failures in range(ALERT_FAILURES + 1):
        alerts.cycle.record = ContactRecord(failures, problem="no route")
        assert ("alert.rotation_failing", "raised") not in alerts.at(DUE + 10 + failures)
    alerts.cycle.record = ContactRecord(ALERT_FAILURES + 1, problem="no route")
    assert alerts.at(DUE + 20) == [("alert.rotation_failing", "raised")]
    assert alerts.at(DUE + 21) == []
    alerts.cycle.record = ContactRecord(0, last=DUE + 30)
    assert alerts.at(DUE + 30) == [("alert.rotation_failing", "cleared")]


def test_failures_before_a_new_secret_is_due_are_no_alert(alerts: AlertWorld) -> None:
    alerts.cycle.record = ContactRecord(50, problem="no route")
    assert alerts.at(DUE - 1) == []
    assert alerts.at(DUE) == [("alert.rotation_failing", "raised")]


def test_degraded_for_more_than_24_hours(alerts: AlertWorld) -> None:
    alerts.cycle.record = ContactRecord(3)
    assert alerts.at(DUE) == []
    assert alerts.at(DUE + ALERT_DEGRADED_S) == []
    assert alerts.at(DUE + ALERT_DEGRADED_S + 1) == [("alert.degraded_long", "raised")]
    alerts.cycle.record = ContactRecord(0, last=DUE + ALERT_DEGRADED_S + 5)
    assert alerts.at(DUE + ALERT_DEGRADED_S + 5) == [("alert.degraded_long", "cleared")]


def test_degraded_mode_is_counted_over_a_restart(tmp_path: Path, make_world: Make) -> None:
    world = make_world(meta())
    kept = Kept(degraded_since=DUE)
    alerts = AlertWorld(tmp_path, world, DUE + 3600, kept)
    alerts.cycle.record = ContactRecord(3)
    assert alerts.at(DUE + ALERT_DEGRADED_S) == []
    assert alerts.at(DUE + ALERT_DEGRADED_S + 1) == [("alert.degraded_long", "raised")]


def test_secret_expired_without_a_successor(alerts: AlertWorld) -> None:
    alerts.cycle.record = ContactRecord(3)
    alerts.at(DUE)
    alerts.at(DUE + ALERT_DEGRADED_S + 1)
    assert alerts.at(ENDS - 1) == []
    assert ("alert.secret_expired", "raised") in alerts.at(ENDS)
    alerts.world.rotate(meta(2, start=ENDS))
    alerts.cycle.record = ContactRecord(0, last=ENDS + 5)
    assert ("alert.secret_expired", "cleared") in alerts.at(ENDS + 5)


def test_tpm_unavailable(alerts: AlertWorld) -> None:
    assert alerts.at(T0 + 1) == []
    alerts.watch.hardware(failing(BackendState.ABSENT))
    assert alerts.at(T0 + 30) == [("alert.tpm_unavailable", "raised")]
    alerts.watch.hardware(failing(BackendState.LOCKED_OUT))
    assert alerts.at(T0 + 60) == []  # the same alert for another reason
    alerts.watch.hardware(STATUS)
    assert alerts.at(T0 + 90) == [("alert.tpm_unavailable", "cleared")]


def test_unauthorized_access_is_told_at_once_and_a_flood_once_a_minute(alerts: AlertWorld) -> None:
    peers = UnauthorizedPeers("pos", alerts.audit, alerts.core.counters, alerts.core.clock.monotonic)
    peers.refused(Peer(7, 7, 1))
    assert alerts.at(T0 + 1) == [("access.denied", "raised")]
    assert alerts.at(T0 + 2) == []
    for second in range(3, 60):
        peers.refused(Peer(1000 + second, 7, 1))
        assert alerts.at(T0 + second) == []
    assert alerts.at(T0 + 61) == [("access.denied", "raised")]
    assert alerts.at(T0 + 600) == []


def test_what_goes_on_over_a_restart_is_told_once_and_its_end_once(tmp_path: Path, make_world: Make) -> None:
    world = make_world(meta())
    first = AlertWorld(tmp_path, world, DUE)
    first.cycle.record = ContactRecord(4, problem="no route")
    first.watch.hardware(failing(BackendState.ABSENT))
    assert {alert for alert, _ in first.at(DUE)} == {"alert.rotation_failing", "alert.tpm_unavailable"}
    kept = first.webhook.queue.kept()
    first.end()
    (tmp_path / "webhook.json").write_bytes(msgspec.json.encode(kept))
    # The next run: failures are counted from nothing, and the TPM has not been asked yet. Nothing is over for that.
    second = AlertWorld(tmp_path, world, DUE + 100)
    assert second.at(DUE + 101) == [] and len(second.waiting()) == 2
    second.watch.hardware(failing(BackendState.ABSENT))
    second.cycle.record = ContactRecord(4, problem="no route")
    assert second.at(DUE + 130) == []
    second.end()
    # A third run finds that both are over.
    third = AlertWorld(tmp_path, world, DUE + 200)
    third.watch.hardware(STATUS)
    assert third.at(DUE + 230) == [("alert.tpm_unavailable", "cleared")]
    third.cycle.record = ContactRecord(0, last=DUE + 240)
    assert third.at(DUE + 240) == [("alert.rotation_failing", "cleared")]
    third.end()


def test_locked_updates_and_a_rehearsal_that_is_overdue(alerts: AlertWorld) -> None:
    assert alerts.at(T0) == []
    alerts.updates.update = Update(step=Step.LOCKED, failure=Failure(code="unpack", text="the bundle is damaged"))
    alerts.updates.rehearsal_overdue = lambda: True
    assert alerts.at(T0 + 1) == [("alert.ota_locked", "raised"), ("alert.ota_rehearsal", "raised")]
    alerts.updates.update = Update()
    assert alerts.at(T0 + 2) == [("alert.ota_locked", "cleared")]


def test_update_metadata_that_ends(alerts: AlertWorld) -> None:
    alerts.updates.signed_role_ends = lambda: (T0 + 86_400, "targets")
    assert alerts.at(T0) == [("alert.ota_metadata_ends", "raised")]
    alerts.updates.signed_role_ends = lambda: None
    assert alerts.at(T0 + 1) == [("alert.ota_metadata_ends", "cleared")]


def test_what_hinders_an_update_is_said_once_with_what_to_do_and_its_end_once(
    alerts: AlertWorld, caplog: pytest.LogCaptureFixture
) -> None:
    alerts.updates.hindrance = found = Hindrance("no-room", "/var has no room", T0)
    assert alerts.at(T0 + 1) == []  # it may pass by itself
    alerts.updates.hindrance = found.again("no-room", "/var has no room").again("no-room", "/var has no room")
    assert alerts.at(T0 + 2) == [("alert.ota_hindered", "raised")]
    assert alerts.at(T0 + 3) == []
    assert "an update cannot go on: /var has no room (no-room). Make room: " in caplog.text
    alerts.updates.hindrance = None
    assert alerts.at(T0 + 4) == [("alert.ota_hindered", "cleared")]


def test_a_repository_out_of_reach_alerts_after_a_day(alerts: AlertWorld) -> None:
    alerts.updates.hindrance = Hindrance(UNREACHABLE, "the repository cannot be reached", T0, tries=40)
    assert alerts.at(T0 + PATIENCE_S - 1) == []
    assert alerts.at(T0 + PATIENCE_S) == [("alert.ota_hindered", "raised")]
