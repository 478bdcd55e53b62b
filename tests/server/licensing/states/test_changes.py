"""What an agent is told of its licenses: numbers, pages, tokens, what is suspended or taken away; on both databases."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from sqlalchemy import func, select

from contracts.contact.licensesync import MAX_CHANGES_PER_REPLY, LicenseChange, Standing, SyncLicenses, SyncReply
from contracts.exchange import RefusalCode, Refused, SecretStatus, StatusReply
from contracts.jose import b64decode
from contracts.trust import parse_trust
from server import wiring
from server.base.errors import RegistryError
from server.licensing.licenses.licenses import Order
from server.licensing.states import changes
from server.registry.database import skip_ahead
from server.registry.models.core import Agent, FormerLicense, KeptReply, License
from server.registry.upkeep.housekeeping import Housekeeping
from server.web.peers import Peer, peer_of
from tests.server.agentside import AgentSide
from tests.server.atonce import at_once
from tests.server.devices import NOW, Device, der
from tests.server.exchange.test_checkins import private_jwk
from tests.support.licensing import suspend, transfer
from tests.support.serverside import ServerSide

LATER = NOW + 300 * 86_400
OTHER = "pos-000002"


@dataclass
class Till:
    """An agent's side of the exchange."""

    server: ServerSide
    agent: AgentSide
    peer: Peer
    version: int
    now: int = NOW
    number: int = 0
    standing: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.exchange = wiring.wire_exchange(self.server.server)

    def ask(self, kind: Any, reply: Any, **fields: Any) -> Any:
        request = self.agent.request(kind, str(self.exchange.admit(self.peer, self.now)), **fields)
        purpose = str(request.__struct_config__.tag)
        answer = self.exchange.handle(purpose, self.peer, self.agent.sign(request), self.now)
        return self.agent.verify(answer.body(), reply, request.request_id)

    def status(self, **more: Any) -> StatusReply:
        check = self.server.secrets.listed(self.agent.agent_id)[-1].key_check
        held = {"current_secret_version": self.version, "key_check": check, "highest_version": self.version, "serial": 1}
        found: StatusReply = self.ask(SecretStatus, StatusReply, **held, **more)
        return found

    def page(self, after: str = "", number: int | None = None, version: int | None = None) -> SyncReply:
        fields = {"license_number": self.number if number is None else number, "after": after}
        found: SyncReply = self.ask(SyncLicenses, SyncReply, secret_version=version or self.version, **fields)
        return found

    def sync(self) -> list[SyncReply]:
        """All pages, and what they say."""
        pages = [self.page()]
        while pages[-1].after is not None:
            pages.append(self.page(pages[-1].after))
        for change in (change for page in pages for change in page.changes):
            self.standing[change.license] = change.standing.value
            if change.token is not None:
                self.tokens[change.license] = change.token
        self.number = pages[0].license_number
        return pages


def make_till(server: ServerSide, number: int) -> Till:
    made = Device(number).come(server)
    agent = AgentSide(made.agent_id, parse_trust(server.keys.trust()))
    agent.key = private_jwk(Device(number))
    server.secrets.rotate_by_hand(made.agent_id, NOW)
    peer = peer_of(der(made.certificates[0]))
    return Till(server, agent, peer, server.secrets.listed(made.agent_id)[-1].version, max(NOW, peer.not_before))


@pytest.fixture
def till(server: ServerSide) -> Iterator[Till]:
    yield make_till(server, 1)


def issue(till: Till, jti: str, **changes_: Any) -> None:
    order = Order(
        **{"jti": jti, "subject": "shop", "features": ("till",), "metadata": {}, "not_before": NOW, "expires": LATER} | changes_
    )
    till.server.licenses.issue(till.agent.agent_id, order, till.now)


def said(replies: list[SyncReply]) -> list[tuple[str, str]]:
    return [(change.license, change.standing.value) for reply in replies for change in reply.changes]


def test_an_issued_license_is_told_once(till: Till) -> None:
    issue(till, "one")
    assert till.status(license_number=0).license_number not in (0, None)
    assert said(till.sync()) == [("one", "active")]
    assert till.status(license_number=till.number).license_number == till.number
    assert said(till.sync()) == []
    till.now += 1
    issue(till, "two")
    assert said(till.sync()) == [("two", "active")]


def test_a_delivered_token_is_one_that_the_server_calls_valid(till: Till) -> None:
    issue(till, "one")
    till.sync()
    assert till.server.licenses.validate(till.agent.agent_id, till.tokens["one"], NOW)[:3] == (True, "ok", "one")


