"""Rotation on the server as a table: what the agent says it holds, and what the server then does; on both databases."""

import hashlib
import hmac
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.statetable import UnknownTransition
from contracts.delivery import verify_delivery
from contracts.exchange import RefusalCode
from contracts.jose import b64encode
from contracts.keyconfirmation import key_check
from contracts.licensetoken import parse_token
from contracts.trust import parse_trust
from server.base.errors import RegistryError
from server.base.refused import RequestRefused
from server.licensing.licenses.licenses import Order
from server.licensing.secrets.periods import backdate
from server.licensing.secrets.secret_states import ISSUING, TRANSITIONS, Event, State, step
from server.licensing.secrets.secrets import MAX_LIVE
from tests.server.devices import NOW, Device
from tests.support.serverside import ServerSide

AGENT = "pos-000001"
INTERVAL, GRACE = 86_400, 604_800
WRONG = b64encode(bytes(16))


@pytest.fixture
def server(server: ServerSide) -> ServerSide:
    """A server with one agent, which has no confirmed secret yet."""
    Device(1).come(server)
    return server


def rotate(
    server: ServerSide, current: int = 0, highest: int | None = None, check: str | None = "right", now: int = NOW
) -> int:
    """A rotation as the agent asks for it; the version that is delivered."""
    text = server.secrets.rotate(AGENT, current, right(server, current, check), current if highest is None else highest, now)
    return verify_delivery(text, AGENT, parse_trust(server.keys.trust())).version


def confirm(server: ServerSide, version: int, check: str = "right", now: int = NOW) -> None:
    refused = server.secrets.confirm(AGENT, version, right(server, version, check) or "", now)
    if refused is not None:
        raise refused


def right(server: ServerSide, version: int, check: str | None) -> str | None:
    known = {row.version: row.key_check for row in server.secrets.listed(AGENT)}
    return known.get(version, WRONG) if check == "right" else WRONG


def states(server: ServerSide) -> str:
    """All versions in short: `1G 2A`. X: diverged; I: invalidated."""
    letters = {"DIVERGED": "X"}
    return " ".join(f"{row.version}{letters.get(row.state, row.state[0])}" for row in server.secrets.listed(AGENT))


@dataclass(frozen=True)
class Say:
    """One contact: the agent asks for a rotation (what it holds, the highest it held) or confirms a version."""

    does: str
    version: int
    gets: int | RefusalCode | None
    after: str
    highest: int | None = None
    check: str = "right"
    now: int = field(default=NOW)


def ask(current: int, gets: int, after: str, highest: int | None = None, check: str = "right", now: int = NOW) -> Say:
    return Say("rotate", current, gets, after, highest, check, now)


def says_it_has(version: int, after: str, gets: RefusalCode | None = None, check: str = "right", now: int = NOW) -> Say:
    return Say("confirm", version, gets, after, None, check, now)


UNKNOWN, MISMATCH = RefusalCode.UNKNOWN_VERSION, RefusalCode.KEY_MISMATCH
STORIES: dict[str, list[Say]] = {
    "the usual course": [ask(0, 1, "1P"), says_it_has(1, "1A"), ask(1, 2, "1A 2P"), says_it_has(2, "1G 2A")],
    "replies are lost: the same version again": [ask(0, 1, "1P"), ask(0, 1, "1P"), ask(0, 1, "1P", now=NOW + 500)],
    "the confirmation is lost, the next request makes up for it": [ask(0, 1, "1P"), ask(1, 2, "1A 2P")],
    "the confirmation comes twice": [ask(0, 1, "1P"), says_it_has(1, "1A"), says_it_has(1, "1A")],
    "a late confirmation of an older version": [
        ask(0, 1, "1P"),
        says_it_has(1, "1A"),
        ask(1, 2, "1A 2P"),
        says_it_has(2, "1G 2A"),
        says_it_has(1, "1G 2A"),
    ],
    "never confirmed, and its time is over": [ask(0, 1, "1P"), ask(0, 2, "1E 2P", now=NOW + INTERVAL)],
    "given up, but the agent has it after all": [
        ask(0, 1, "1P"),
        ask(0, 2, "1E 2P", now=NOW + INTERVAL),
        ask(1, 2, "1A 2P", now=NOW + INTERVAL),
    ],
    "the agent held it once and lost it": [ask(0, 1, "1P"), ask(0, 2, "1E 2P", highest=1)],
    "restored from a backup: the agent is ahead": [ask(7, 8, "8P"), says_it_has(8, "8A"), ask(8, 9, "8A 9P")],
    "restored from a backup, amid a rotation": [ask(0, 1, "1P"), ask(7, 8, "1E 8P"), says_it_has(8, "1E 8A")],
    "restored, and the agent remembers more than it holds": [ask(3, 10, "10P", highest=9)],
    "restored: another secret under the same number": [
        ask(0, 1, "1P"),
        says_it_has(1, "1A"),
        ask(1, 2, "1X 2P", check="wrong"),
        says_it_has(2, "1X 2A"),
    ],
    "another secret under the pending number": [ask(0, 1, "1P"), ask(1, 2, "1X 2P", check="wrong")],
    "a confirmation of an unknown version": [says_it_has(3, "", UNKNOWN), ask(0, 1, "1P"), says_it_has(2, "1P", UNKNOWN)],
    "a confirmation with another secret": [
        ask(0, 1, "1P"),
        says_it_has(1, "1X", MISMATCH, check="wrong"),
        says_it_has(1, "1X", MISMATCH),
        ask(1, 2, "1X 2P"),
    ],
}


