"""The contact for updates: what is asked, what is believed, and what the runner is given."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from joserfc import jws
from joserfc.jwk import ECKey

from agentd.ota.consent import Mode
from agentd.ota.settings import Settings
from agentd.ota.sides import Declined, Hindered
from agentd.ota.table import Step
from agentd.sync.cycle import OUTCOME_PAUSE_S
from agentd.sync.ota import UpdateSync
from agentd.uplink.transport import NoContact
from contracts.contact.updates import HARDWARE, UPDATES, OutcomeState, UpdatesReply, UpdatesRequest
from contracts.directive import DIRECTIVE_TYPE, DeploymentWindow, Directive
from contracts.exchange import Refusal, RefusalCode, Refused
from contracts.trust import parse_trust
from server.keys.jose import new_signing_key, public_jwk
from tests.agentd.ota.machine import NEW, NOW, UpdatedMachine
from tests.contracts.world import AGENT, DELIVERY_KEY, TRUST_FILE
from tests.support.pair import prepare

WINDOW = DeploymentWindow(zone="Europe/Berlin", days=("mon",), start="23:00", end="05:00")  # type: ignore[arg-type]


def directive(number: int = 7, key: dict[str, str] = DELIVERY_KEY, **changes: Any) -> str:
    content = Directive(
        number=number, agent_id=AGENT, product="pos", target="pos/2.0.0.bundle", sha256=NEW.sha256, length=1000,
        version="2.0.0", build_id="b2", rollout="r1", not_before=NOW - 5, not_after=NOW + 86_400, window=WINDOW,
        notice_until=NOW + 60, downgrade=False, withdraws=None,
    )  # fmt: skip
    header = {"alg": "ES256", "typ": DIRECTIVE_TYPE, "kid": public_jwk(key)["kid"]}
    body = msgspec.json.encode(msgspec.structs.replace(content, **changes))
    return jws.serialize_compact(header, body, ECKey.import_key({**key}))


class Client:
    """Answers as the server does, and keeps what was asked."""

    def __init__(self) -> None:
        self.directive: str | None = None
        self.acknowledged: tuple[int, ...] = ()
        self.asked: list[dict[str, Any]] = []
        self.key_sets = 0
        self.away = False
        self.refusal: Refusal | None = None

    async def ask(self, kind: type[Any], make: type[Any], **fields: Any) -> UpdatesReply:
        assert (kind, make) == (UpdatesReply, UpdatesRequest)
        if self.away:
            raise NoContact("no route")
        self.asked.append(fields)
        if self.refusal is not None and "hardware" in fields:
            raise Refused(self.refusal)
        return UpdatesReply(
            agent_id=AGENT, request_id="0" * 32, issued_at=NOW, directive=self.directive,
            acknowledged=self.acknowledged, paused=False,
        )  # fmt: skip

    async def fetch_key_set(self, root: str | None = None) -> str:
        self.key_sets += 1
        return "key set"


class Negotiated:
    """What the server can do."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def can(self, name: str) -> bool:
        return name in self.names

    async def forget(self, name: str) -> None:
        self.names.remove(name)


class Contact:
    hardware: str | None = "till-x86"

    def __init__(self, directory: Path) -> None:
        self.machine = UpdatedMachine(directory, Settings(consent=Mode.NONE))
        self.runner = self.machine.start()
        self.client = Client()
        store = SimpleNamespace(trust=parse_trust(TRUST_FILE))
        self.negotiation = Negotiated()
        self.sync = UpdateSync(
            self.machine.core,
            store,
            self.client,
            self.runner,
            self.negotiation,
            lambda: (),
            lambda: self.hardware,  # type: ignore[arg-type]
        )


@pytest.fixture
def contact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Contact]:
    monkeypatch.setattr(os, "fsync", lambda _fd: None)
    made = Contact(tmp_path)
    yield made
    made.machine.close()


def test_a_directive_becomes_an_order_and_its_end_is_reported_until_it_is_acknowledged(contact: Contact) -> None:
    runner, client = contact.runner, contact.client
    client.directive = directive()

    async def story() -> None:
        await contact.sync.sync()
        order = runner.update.order
        assert order is not None and runner.update.step is Step.OFFERED
        assert (order.number, order.directive, order.key_set) == (7, client.directive, "key set")
        assert (order.zone, order.days, order.start, order.end) == ("Europe/Berlin", ("mon",), "23:00", "05:00")
        assert (order.received, order.notice_until, order.rollout, order.length) == (NOW, NOW + 60, "r1", 1000)
        await contact.sync.sync()
        assert client.key_sets == 1
        under_way = client.asked[-1]["outcomes"]
        assert [(each.number, each.state, each.detail) for each in under_way] == [(7, OutcomeState.PROGRESS, "offered")]
        running = client.asked[-1]["running"][0]
        assert (running.product, running.version, running.build_id) == ("pos", "1.0.0", "b1")

        await contact.machine.acts.install("Eva", {"uid": 1})
        assert not contact.sync.wanted
        await runner.stop()
        await runner.run()
        assert contact.sync.wanted, "an operator waits for the end"
        for acknowledged in ((), (7,)):
            client.acknowledged = acknowledged
            await contact.sync.sync()
            assert [(each.number, each.state) for each in client.asked[-1]["outcomes"]] == [(7, OutcomeState.COMMITTED)]
            assert client.asked[-1]["directive"] == 7
            assert not contact.sync.wanted, "once is enough, also where the server does not acknowledge it"
            assert client.asked[-1]["running"][0].version == "2.0.0"
        await contact.sync.sync()
        assert client.asked[-1]["outcomes"] == ()
        assert runner.update.step is Step.IDLE and client.key_sets == 1

    asyncio.run(story())


