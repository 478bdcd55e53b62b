"""Which alerts become events, what happens to those that do not arrive, and what survives a restart."""

import asyncio
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.base.alerts import ALERTS, AUDIT_BUDGET, CLOCK_SUSPECT, SECRET_EXPIRED, TPM_UNAVAILABLE, UNAUTHORIZED, Severity
from agentd.base.errors import Refused
from agentd.telemetry.alertqueue import MAX_DEAD, MAX_WAITING, AlertQueue, Kept, decode_kept
from agentd.telemetry.webhook import FAILING_S, read_kept
from agentd.telemetry.webhookkeys import HEADER, KEY_PREFIX
from common.redelivery import ATTEMPTS_REFUSED, DEAD_AFTER_S, Attempt, Next
from common.webhooksignature import verify
from tests.agentd.telemetry.alertworld import AlertWorld
from tests.agentd.world import T0, World, meta

Make = Callable[..., World]


def queue() -> AlertQueue:
    numbers = itertools.count(1)
    return AlertQueue(Kept(), lambda: f"e{next(numbers)}")


def look(made: AlertQueue, *raised: object, now: int = T0, mono: float = 0.0, least: Severity = Severity.LOW) -> None:
    made.look(raised, lambda _alert: True, ALERTS, least, now, mono)  # type: ignore[arg-type]


def test_the_least_severity_decides_which_alerts_are_told() -> None:
    made = queue()
    everything = [(alert, float(T0)) for alert in ALERTS]
    look(made, *everything, least=Severity.HIGH)
    assert {event.severity for event in made.waiting} == {Severity.HIGH, Severity.CRITICAL}
    look(made, *everything, least=Severity.LOW)
    told = {event.alert for event in made.waiting}
    assert told == {alert.event for alert in ALERTS} - {"alert.webhook_failing"}


def test_when_too_many_wait_the_least_severe_and_oldest_goes() -> None:
    made = queue()
    look(made, (SECRET_EXPIRED, T0))
    for number in range(MAX_WAITING + 5):
        look(made, (SECRET_EXPIRED, T0), (UNAUTHORIZED, T0 + number), mono=number * 60.0)
    assert len(made.waiting) == MAX_WAITING and made.dropped == 6
    assert made.waiting[0].alert == SECRET_EXPIRED.event and made.waiting[1].raised_at == T0 + 6


def test_an_event_that_is_refused_is_put_aside_and_the_next_goes() -> None:
    made = queue()
    look(made, (SECRET_EXPIRED, T0), (TPM_UNAVAILABLE, T0))
    mono = 0.0
    for attempt in range(1, ATTEMPTS_REFUSED + 1):
        event = made.next(mono)
        assert event is not None and event.alert == SECRET_EXPIRED.event
        verdict = made.note(event, Attempt(400, "it answers 400"), T0, mono, 0.5)
        assert verdict is (Next.DEAD if attempt == ATTEMPTS_REFUSED else Next.AGAIN)
        mono += 4000
    assert [dead.problem for dead in made.dead] == ["it answers 400"]
    following = made.next(mono)
    assert following is not None and following.alert == TPM_UNAVAILABLE.event
    assert made.note(following, Attempt(204), T0 + 9, mono, 0.5) is Next.DELIVERED
    assert made.revive() == 1 and made.next(mono) is not None and not made.dead


def test_pauses_grow_and_a_receiver_that_comes_back_gets_everything_of_three_days() -> None:
    made = queue()
    look(made, (SECRET_EXPIRED, T0))
    event = made.next(0.0)
    assert event is not None
    made.note(event, Attempt(None, "down"), T0, 0.0, 0.5)
    assert made.next(9.9) is None and made.next(10.0) is event
    made.note(event, Attempt(503, "busy", 100), T0 + 10, 10.0, 0.5)
    assert made.next(109.0) is None and made.next(110.0) is event
    assert made.note(event, Attempt(None, "down"), T0 + DEAD_AFTER_S - 1, 200.0, 0.5) is Next.AGAIN
    assert made.note(event, Attempt(None, "down"), T0 + DEAD_AFTER_S, 5000.0, 0.5) is Next.DEAD
    assert made.failing_since == T0


def test_a_receiver_that_wants_no_more_gets_no_second_attempt() -> None:
    made = queue()
    look(made, (SECRET_EXPIRED, T0))
    (event,) = made.waiting
    assert made.note(event, Attempt(410, "gone"), T0, 0.0, 0.5) is Next.PAUSE
    assert len(made.dead) == 1 and not made.waiting


def test_dead_letters_are_bounded() -> None:
    made = queue()
    for number in range(MAX_DEAD + 3):
        look(made, (UNAUTHORIZED, T0 + number), mono=number * 60.0)
        (event,) = made.waiting
        made.note(event, Attempt(410, "gone"), T0, 0.0, 0.5)
    assert len(made.dead) == MAX_DEAD and made.dropped == 3 and made.dead[0].event.raised_at == T0 + 3


def test_an_alert_of_another_release_ends_without_a_word() -> None:
    made = AlertQueue(Kept(open={"alert.of_tomorrow": T0, CLOCK_SUSPECT.event: T0}), str)
    look(made)
    assert [(event.alert, event.state) for event in made.waiting] == [(CLOCK_SUSPECT.event, "cleared")]


@given(st.binary(max_size=300))
def test_any_file_gives_what_was_kept_or_nothing(data: bytes) -> None:
    kept = decode_kept(data)
    assert kept is None or isinstance(kept, Kept)


# The webhook


