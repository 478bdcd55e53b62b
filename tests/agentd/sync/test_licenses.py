"""Licenses that contacts bring: issued, suspended, reinstated and taken away at the server, and seen at the till.

Each step of it may be cut off, on either side; what an attacker on the way or at the disk does lifts no suspension.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from agentd.licenses import inventory as inventory_module
from agentd.sync import licenses as sync_module
from agentd.sync.cycle import FAILURES
from agentd.telemetry.views import server_view
from agentd.uplink.transport import Response
from contracts.contact.configuration import CONFIGURATION
from contracts.contact.licensesync import SYNC
from contracts.contact.seats import LEASE
from contracts.exchange import Cause, RefusalCode
from contracts.jose import b64decode
from hwsec.store import SealedStore
from ipc.answers import Reason
from server.base.refused import RequestRefused
from server.exchange.content import Reader
from server.licensing.licenses import lifecycle
from server.licensing.licenses.licenses import Order
from server.registry.models.core import Agent, KeptReply, License
from tests.agentd.test_hostile_replies import JUNK, Forger, fails_typed
from tests.support.licensing import suspend, touch
from tests.support.pair import AGENT, LICENSE, START, Pair, Stopped, prepare

LATER = START + 300 * 86_400
NEW = "license-2"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Pair]:
    return prepare(tmp_path_factory.mktemp("licenses"))


@pytest.fixture
def pair(copy: Callable[[Path], Pair], tmp_path: Path) -> Iterator[Pair]:
    made = copy(tmp_path / "pair")
    contact(made)
    yield made
    made.close()


def contact(pair: Pair) -> list[str]:
    """One contact, which succeeds; what it asked."""
    pair.clock.seconds += 1
    before = len(pair.wire.seen)
    assert pair.contact() is None
    return [each for each in pair.wire.seen[before:] if each != CONFIGURATION]  # which is asked at each contact


def issue(pair: Pair, jti: str = NEW, expires: int = LATER) -> None:
    pair.server.server_side.licenses.issue(AGENT, Order(jti, "shop", ("till",), {}, START, expires), pair.server.now)


def held(pair: Pair) -> list[str]:
    return pair.agent.validator.inventory.held()


def reason(pair: Pair, jti: str = NEW) -> Reason | None:
    """Of the newest token that the agent has of a license; None if it has none."""
    token = pair.agent.validator.inventory.newest(jti)
    return None if token is None else pair.agent.validator.validate(token, pair.clock.now()).verdict.reason


def act(pair: Pair, change: Callable[..., object], *arguments: object) -> None:
    """An act on a license, in a transaction of its own."""
    with pair.server.server_side.database.write() as session:
        change(session, *arguments, pair.server.now)


def audited(pair: Pair, event: str) -> list[dict[str, Any]]:
    asyncio.run(pair.agent.core.audit.record_durably("test.mark", "ok"))
    lines = pair.config.audit_log.read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]


def test_a_license_that_nobody_has_carried_is_here_after_a_contact(pair: Pair) -> None:
    assert held(pair) == [LICENSE]  # of before the agent could ask
    issue(pair)
    assert contact(pair) == ["secret-status", SYNC, LEASE]
    assert held(pair) == [LICENSE, NEW] and reason(pair) is Reason.OK
    assert contact(pair) == ["secret-status"]
    pair.restart_agent()
    assert held(pair) == [LICENSE, NEW] and reason(pair) is Reason.OK


def test_a_contact_without_changes_asks_for_nothing_more_also_after_a_restart(pair: Pair) -> None:
    suspend(pair.server.server_side, LICENSE, pair.server.now)
    contact(pair)
    for _ in range(3):
        assert contact(pair) == ["secret-status"]
    pair.restart_agent()
    assert contact(pair) == ["secret-status", LEASE, "announce-capabilities"]


def test_a_suspended_license_is_refused_until_it_is_reinstated(pair: Pair) -> None:
    issue(pair)
    contact(pair)
    token = pair.agent.validator.inventory.newest(NEW)
    suspend(pair.server.server_side, NEW, pair.server.now)
    contact(pair)
    assert reason(pair) is Reason.REVOKED
    ruling = pair.agent.validator.validate(token or "", pair.clock.now())
    assert ruling.suspended and ruling.audit_fields()["suspended"] is True
    pair.restart_agent()
    assert reason(pair) is Reason.REVOKED and reason(pair, LICENSE) in (None, Reason.OK)
    suspend(pair.server.server_side, NEW, pair.server.now, on=False)
    contact(pair)
    assert reason(pair) is Reason.OK and pair.valid(token)
    pair.restart_agent()
    assert reason(pair) is Reason.OK
    assert "suspended" not in pair.agent.validator.validate(token or "", pair.clock.now()).audit_fields()


def test_a_token_from_a_file_is_refused_too_while_its_license_is_suspended(pair: Pair) -> None:
    assert pair.valid()
    suspend(pair.server.server_side, LICENSE, pair.server.now)
    contact(pair)
    assert not pair.valid()
    suspend(pair.server.server_side, LICENSE, pair.server.now, on=False)
    contact(pair)
    assert pair.valid()


def test_a_license_that_is_taken_away_is_refused_and_no_longer_held(pair: Pair) -> None:
    issue(pair)
    contact(pair)
    token = pair.agent.validator.inventory.newest(NEW)
    act(pair, lifecycle.release, NEW)
    contact(pair)
    assert held(pair) == [LICENSE]
    ruling = pair.agent.validator.validate(token or "", pair.clock.now())
    assert ruling.verdict.reason is Reason.REVOKED and not ruling.suspended
    pair.restart_agent()
    assert not pair.valid(token)
    act(pair, lifecycle.assign, NEW, AGENT)  # it comes back
    contact(pair)
    assert held(pair) == [LICENSE, NEW] and pair.valid(token)


def test_a_revocation_is_for_good_whatever_is_reinstated(pair: Pair) -> None:
    suspend(pair.server.server_side, LICENSE, pair.server.now)
    contact(pair)
    pair.server.server_side.licenses.revoke(LICENSE, pair.server.now)
    contact(pair)
    # A faulty server says so all the same.
    forger = Forger(pair, SYNC, lambda content: {**content, "changes": [active]})
    active = {"license": LICENSE, "standing": "active", "expires": LATER, "token": pair.token}
    touch(pair.server.server_side, AGENT, pair.server.now)
    contact(pair)
    assert forger.changed and pair.agent.validator.withheld.suspended == {}
    assert not pair.valid()


def test_a_rotation_brings_new_tokens_of_licenses_that_nobody_has_validated(pair: Pair) -> None:
    issue(pair)
    contact(pair)
    before = pair.agent.validator.inventory.newest(NEW)
    pair.clock.seconds += 1
    assert pair.contact(Cause.FORCED) is None
    after = pair.agent.validator.inventory.newest(NEW)
    assert before is not None and after not in (None, before)
    assert pair.agent.validator.validate(after or "", pair.clock.now()).secret_version == pair.agent.ring.newest_number


def test_a_suspension_does_not_wait_for_a_rotation_that_the_server_refuses(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    suspend(pair.server.server_side, LICENSE, pair.server.now)

    def refuses(*_arguments: object) -> str:
        raise RequestRefused(RefusalCode.TOO_MANY_VERSIONS, "no", 60)

    monkeypatch.setattr(type(pair.server.exchange._stores.secrets), "rotate", refuses)
    pair.clock.seconds += 1
    assert pair.contact(Cause.FORCED) is not None
    assert not pair.valid()


def test_the_status_shows_what_the_server_said(pair: Pair) -> None:
    issue(pair)
    suspend(pair.server.server_side, LICENSE, pair.server.now)
    contact(pair)
    view = server_view(pair.agent.cycle, pair.clock.now())
    assert (view["licenses_held"], view["licenses_suspended"], view["licenses_removed"]) == (2, 1, 0)
    assert view["license_number"] == pair.agent.cycle.licenses.number > 0
    metrics = pair.agent.metrics()
    assert "license_agent_licenses_held 2.0" in metrics and "license_agent_licenses_suspended 1.0" in metrics


# Cut off in the middle


@pytest.mark.parametrize("fate", ["request_lost", "reply_lost", "replayed", "duplicated", "delayed"])
def test_whatever_happens_to_a_message_the_next_contact_makes_it_good(pair: Pair, fate: str) -> None:
    issue(pair)
    suspend(pair.server.server_side, LICENSE, pair.server.now)
    pair.wire.fate.message = (SYNC, fate)
    pair.clock.seconds += 1
    ended = pair.contact()
    assert (ended is None) == (fate == "duplicated")
    if ended is not None:
        assert isinstance(ended, FAILURES) and pair.agent.cycle.licenses.number < pair.server.now
    pair.until_settled()
    assert held(pair) == [LICENSE, NEW] and reason(pair) is Reason.OK and not pair.valid()


@pytest.mark.parametrize("where", ["before", "acted", "kept"])
def test_wherever_the_server_stops_the_next_contact_makes_it_good(pair: Pair, where: str) -> None:
    issue(pair)
    suspend(pair.server.server_side, LICENSE, pair.server.now)
    pair.wire.fate.server_stops = (SYNC, where)
    pair.clock.seconds += 1
    assert pair.contact() is not None
    pair.until_settled()
    assert held(pair) == [LICENSE, NEW] and reason(pair) is Reason.OK and not pair.valid()


@pytest.mark.parametrize("where", ["tokens kept", "inventory saved", "commit begun", "committed"])
def test_wherever_the_agent_stops_it_is_right_after_the_next_contact(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    issue(pair)
    suspend(pair.server.server_side, LICENSE, pair.server.now)
    stop_at(pair, monkeypatch, where)
    pair.clock.seconds += 1
    assert isinstance(pair.contact(), Stopped)
    monkeypatch.undo()
    # Until then: what is sealed counts, and nothing valid is lost.
    assert pair.valid() == (where != "committed")
    assert reason(pair) in (None, Reason.OK)
    pair.until_settled()
    assert held(pair) == [LICENSE, NEW] and reason(pair) is Reason.OK and not pair.valid()
    pair.restart_agent()
    assert held(pair) == [LICENSE, NEW] and not pair.valid()


def stop_at(pair: Pair, patch: pytest.MonkeyPatch, where: str) -> None:
    inventory, commit = pair.agent.validator.inventory, SealedStore.commit

    async def stops() -> None:
        raise Stopped

    async def saves_and_stops() -> None:
        await type(inventory).save(inventory)
        raise Stopped

    def stops_in_commit(self: SealedStore, contents: Any) -> int:
        if where == "committed":
            commit(self, contents)
        raise Stopped

    if where == "tokens kept":
        patch.setattr(inventory, "save", stops)
    elif where == "inventory saved":
        patch.setattr(inventory, "save", saves_and_stops)
    else:
        patch.setattr(SealedStore, "commit", stops_in_commit)


def test_an_inventory_that_is_lost_is_filled_again(pair: Pair) -> None:
    issue(pair)
    contact(pair)
    pair.agent.end()
    pair.config.inventory_file.unlink()
    pair.clock._restarted()
    pair.agent = pair._start()
    assert held(pair) == []
    contact(pair)
    assert held(pair) == [LICENSE, NEW] and reason(pair) is Reason.OK


def test_an_inventory_of_the_last_release_loses_nothing(pair: Pair) -> None:
    issue(pair)
    suspend(pair.server.server_side, LICENSE, pair.server.now)
    contact(pair)
    page = json.loads(pair.config.inventory_file.read_bytes())
    # As release 0.1.0 writes what it has read.
    page["newest"] = {jti: {name: row[name] for name in ("iat", "token", "version")} for jti, row in page["newest"].items()}
    del page["synced"]
    pair.agent.end()
    pair.config.inventory_file.write_text(json.dumps(page))
    pair.clock._restarted()
    pair.agent = pair._start()
    assert held(pair) == [] and reason(pair) is Reason.OK and not pair.valid()
    assert contact(pair)[:2] == ["secret-status", SYNC]
    assert held(pair) == [NEW]  # the other one is suspended, and was there as a token only


# Pages and bounds


def test_many_licenses_come_in_pages_and_over_several_contacts(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_module, "MAX_PAGES", 2)
    for number in range(100):
        issue(pair, f"many-{number:03d}")
    assert contact(pair).count(SYNC) == 2 and len(held(pair)) == 65
    assert contact(pair).count(SYNC) == 2
    assert len(held(pair)) == 101
    assert contact(pair) == ["secret-status"]


def test_what_changes_while_pages_come_is_brought_by_the_next_contact(pair: Pair) -> None:
    for number in range(40):
        issue(pair, f"many-{number:03d}")
    ask, done = pair.wire._ask, []

    def changes_meanwhile(name: str, text: str) -> Response:
        answer = ask(name, text)
        if name == SYNC and not done:
            done.append(pair.clock.seconds)
            pair.clock.seconds += 1
            suspend(pair.server.server_side, "many-000", pair.server.now)
        return answer

    pair.wire._ask = changes_meanwhile  # type: ignore[method-assign]
    contact(pair)
    assert reason(pair, "many-000") is Reason.OK
    contact(pair)
    assert reason(pair, "many-000") is Reason.REVOKED


def test_the_inventory_has_a_bound_and_says_what_it_did_not_keep(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory_module, "MAX_LICENSES", 3)
    for number in range(5):
        issue(pair, f"many-{number}")
    contact(pair)
    assert held(pair) == [LICENSE, "many-0", "many-1"]
    dropped = [record["license"] for record in audited(pair, "license.delivered") if record["outcome"] == "no_room"]
    assert dropped == ["many-2", "many-3", "many-4"]
    assert contact(pair) == ["secret-status"]


def test_what_has_ended_makes_room(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory_module, "MAX_LICENSES", 2)
    issue(pair, "short", expires=START + 100)
    contact(pair)
    assert held(pair) == [LICENSE, "short"]
    pair.clock.seconds += 200
    issue(pair)
    contact(pair)
    assert held(pair) == [LICENSE, NEW]


def test_a_suspension_is_forgotten_once_its_license_has_ended(pair: Pair) -> None:
    issue(pair, "short", expires=START + 1000)
    suspend(pair.server.server_side, "short", pair.server.now)
    contact(pair)
    assert pair.agent.validator.withheld.suspended == {"short": START + 1000}
    pair.clock.seconds += 2000
    issue(pair)
    contact(pair)
    contact(pair)
    assert pair.agent.validator.withheld.suspended == {}


# A server that goes back, two machines, a machine that begins anew


def test_a_registry_that_was_restored_tells_everything_and_goes_on(pair: Pair) -> None:
    side = pair.server.server_side
    pair.clock.seconds += 1000
    contact(pair)
    with side.database.read() as session:
        then = session.get_one(Agent, AGENT).license_changes
    issue(pair)
    suspend(side, LICENSE, pair.server.now)
    contact(pair)
    known = pair.agent.cycle.licenses.number
    # The backup was made before all of that.
    with side.database.write() as session:
        session.get_one(Agent, AGENT).license_changes = then
        session.delete(session.get_one(License, NEW))
        session.get_one(License, LICENSE).suspended_at = None
    assert contact(pair)[:2] == ["secret-status", SYNC]
    assert pair.agent.cycle.licenses.number < known
    # What it does not know it says nothing of: the till goes on selling. What it says counts.
    assert reason(pair) is Reason.OK and pair.valid()
    assert contact(pair) == ["secret-status"]
    pair.restart_agent()
    assert reason(pair) is Reason.OK and pair.valid()
    suspend(side, LICENSE, pair.server.now)
    contact(pair)
    assert not pair.valid()


def test_two_machines_with_one_identity_are_both_told(pair: Pair, copy: Callable[[Path], Pair], tmp_path: Path) -> None:
    second = copy(tmp_path / "second")
    try:
        own, second.wire.server, second.server = second.server, pair.server, pair.server
        second.clock.truth = pair.clock.truth
        issue(pair)
        suspend(pair.server.server_side, LICENSE, pair.server.now)
        for each in (pair, second):
            contact(each)
            contact(each)
            assert held(each)[-1] == NEW and reason(each) is Reason.OK and not each.valid()
        own.server_side.close()
    finally:
        second.agent.end()


# On the way, and at the disk


def test_a_server_that_was_set_back_is_asked_in_the_form_of_the_last_release(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspend(pair.server.server_side, LICENSE, pair.server.now)
    contact(pair)
    real = Reader.read

    def as_in_the_last_release(self: Reader, content: dict[str, Any], purpose: str, *rest: Any) -> Any:
        if "license_number" in content:
            raise RequestRefused(RefusalCode.BAD_REQUEST, "malformed request: Object contains unknown field `license_number`")
        return real(self, content, purpose, *rest)

    monkeypatch.setattr(Reader, "read", as_in_the_last_release)
    pair.server.exchange._checkins = None
    pair.wire.capabilities = Response(404, b"{}")
    assert contact(pair) == ["secret-status", "secret-status"]
    assert SYNC not in pair.agent.cycle.capabilities and not pair.valid()
    assert contact(pair) == ["secret-status"]
    pair.restart_agent()
    assert contact(pair) == ["secret-status"]
    # It is updated again: the list says so.
    monkeypatch.undo()
    pair.wire.capabilities = None
    pair.restart_agent()
    assert SYNC in contact(pair)
    assert SYNC in pair.agent.cycle.capabilities


def test_who_carries_requests_to_other_endpoints_does_not_set_the_agent_back(pair: Pair) -> None:
    suspend(pair.server.server_side, LICENSE, pair.server.now)
    ask, carried = pair.wire._ask, []

    def elsewhere(name: str, text: str) -> Response:
        """The new form goes to another endpoint, which refuses it; the one of the last release gets through."""
        if "license_number" not in json.loads(b64decode(text.split(".")[1])):
            return ask(name, text)
        carried.append(name)
        return ask("revocation-list", text)

    pair.wire._ask = elsewhere  # type: ignore[method-assign]
    for count in range(1, 4):
        pair.clock.seconds += 1000
        assert pair.contact() is not None and len(carried) == count
    assert SYNC in pair.agent.cycle.capabilities
    pair.wire._ask = ask  # type: ignore[method-assign]
    contact(pair)
    assert not pair.valid()


def test_who_drops_the_request_for_licenses_makes_the_contact_fail(pair: Pair) -> None:
    suspend(pair.server.server_side, LICENSE, pair.server.now)
    for count in range(1, 4):
        pair.wire.fate.message = (SYNC, "request_lost")
        pair.clock.seconds += 1000
        assert pair.contact() is not None
        assert pair.agent.cycle.record.failures == count


def test_who_writes_to_the_disk_does_not_hide_a_change(pair: Pair) -> None:
    side = pair.server.server_side
    for on in (True, False, True):
        pair.agent.end()
        pair.clock.seconds += 10
        suspend(side, LICENSE, pair.server.now, on=on)
        with side.database.read() as session:
            number = session.get_one(Agent, AGENT).license_changes
        page = json.loads(pair.config.inventory_file.read_bytes())
        assert page["synced"] != number
        pair.config.inventory_file.write_text(json.dumps({**page, "synced": number}))
        pair.clock._restarted()
        pair.agent = pair._start()
        contact(pair)
        assert pair.valid() != on


@pytest.mark.parametrize("member", ["license_number", "changes", "after", "unknown", "kind", "request_id"])
def test_junk_in_any_member_is_a_typed_failure(pair: Pair, member: str) -> None:
    forger = Forger(pair, SYNC, lambda content: content)
    suspend(pair.server.server_side, LICENSE, pair.server.now)
    for value in JUNK.values():
        touch(pair.server.server_side, AGENT, pair.server.now)
        forger._change = lambda content, value=value: {**content, member: value}  # type: ignore[misc]
        pair.clock.seconds += 1000
        fails_typed(pair, pair.contact())
    assert forger.changed >= len(JUNK) - 3
    forger.stop()
    pair.clock.seconds += 5000
    pair.until_settled()
    assert not pair.valid()


CHANGES: dict[str, Any] = {
    "another license": {"license": "somebody-else", "standing": "active", "expires": LATER},
    "another end": {"license": NEW, "standing": "active", "expires": LATER + 1},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_token_is_kept_as_the_license_that_it_is_only(pair: Pair, change: dict[str, Any]) -> None:
    issue(pair)

    def swap(content: dict[str, Any]) -> dict[str, Any]:
        return {**content, "changes": [{**each, **change} for each in content["changes"]]}

    forger = Forger(pair, SYNC, swap)
    contact(pair)
    forger.stop()
    assert held(pair) == [LICENSE] and pair.agent.validator.inventory.newest("somebody-else") is None
    refused = [record for record in audited(pair, "license.delivered") if record["outcome"] == "refused"]
    assert len(refused) == 1 and "of another license, or has another end" in refused[0]["text"]


@pytest.mark.parametrize("token", ["a.b.c.d.e", "x" * 100, ""])
def test_what_is_no_token_is_not_kept(pair: Pair, token: str) -> None:
    issue(pair)

    def broken(content: dict[str, Any]) -> dict[str, Any]:
        return {**content, "changes": [{**each, "token": token} for each in content["changes"]]}

    forger = Forger(pair, SYNC, broken)
    pair.clock.seconds += 1
    ended = pair.contact()
    assert (ended is None) == bool(token)
    forger.stop()
    assert held(pair) == [LICENSE]


def test_pages_that_never_end_end(pair: Pair) -> None:
    issue(pair)
    forger = Forger(pair, SYNC, lambda content: {**content, "after": "present:again"})
    pair.clock.seconds += 1
    assert pair.contact() is not None and pair.wire.seen.count(SYNC) <= sync_module.MAX_PAGES
    count = [0]

    def further(content: dict[str, Any]) -> dict[str, Any]:
        count[0] += 1
        return {**content, "after": f"present:{count[0]:06d}"}

    forger._change = further
    pair.clock.seconds += 1000
    assert pair.contact() is None and count[0] == sync_module.MAX_PAGES


def test_the_server_keeps_no_tokens_of_replies(pair: Pair) -> None:
    issue(pair)
    contact(pair)
    with pair.server.server_side.database.read() as session:
        sizes = [len(row.sealed or b"") for row in session.scalars(select(KeptReply))]
    assert max(sizes) < 4096