@pytest.mark.parametrize(
    "text",
    [
        directive(key=new_signing_key()),
        directive(agent_id="another"),
        directive().replace(".", "", 1),
        directive(sha256="short"),
        directive(2**53 - 1),
        directive(2**53 - 1, withdraws=2**53 - 2),
    ],
    ids=["of an unknown key", "for another agent", "malformed", "with a bad digest", "the last one", "a last withdrawal"],
)
def test_a_directive_that_does_not_count_is_recorded_and_changes_nothing(contact: Contact, text: str) -> None:
    contact.client.directive = text

    async def story() -> None:
        await contact.sync.sync()
        assert contact.runner.update.step is Step.IDLE and contact.runner.update.order is None
        assert contact.runner.known == 0

    asyncio.run(story())
    assert [(each["event"], each["outcome"]) for each in contact.machine.records()] == [("ota.directive", "refused")]


@pytest.mark.parametrize("text", [None, directive(8, withdraws=7)], ids=["no directive", "a withdrawal"])
def test_what_the_server_does_not_order_any_more_is_not_installed(contact: Contact, text: str | None) -> None:
    contact.client.directive = directive()

    async def story() -> None:
        await contact.sync.sync()
        assert not await contact.sync.withdrawn(7)
        contact.client.directive = text
        assert await contact.sync.withdrawn(7)
        await contact.sync.sync()
        assert (contact.runner.update.step, contact.runner.update.done) == (Step.IDLE, 7)

    asyncio.run(story())


def test_a_withdrawal_is_known_once_the_installer_has_it(contact: Contact) -> None:
    runner, client, calls = contact.runner, contact.client, contact.machine.calls
    handed = contact.machine.installer.withdrawals
    withdrawal = directive(8, withdraws=7)

    async def story() -> None:
        client.directive = directive()
        await contact.sync.sync()
        client.directive = withdrawal
        calls.before["withdraw"] = [Hindered("unreachable", "it is away"), Declined("signature", "who is that?")]
        for _ in range(2):
            await contact.sync.sync()
            assert (handed, runner.known, runner.update.step) == ([], 7, Step.IDLE), "the server sends it again"
        await contact.sync.sync()
        assert (handed, runner.known) == ([(withdrawal, "key set")], 8)
        await contact.sync.sync()
        assert client.asked[-1]["directive"] == 8 and len(handed) == 1

    asyncio.run(story())


def test_a_withdrawal_that_comes_just_before_the_switch_is_handed_over_then(contact: Contact) -> None:
    contact.client.directive = directive(8, withdraws=7)
    assert asyncio.run(contact.sync.withdrawn(7))
    assert len(contact.machine.installer.withdrawals) == 1
    contact.client.directive = directive(10, withdraws=9)
    contact.machine.calls.before["withdraw"] = [Hindered("unreachable", "it is away")]
    assert asyncio.run(contact.sync.withdrawn(9)), "what the installer does not know yet is withdrawn all the same"
    assert contact.runner.known == 8


def test_the_kind_of_machine_goes_to_a_server_that_knows_the_member(contact: Contact) -> None:
    client, names = contact.client, contact.negotiation.names

    def asked(refused: RefusalCode | None = None) -> list[str | None]:
        client.refusal = None if refused is None else Refusal(
            agent_id=AGENT, request_id="0" * 32, issued_at=NOW, code=refused, text="what is that?"
        )  # fmt: skip
        client.asked.clear()
        asyncio.run(contact.sync.sync())
        return [fields.get("hardware") for fields in client.asked]

    assert asked() == [None]
    names.add(HARDWARE)
    assert asked() == ["till-x86"]
    assert asked(RefusalCode.RATE_LIMITED) == ["till-x86"] and names, "only a form that it does not know is sent without it"
    assert asked(RefusalCode.BAD_REQUEST) == ["till-x86", None] and not names
    names.add(HARDWARE)
    contact.hardware = None
    assert asked() == [None]


def test_a_newer_directive_takes_the_former_ones_place_before_the_switch_too(contact: Contact) -> None:
    contact.client.directive = directive(9)
    assert asyncio.run(contact.sync.withdrawn(7))


def test_a_server_that_is_away_changes_nothing(contact: Contact) -> None:
    contact.client.away = True
    asyncio.run(contact.sync.sync())
    assert contact.runner.update.step is Step.IDLE


def test_the_end_of_an_update_brings_about_a_contact(tmp_path: Path) -> None:
    pair = prepare(tmp_path, 600, 6000)(tmp_path / "pair")
    try:
        assert pair.contact() is None
        cycle = pair.agent.cycle
        assert UPDATES in cycle.capabilities and cycle.wait_s() > OUTCOME_PAUSE_S
        for wanted in (True, False):
            cycle._ota = SimpleNamespace(wanted=wanted)  # type: ignore[assignment]
            assert (0 < cycle.wait_s() <= OUTCOME_PAUSE_S) is wanted
    finally:
        pair.close()