@pytest.fixture
def alerts(tmp_path: Path, make_world: Make) -> AlertWorld:
    return AlertWorld(tmp_path, make_world(meta()))


def sent(made: AlertWorld, seconds: float = 0.0) -> None:
    made.now += seconds
    asyncio.run(made.webhook.deliver())


def test_a_body_names_the_alert_and_the_agent_and_nothing_else(alerts: AlertWorld) -> None:
    alerts.audit.raise_alert(SECRET_EXPIRED, "the words of the server: token eyJ…", text="eyJ")
    alerts.look()
    sent(alerts)
    ((body, header),) = alerts.received
    content = json.loads(body)
    assert content == {
        "action": SECRET_EXPIRED.action,
        "agent": alerts.core.agent_id,
        "alert": "alert.secret_expired",
        "cleared_at": None,
        "id": content["id"],
        "raised_at": T0,
        "severity": "critical",
        "state": "raised",
        "title": SECRET_EXPIRED.title,
    }
    assert len(content["id"]) == 32 and HEADER == "license-agent-signature"
    assert alerts.key.startswith(KEY_PREFIX) and verify(header, body, alerts.key, T0)
    assert not verify(header, body + b" ", alerts.key, T0) and not verify(header, body, alerts.key, T0 + 301)
    assert alerts.core.counters.webhook_delivered == 1


def test_what_waits_survives_a_kill_and_goes_out_under_the_same_id(tmp_path: Path, make_world: Make) -> None:
    world = make_world(meta())
    first = AlertWorld(tmp_path, world)
    first.answer = lambda: Attempt(None, "no route")
    first.audit.raise_alert(SECRET_EXPIRED, "x")
    first.look()
    sent(first)
    asyncio.run(first.webhook.keep())
    (event,) = first.webhook.queue.waiting
    first.end()
    assert (tmp_path / "webhook.json").stat().st_mode & 0o777 == 0o600
    assert first.key.encode() not in (tmp_path / "webhook.json").read_bytes()
    second = AlertWorld(tmp_path, world, T0 + 60)
    sent(second)
    assert [json.loads(body)["id"] for body, _ in second.received] == [event.id]
    asyncio.run(second.webhook.keep())
    second.end()
    third = AlertWorld(tmp_path, world, T0 + 120)
    sent(third, 10)
    assert third.received == []
    third.end()


def test_a_damaged_file_is_logged_and_replaced(tmp_path: Path, make_world: Make, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "webhook.json").write_bytes(b'{"format":2}')
    made = AlertWorld(tmp_path, make_world(meta()))
    assert "webhook.json is damaged; alerts that waited for the webhook are lost" in caplog.text
    made.audit.raise_alert(SECRET_EXPIRED, "x")
    made.look()
    asyncio.run(made.webhook.keep())
    assert len(read_kept(tmp_path / "webhook.json").waiting) == 1


def test_a_disk_that_fails_is_told_once_and_stops_nothing(
    alerts: AlertWorld, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "webhook.json").mkdir()
    alerts.audit.raise_alert(SECRET_EXPIRED, "x")
    alerts.look()
    for _ in range(3):
        asyncio.run(alerts.webhook.keep())
    assert caplog.text.count("cannot be kept") == 1
    sent(alerts)
    assert len(alerts.received) == 1


def test_a_webhook_that_fails_for_an_hour_is_an_alert_of_this_machine(alerts: AlertWorld) -> None:
    alerts.answer = lambda: Attempt(None, "no route")
    alerts.audit.raise_alert(SECRET_EXPIRED, "x")
    alerts.look()
    sent(alerts)
    sent(alerts, FAILING_S - 1)
    names = [alert.event for alert, _ in alerts.audit.raised_alerts]
    assert names == ["alert.secret_expired"]
    sent(alerts, 3600)
    assert [alert.event for alert, _ in alerts.audit.raised_alerts] == ["alert.secret_expired", "alert.webhook_failing"]
    alerts.answer = lambda: Attempt(200)
    sent(alerts, 3700)
    assert [alert.event for alert, _ in alerts.audit.raised_alerts] == ["alert.secret_expired"]
    assert alerts.core.counters.webhook_failed == 3


def test_without_a_webhook_nothing_is_kept(tmp_path: Path, make_world: Make) -> None:
    made = AlertWorld(tmp_path, make_world(meta()), webhook=False)
    made.audit.raise_alert(SECRET_EXPIRED, "x")
    made.look()
    asyncio.run(made.webhook.keep())
    sent(made)
    assert not made.received and not (tmp_path / "webhook.json").exists()
    with pytest.raises(Refused, match="set webhook = true in"):
        asyncio.run(made.webhook.test())
    # Switched on, it is told what is raised at that time.
    made.webhook.reconfigure(replace(made.webhook._config, webhook=True))
    made.look()
    assert made.waiting() == [("alert.secret_expired", "raised")]


def test_a_test_goes_out_at_once_and_is_not_kept(alerts: AlertWorld) -> None:
    assert asyncio.run(alerts.webhook.test()).taken
    ((body, header),) = alerts.received
    assert json.loads(body)["alert"] == "webhook.test" and verify(header, body, alerts.key, T0)
    alerts.answer = lambda: Attempt(None, "no route")
    assert not asyncio.run(alerts.webhook.test()).taken and not alerts.webhook.queue.waiting


def test_a_low_alert_below_the_least_severity_is_not_told(tmp_path: Path, make_world: Make) -> None:
    made = AlertWorld(tmp_path, make_world(meta()), min_severity="medium")
    made.audit.raise_alert(AUDIT_BUDGET, "x")
    made.look()
    assert made.waiting() == []