def test_a_suspended_license_is_told_without_a_token_and_reinstated_with_one(till: Till) -> None:
    issue(till, "one")
    till.sync()
    till.tokens.clear()
    suspend(till.server, "one", NOW)
    (reply,) = till.sync()
    assert reply.changes == (LicenseChange(license="one", standing=Standing.SUSPENDED, expires=LATER),)
    # An agent that is not told gets no new token either.
    assert till.server.licenses.reissue(till.agent.agent_id, ["one"], till.version, NOW) == ((), ("one",))
    suspend(till.server, "one", NOW, on=False)
    assert said(till.sync()) == [("one", "active")] and "one" in till.tokens


def test_a_license_that_moves_is_told_to_both_agents(till: Till) -> None:
    other = make_till(till.server, 2)
    issue(till, "one")
    till.sync()
    transfer(till.server, "one", OTHER, NOW)
    assert said(till.sync()) == [("one", "removed")] and said(other.sync()) == [("one", "active")]
    transfer(till.server, "one", till.agent.agent_id, NOW)
    # What it had before is not told as taken away any more, also not to one that asks for everything.
    assert said(till.sync()) == [("one", "active")] and said(other.sync()) == [("one", "removed")]
    till.number = 0
    assert said(till.sync()) == [("one", "active")]


def test_what_is_revoked_or_ended_is_not_told(till: Till) -> None:
    for jti in ("revoked", "ended", "good"):
        issue(till, jti, expires=NOW + 50 if jti == "ended" else LATER)
    till.server.licenses.revoke("revoked", NOW)
    transfer_to = make_till(till.server, 2).agent.agent_id
    issue(till, "gone", expires=NOW + 50)
    transfer(till.server, "gone", transfer_to, NOW)
    till.now += 60
    assert said(till.sync()) == [("good", "active")]


def test_all_of_an_agents_licenses_may_be_noted_at_once(till: Till) -> None:
    issue(till, "one")
    issue(till, "two")
    till.sync()
    with till.server.database.write() as session:
        changes.changed(session, till.agent.agent_id, NOW)
    assert said(till.sync()) == [("one", "active"), ("two", "active")]


def test_numbers_grow_with_the_time_and_within_a_second(till: Till) -> None:
    numbers = []
    for each, now in enumerate((NOW, NOW, NOW + 100, NOW + 50)):
        till.now = max(till.now, now)
        issue(till, f"l{each}")
        numbers.append(till.status(license_number=0).license_number)
    assert numbers == sorted(set(numbers))  # type: ignore[type-var]


@pytest.mark.parametrize("count", [MAX_CHANGES_PER_REPLY - 1, MAX_CHANGES_PER_REPLY, MAX_CHANGES_PER_REPLY + 1, 70])
def test_pages_name_each_license_once(till: Till, count: int) -> None:
    for number in range(count):
        issue(till, f"license-{number:03d}")
    pages = till.sync()
    assert sorted(said(pages)) == [(f"license-{number:03d}", "active") for number in range(count)]
    assert (
        all(len(page.changes) <= MAX_CHANGES_PER_REPLY for page in pages) and len(pages) <= count // MAX_CHANGES_PER_REPLY + 2
    )
    assert said(till.sync()) == []


def test_pages_of_licenses_that_were_taken_away(till: Till) -> None:
    other = make_till(till.server, 2)
    for number in range(70):
        issue(till, f"license-{number:03d}")
    till.sync()
    for number in range(70):
        transfer(till.server, f"license-{number:03d}", other.agent.agent_id, NOW)
    issue(till, "new")
    pages = till.sync()
    assert sorted(said(pages)) == [*((f"license-{number:03d}", "removed") for number in range(70)), ("new", "active")]


def test_what_changes_between_two_pages_is_told_the_next_time(till: Till) -> None:
    for number in range(40):
        issue(till, f"license-{number:03d}")
    first = till.page()
    till.now += 1
    suspend(till.server, "license-000", till.now)
    rest = till.page(first.after or "")
    assert ("license-000", "suspended") not in said([rest])
    till.number = first.license_number
    assert till.status(license_number=till.number).license_number != till.number
    assert said(till.sync()) == [("license-000", "suspended")]


@pytest.mark.parametrize("after", ["license-000", "present", "former", "x:", "\n"])
def test_a_page_begins_only_where_one_has_ended(till: Till, after: str) -> None:
    issue(till, "one")
    with pytest.raises(Refused) as caught:
        till.page(after)
    assert caught.value.refusal.code is RefusalCode.BAD_REQUEST
    # A place that somebody thinks of shows nothing but the agent's own licenses.
    assert said([till.page("present:")]) == [("one", "active")] and said([till.page("former:one")]) == []


def test_one_agent_is_told_nothing_of_anothers(till: Till) -> None:
    other = make_till(till.server, 2)
    issue(other, "theirs")
    for after in ("", "present:", "former:"):
        assert said([till.page(after)]) == []


def test_a_secret_version_that_the_server_does_not_know_is_refused(till: Till) -> None:
    issue(till, "one")
    with pytest.raises(Refused) as caught:
        till.page(version=9)
    assert caught.value.refusal.code is RefusalCode.UNKNOWN_VERSION


