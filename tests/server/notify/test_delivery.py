"""What webhooks get of the server's events: in order, each at least once, none too late, on both databases."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from sqlalchemy import select

from common.redelivery import ATTEMPTS_REFUSED, DEAD_AFTER_S, Attempt
from common.webhooksignature import verify
from server.base.errors import RegistryError
from server.notify.delivery import LEASE_S, MAX_DEAD_LETTERS, Deliveries
from server.notify.signature import HEADER, SECRET_PREFIX
from server.notify.webhook_states import WebhookEvent
from server.notify.webhooks import MAX_WEBHOOKS, OVERLAP_S, Webhooks
from server.registry import events
from server.registry.models.webhooks import Webhook
from server.registry.upkeep.housekeeping import Housekeeping
from tests.server.devices import NOW
from tests.support.serverside import Acts, ServerSide

pytestmark = pytest.mark.system
URL = "https://shop.example/hooks"
DAY = 86_400


@dataclass
class Receiver:
    """Takes the place of the network: the sender has tests of its own, over TLS."""

    answer: Callable[[str, dict[str, object]], Attempt] = lambda _url, _event: Attempt(200)
    got: list[tuple[str, dict[str, object], str, bytes]] = field(default_factory=list)

    def send(self, url: str, headers: dict[str, str], body: bytes) -> Attempt:
        event = json.loads(body)
        self.got.append((url, event, headers[HEADER], body))
        return self.answer(url, event)

    @property
    def kinds(self) -> list[str]:
        return [str(event["kind"]) for _, event, _, _ in self.got]


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def hooks(server: ServerSide) -> Acts:
    return Acts(Webhooks(server.cipher), server.database)


def deliveries(server: ServerSide, receiver: Receiver, clock: Clock, holder: str = "one") -> Deliveries:
    return Deliveries(server.database, server.cipher, Webhooks(server.cipher), receiver, holder, clock, lambda: 0.5)  # type: ignore[arg-type]


@pytest.fixture
def run(server: ServerSide, receiver: Receiver, clock: Clock) -> Callable[[], int]:
    return deliveries(server, receiver, clock).run


def emit(server: ServerSide, *kinds: str, at: int = NOW) -> None:
    for kind in kinds:
        with server.database.write() as session:
            events.emit(session, kind, at, **{kind.partition(".")[0]: "x-1"})


def test_events_come_in_order_signed_and_once(
    server: ServerSide, hooks: Acts, receiver: Receiver, run: Callable[[], int], clock: Clock
) -> None:
    emit(server, "license.before")
    webhook, secret = hooks.add(URL, [], NOW)
    assert secret.startswith(SECRET_PREFIX)
    emit(server, "license.issued", "agent.revoked", "license.suspended")
    assert run() == 3
    assert run() == 0
    assert receiver.kinds == ["license.issued", "agent.revoked", "license.suspended"]
    url, event, header, body = receiver.got[0]
    assert url == URL
    assert verify(header, body, secret, clock.now)
    assert event == {
        "id": f"evt-{event['seq']}", "seq": event["seq"], "at": NOW, "kind": "license.issued", "subject": "x-1",
        "fields": {"license": "x-1"},
    }  # fmt: skip
    (row,) = hooks.listed()
    assert (row.webhook_id, row.behind, row.last_success, row.failing_since) == (webhook, 0, NOW, None)


def test_only_what_was_asked_for(server: ServerSide, hooks: Acts, receiver: Receiver, run: Callable[[], int]) -> None:
    hooks.add(URL, ["license.*", "agent.revoked"], NOW)
    emit(server, "agent.enrolled", "license.issued", "customer.erased", "agent.revoked")
    run()
    assert receiver.kinds == ["license.issued", "agent.revoked"]
    assert hooks.listed()[0].behind == 0


def test_the_test_event_goes_to_one_webhook_only(
    server: ServerSide, hooks: Acts, receiver: Receiver, run: Callable[[], int]
) -> None:
    first, _ = hooks.add(URL + "/1", ["license.*"], NOW)
    hooks.add(URL + "/2", [], NOW)
    hooks.test(first, NOW)
    assert run() == 1
    assert receiver.got[0][0] == URL + "/1"


def test_a_receiver_that_is_down_gets_everything_in_order_when_it_is_back(
    server: ServerSide, hooks: Acts, receiver: Receiver, run: Callable[[], int], clock: Clock
) -> None:
    hooks.add(URL, [], NOW)
    emit(server, "license.a", "license.b")
    receiver.answer = lambda _url, _event: Attempt(None, "the connection is refused")
    pauses = []
    for _ in range(12):
        assert run() == 0
        start = clock.now
        while len(receiver.got) == len(pauses) + 1:
            clock.now += 5
            run()
        pauses.append(clock.now - start)
    assert pauses == sorted(pauses)
    assert pauses[0] <= 10 < pauses[-1] <= 3600
    assert set(receiver.kinds) == {"license.a"}
    (row,) = hooks.listed()
    assert (row.problem, row.failing_since) == ("the connection is refused", NOW)
    receiver.answer, receiver.got = (lambda _url, _event: Attempt(204)), []
    clock.now += 3601
    assert run() == 2
    assert receiver.kinds == ["license.a", "license.b"]
    assert hooks.listed()[0].failing_since is None


def test_an_event_that_its_receiver_refuses_holds_up_the_others_for_some_minutes_only(
    server: ServerSide, hooks: Acts, receiver: Receiver, run: Callable[[], int], clock: Clock
) -> None:
    webhook, _ = hooks.add(URL, [], NOW)
    emit(server, "license.poison", "license.good")
    receiver.answer = lambda _url, event: Attempt(422, "it answers 422") if event["kind"] == "license.poison" else Attempt(200)
    for _ in range(ATTEMPTS_REFUSED):
        run()
        clock.now += 3600
    assert receiver.kinds == ["license.poison"] * ATTEMPTS_REFUSED + ["license.good"]
    (letter,) = hooks.dead_letters(webhook, None, 10)
    assert (letter.kind, letter.problem, letter.again) == ("license.poison", "it answers 422", False)
    # Once it is mended, an operator has it sent again.
    receiver.answer = lambda _url, _event: Attempt(200)
    assert hooks.retry(webhook, clock.now, letter.seq) == 1
    assert run() == 1
    assert hooks.dead_letters(webhook, None, 10) == []
    with pytest.raises(RegistryError, match="no dead letter"):
        hooks.retry(webhook, clock.now, letter.seq)


def test_a_dead_letter_that_is_refused_again_is_not_sent_for_ever(
    server: ServerSide, hooks: Acts, receiver: Receiver, run: Callable[[], int], clock: Clock
) -> None:
    webhook, _ = hooks.add(URL, [], NOW)
    emit(server, "license.poison")
    receiver.answer = lambda _url, _event: Attempt(400, "it answers 400")
    for _ in range(ATTEMPTS_REFUSED + 3):
        run()
        clock.now += 3600
    sent = len(receiver.got)
    hooks.retry(webhook, clock.now)
    run()
    run()
    assert len(receiver.got) == sent + 1
    assert len(hooks.dead_letters(webhook, None, 10)) == 1


def test_after_days_old_events_are_put_aside_and_new_ones_are_kept(
    server: ServerSide, hooks: Acts, receiver: Receiver, run: Callable[[], int], clock: Clock
) -> None:
    webhook, _ = hooks.add(URL, [], NOW)
    emit(server, "license.old")
    receiver.answer = lambda _url, _event: Attempt(500, "it answers 500")
    run()
    clock.now += DEAD_AFTER_S
    emit(server, "license.young", at=clock.now)
    run()
    assert [letter.kind for letter in hooks.dead_letters(webhook, None, 10)] == ["license.old"]
    receiver.answer, receiver.got = (lambda _url, _event: Attempt(200)), []
    clock.now += 3700
    run()
    assert receiver.kinds == ["license.young"]


def test_a_receiver_that_is_gone_is_left_alone_and_that_is_an_alert(
    server: ServerSide, hooks: Acts, receiver: Receiver, run: Callable[[], int], clock: Clock
) -> None:
    webhook, _ = hooks.add(URL, [], NOW)
    emit(server, "license.a", "license.b")
    receiver.answer = lambda _url, _event: Attempt(410, "it answers 410")
    run()
    clock.now += DAY
    run()
    assert receiver.kinds == ["license.a"]
    assert hooks.listed()[0].state == "paused"
    assert [(row.actor, row.outcome) for row in server.audit.tail(5) if row.event == "webhook.paused"] == [("server", "alert")]
    receiver.answer = lambda _url, _event: Attempt(200)
    hooks.step(webhook, WebhookEvent.RESUME, clock.now)
    run()
    assert receiver.kinds == ["license.a", "license.a", "license.b"]


def test_one_receiver_that_fails_holds_up_no_other(
    server: ServerSide, hooks: Acts, receiver: Receiver, run: Callable[[], int]
) -> None:
    hooks.add(URL + "/bad", [], NOW)
    hooks.add(URL + "/good", [], NOW)
    emit(server, "license.a", "license.b")
    receiver.answer = lambda url, _event: Attempt(None, "down") if url.endswith("bad") else Attempt(200)
    assert run() == 2


def test_a_new_secret_and_the_former_sign_for_a_day(
    server: ServerSide, hooks: Acts, receiver: Receiver, run: Callable[[], int], clock: Clock
) -> None:
    webhook, old = hooks.add(URL, [], NOW)
    new = hooks.new_secret(webhook, NOW)
    emit(server, "license.a")
    run()
    _, _, header, body = receiver.got[-1]
    assert verify(header, body, old, clock.now)
    assert verify(header, body, new, clock.now)
    clock.now += OVERLAP_S
    emit(server, "license.b")
    run()
    _, _, header, body = receiver.got[-1]
    assert not verify(header, body, old, clock.now)
    assert verify(header, body, new, clock.now)
    stolen, newest = new, hooks.new_secret(webhook, clock.now, 0)
    emit(server, "license.c")
    run()
    _, _, header, body = receiver.got[-1]
    assert (verify(header, body, stolen, clock.now), verify(header, body, newest, clock.now)) == (False, True)


def test_no_secret_is_in_the_registry_the_audit_or_a_list(server: ServerSide, hooks: Acts) -> None:
    _, secret = hooks.add(URL, [], NOW)
    with server.database.read() as session:
        (row,) = session.scalars(select(Webhook)).all()
        assert secret.encode() not in row.sealed
    assert secret not in repr(server.audit.tail(10)) + repr(hooks.listed())


def test_two_processes_deliver_each_event_once(server: ServerSide, hooks: Acts, receiver: Receiver, clock: Clock) -> None:
    for number in range(6):
        hooks.add(f"{URL}/{number}", [], NOW)
    emit(server, *(f"license.e{letter}" for letter in "abcdefgh"))
    started = threading.Barrier(2)

    def work(holder: str) -> None:
        started.wait(10)
        for _ in range(4):
            deliveries(server, receiver, clock, holder).run()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    per_url: dict[str, list[str]] = {}
    for url, event, _, _ in receiver.got:
        per_url.setdefault(url, []).append(str(event["kind"]))
    assert len(per_url) == 6
    assert all(kinds == [f"license.e{letter}" for letter in "abcdefgh"] for kinds in per_url.values())


def test_a_process_that_was_killed_keeps_a_webhook_for_the_length_of_its_lease(
    server: ServerSide, hooks: Acts, receiver: Receiver, clock: Clock
) -> None:
    hooks.add(URL, [], NOW)
    emit(server, "license.a")

    class Killed(BaseException):
        pass

    def die(_url: str, _event: dict[str, object]) -> Attempt:
        raise Killed

    receiver.answer = die
    with pytest.raises(Killed):
        deliveries(server, receiver, clock, "one").run()
    receiver.answer = lambda _url, _event: Attempt(200)
    assert deliveries(server, receiver, clock, "two").run() == 0
    clock.now += LEASE_S
    assert deliveries(server, receiver, clock, "two").run() == 1
    assert receiver.kinds == ["license.a", "license.a"]


def test_a_lease_and_a_due_time_of_a_wrong_clock_hold_up_nothing(
    server: ServerSide, hooks: Acts, receiver: Receiver, clock: Clock, run: Callable[[], int]
) -> None:
    hooks.add(URL, [], NOW)
    emit(server, "license.a")
    with server.database.write() as session:
        (row,) = session.scalars(select(Webhook)).all()
        row.holder, row.lease_until, row.due_at = "lost", NOW + 20 * DAY, NOW + 20 * DAY
    assert run() == 1


def test_dead_letters_are_bounded_and_what_goes_is_counted(
    server: ServerSide, hooks: Acts, receiver: Receiver, run: Callable[[], int], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_DEAD_LETTERS == 1000
    monkeypatch.setattr("server.notify.delivery.MAX_DEAD_LETTERS", 3)
    webhook, _ = hooks.add(URL, [], NOW)
    emit(server, *(f"license.e{letter}" for letter in "abcde"))
    receiver.answer = lambda _url, _event: Attempt(500, "it answers 500")
    run()
    clock.now += DEAD_AFTER_S
    run()
    assert [letter.kind for letter in hooks.dead_letters(webhook, None, 10)] == ["license.ec", "license.ed", "license.ee"]
    assert hooks.listed()[0].dropped == 2
    Housekeeping(server.database, server.cipher.audit_key()).run(clock.now + 31 * DAY, confirmed=True)
    assert hooks.dead_letters(webhook, None, 10) == []


def test_what_cannot_be_a_webhook(server: ServerSide, hooks: Acts) -> None:
    for kind in ("license", "license.", "*.x", "license.issued.more", "LICENSE.issued", "license.*x"):
        with pytest.raises(RegistryError, match="not a kind of event"):
            hooks.add(URL, [kind], NOW)
    with pytest.raises(RegistryError, match="https"):
        hooks.add("http://shop.example/", [], NOW)
    for number in range(MAX_WEBHOOKS):
        hooks.add(f"{URL}/{number}", [], NOW)
    with pytest.raises(RegistryError, match="the limit"):
        hooks.add(URL, [], NOW)
    for act in (hooks.remove, hooks.test, hooks.new_secret, hooks.change):
        with pytest.raises(RegistryError, match="there is no webhook 'wh-no'"):
            act("wh-no", NOW)


def test_a_removed_webhook_gets_nothing_more(
    server: ServerSide, hooks: Acts, receiver: Receiver, run: Callable[[], int]
) -> None:
    webhook, _ = hooks.add(URL, [], NOW)
    emit(server, "license.a")
    hooks.remove(webhook, NOW)
    assert run() == 0
    assert receiver.got == []
    assert hooks.listed() == []


def test_a_server_that_stops_sends_no_further_event_and_keeps_the_place(
    server: ServerSide, hooks: Acts, receiver: Receiver, clock: Clock
) -> None:
    """The process waits for what is being sent: a long backlog must not keep it from ending."""
    hooks.add(URL, [], NOW)
    emit(server, "license.a", "license.b", "license.c")
    going = deliveries(server, receiver, clock)

    def stop_at_the_second(_url: str, event: dict[str, object]) -> Attempt:
        if event["kind"] == "license.b":
            going.stop()
        return Attempt(200)

    receiver.answer = stop_at_the_second
    assert going.run() == 2
    assert going.run() == 0
    assert deliveries(server, receiver, clock, "the next process").run() == 1
    assert receiver.kinds == ["license.a", "license.b", "license.c"]