@pytest.mark.parametrize("name", STORIES)
def test_rotation(server: ServerSide, name: str) -> None:
    for number, say in enumerate(STORIES[name]):
        got: int | RefusalCode | None = None
        try:
            if say.does == "rotate":
                got = rotate(server, say.version, say.highest, say.check, say.now)
            else:
                confirm(server, say.version, say.check, say.now)
        except RequestRefused as refused:
            got = refused.code
        assert (got, states(server)) == (say.gets, say.after), number
    assert server.audit.verify(server.cipher.audit_key())[1] is None


def test_a_pending_version_is_delivered_with_the_same_secret_and_dates(server: ServerSide) -> None:
    trust = parse_trust(server.keys.trust())
    first, again = (verify_delivery(server.secrets.rotate(AGENT, 0, None, 0, now), AGENT, trust) for now in (NOW, NOW + 60))
    begin = NOW - backdate(INTERVAL, None)
    assert (first.valid_from, first.valid_until, first.grace_until) == (begin, NOW + INTERVAL, NOW + INTERVAL + GRACE)
    assert (again.valid_from, again.valid_until, again.grace_until) == (first.valid_from, first.valid_until, first.grace_until)
    assert (first.issued_at, again.issued_at) == (NOW, NOW + 60)
    assert first.encrypted.ciphertext != again.encrypted.ciphertext  # encrypted anew each time


def test_no_more_versions_than_an_agent_holds(server: ServerSide) -> None:
    for version in range(1, MAX_LIVE + 1):
        assert rotate(server, version - 1) == version
        confirm(server, version)
    with pytest.raises(RequestRefused, match="are live") as caught:
        rotate(server, MAX_LIVE, now=NOW + 1000)
    assert (caught.value.code, caught.value.retry_after_s) == (RefusalCode.TOO_MANY_VERSIONS, INTERVAL + GRACE - 1000)
    assert rotate(server, MAX_LIVE, now=NOW + INTERVAL + GRACE) == MAX_LIVE + 1


def test_licenses_are_made_with_the_newest_confirmed_version_only(server: ServerSide) -> None:
    def minted() -> int:
        return parse_token(server.licenses.issue(AGENT, Order("x", "x", (), {}, NOW, NOW + 9), NOW)).version

    with pytest.raises(RegistryError, match="no confirmed secret yet"):
        minted()
    rotate(server)
    with pytest.raises(RegistryError, match="no confirmed secret yet"):
        minted()
    confirm(server, 1)
    rotate(server, 1)
    assert minted() == 1
    confirm(server, 2)
    assert minted() == 2
    rotate(server, 2, check="wrong")  # diverged
    with pytest.raises(RegistryError, match="no confirmed secret"):
        minted()
    with pytest.raises(RequestRefused) as caught:
        server.licenses.reissue(AGENT, ["x"], 2, NOW)
    assert caught.value.code is RefusalCode.UNKNOWN_VERSION