def test_an_agent_that_is_not_active_gets_no_token_and_is_told_later(till: Till) -> None:
    issue(till, "one")
    till.server.agents.set_status(till.agent.agent_id, "factory_only", NOW)
    assert said(till.sync()) == [] and till.number == 0
    till.server.agents.set_status(till.agent.agent_id, "active", NOW)
    assert said(till.sync()) == [("one", "active")]


def test_the_reply_is_not_kept_and_the_request_acts_again(till: Till) -> None:
    issue(till, "one")
    request = till.agent.request(
        SyncLicenses, str(till.exchange.admit(till.peer, till.now)), license_number=0, secret_version=till.version, after=""
    )
    signed = till.agent.sign(request)
    for _ in range(2):
        answer = till.exchange.handle("sync-licenses", till.peer, signed, till.now)
        assert answer.reply is not None
        content = json.loads(b64decode(answer.reply.split(".")[1]))
        assert [change["license"] for change in content["changes"]] == ["one"]
    with till.server.database.read() as session:
        assert session.get_one(KeptReply, (till.agent.agent_id, request.request_id)).sealed is None
    other = till.agent.sign(msgspec.structs.replace(request, license_number=1))
    refused = till.exchange.handle("sync-licenses", till.peer, other, till.now)
    assert refused.code is RefusalCode.REPLAYED


def test_an_agent_that_knows_a_lost_number_or_one_of_before_a_restore_is_told_everything(till: Till) -> None:
    issue(till, "one")
    till.sync()
    known = till.number
    assert said([till.page(number=known + 1000)]) == [("one", "active")]  # the registry has lost what came between
    with till.server.database.write() as session:
        changes.renumber(session, NOW + 500)
    assert till.status(license_number=known).license_number == NOW + 500
    assert said(till.sync()) == [("one", "active")] and till.number == NOW + 500
    issue(till, "two")
    assert said(till.sync()) == [("two", "active")]


def test_a_registry_of_before_0008_tells_everything_once(till: Till) -> None:
    issue(till, "one")
    with till.server.database.write() as session:
        session.get_one(License, "one").change_number = None
        session.get_one(Agent, till.agent.agent_id).license_changes = None
        skip_ahead(session, changes.BASE, 1)
    assert till.status(license_number=0).license_number == 1
    assert said(till.sync()) == [("one", "active")] and till.number == 1
    assert till.status(license_number=1).license_number == 1


def test_a_check_in_in_the_form_of_the_last_release_takes_back_what_was_announced(till: Till) -> None:
    till.server.agents.announced(till.agent.agent_id, ("announce-capabilities", "sync-licenses"), NOW)
    till.status(license_number=0)
    assert till.server.audit.tail(1)[0].outcome == "ok"
    for _ in range(3):
        assert till.status().license_number is msgspec.UNSET
    events = [record for record in till.server.audit.tail(50) if record.event == "agent.capabilities"]
    assert [record.outcome for record in events] == ["ok", "withdrawn"]


def test_notes_of_what_was_taken_away_go_with_the_licenses_end_and_with_the_agent(till: Till) -> None:
    other = make_till(till.server, 2)
    issue(till, "short", expires=NOW + 50)
    issue(till, "long")
    for jti in ("short", "long"):
        transfer(till.server, jti, OTHER, NOW)

    def kept() -> list[str]:
        with till.server.database.read() as session:
            return list(session.scalars(select(FormerLicense.jti).order_by(FormerLicense.jti)))

    housekeeping = Housekeeping(till.server.database, till.server.cipher.audit_key())
    housekeeping.run(NOW + 40, confirmed=True)
    assert kept() == ["long", "short"]
    housekeeping.run(NOW + 50, confirmed=True)
    assert kept() == ["long"]
    assert other.agent.agent_id == OTHER


def test_an_agent_that_does_not_exist_is_an_error(server: ServerSide) -> None:
    with server.database.write() as session:
        with pytest.raises(RegistryError, match="no agent 'nobody' is enrolled"):
            changes.changed(session, "nobody", NOW)
        with pytest.raises(RegistryError, match="no agent 'nobody' is enrolled"):
            changes.left(session, "nobody", "one", LATER, NOW)


def test_changes_at_once_have_numbers_of_their_own(till: Till) -> None:
    for number in range(8):
        issue(till, f"l{number}")
    till.sync()
    at_once([lambda jti=f"l{number}": suspend(till.server, jti, NOW) for number in range(8)])  # type: ignore[misc]
    with till.server.database.read() as session:
        numbers = session.scalar(select(func.count(func.distinct(License.change_number))))
    assert numbers == 8
    assert sorted(said(till.sync())) == [(f"l{number}", "suspended") for number in range(8)]