@pytest.mark.parametrize(
    ("current", "check", "highest", "now", "due"),
    [
        (1, "right", 1, NOW, False),
        (1, "right", 1, NOW + INTERVAL - 1, False),
        (1, "right", 1, NOW + INTERVAL, True),
        (1, "wrong", 1, NOW, True),
        (2, "right", 2, NOW, True),
        (1, "right", 2, NOW, True),
        (0, "right", 0, NOW, True),
    ],
)
def test_when_an_agent_is_told_to_rotate(
    server: ServerSide, current: int, check: str, highest: int, now: int, due: bool
) -> None:
    assert server.secrets.status(AGENT, 0, None, 0, NOW) == (0, True)
    rotate(server)
    confirm(server, 1)
    assert server.secrets.status(AGENT, current, right(server, current, check), highest, now) == (1, due)


def test_an_urgent_rotation_is_demanded_until_one_is_confirmed(server: ServerSide) -> None:
    rotate(server)
    confirm(server, 1)
    server.secrets.demand(AGENT, NOW)
    for _ in range(2):
        assert server.secrets.status(AGENT, 1, right(server, 1, "right"), 1, NOW) == (1, True)
        rotate(server, 1)
    confirm(server, 2)
    assert server.secrets.status(AGENT, 2, right(server, 2, "right"), 2, NOW) == (2, False)


def test_an_invalidated_version_is_replaced_at_the_next_contact(server: ServerSide) -> None:
    rotate(server)
    confirm(server, 1)
    server.secrets.invalidate(AGENT, 1, NOW)
    assert server.secrets.status(AGENT, 1, right(server, 1, "right"), 1, NOW) == (0, True)
    assert rotate(server, 1) == 2
    assert states(server) == "1I 2P"


@pytest.mark.parametrize("version", [1, 2])
def test_a_confirmation_of_an_invalidated_version_is_refused(server: ServerSide, version: int) -> None:
    rotate(server)
    confirm(server, 1)
    rotate(server, 1)
    server.secrets.invalidate(AGENT, version, NOW)
    for check in ("right", "wrong"):
        with pytest.raises(RequestRefused) as caught:
            confirm(server, version, check=check)
        assert caught.value.code is RefusalCode.UNKNOWN_VERSION
    assert f"{version}I" in states(server)
    assert rotate(server, version, check="wrong") == (2 if version == 1 else 3)  # version 2 was pending


def test_unknown_agents_are_told(server: ServerSide) -> None:
    for act in (
        lambda: server.secrets.rotate("ghost", 0, None, 0, NOW),
        lambda: server.secrets.confirm("ghost", 1, WRONG, NOW),
        lambda: server.secrets.status("ghost", 0, None, 0, NOW),
    ):
        with pytest.raises(RequestRefused) as caught:
            act()
        assert caught.value.code is RefusalCode.UNKNOWN_AGENT


def test_the_key_check_binds_secret_agent_and_version() -> None:
    checks = {key_check(secret, agent, version) for secret in (b"a", b"b") for agent in ("x", "y") for version in (1, 11)}
    assert len(checks) == 8
    # HKDF-SHA256, RFC 5869, by hand: extract with an empty salt, expand once.
    prk = hmac.digest(bytes(32), b"s" * 32, "sha256")
    okm = hmac.new(prk, b"license-agent/key-check/pos-1/7\x01", hashlib.sha256).digest()[:16]
    assert key_check(b"s" * 32, "pos-1", 7) == b64encode(okm)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_the_table_takes_or_refuses_each_event(state: State, event: Event) -> None:
    if event in TRANSITIONS[state]:
        assert step(state, event) is TRANSITIONS[state][event]
    else:
        with pytest.raises(UnknownTransition, match=event.value):
            step(state, event)


@given(st.lists(st.sampled_from(Event), max_size=12))
def test_what_is_given_up_never_comes_back(events: list[Event]) -> None:
    state, seen = State.PENDING, [State.PENDING]
    for event in events:
        if event in TRANSITIONS[state]:
            state = step(state, event)
            seen.append(state)
    for end in (State.INVALIDATED, State.DIVERGED):
        if end in seen:
            assert state in (State.INVALIDATED, end)
            assert not set(seen[seen.index(end) :]) & set(ISSUING)
