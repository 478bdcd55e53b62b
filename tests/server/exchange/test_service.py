"""The exchange with agents, in process: every refusal, every act, each request acts once."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any

import msgspec
import pytest
from joserfc import jws
from joserfc.jwk import ECKey
from sqlalchemy.exc import OperationalError

from contracts.contact.capabilities import AnnounceCapabilities, AnnounceReply
from contracts.contact.configuration import ConfigurationReply, ConfigurationRequest
from contracts.contact.licensesync import LicenseChange, Standing, SyncLicenses, SyncReply
from contracts.contact.seats import LeaseReply, LeaseSeats, SeatLease
from contracts.contact.updates import UpdatesReply, UpdatesRequest
from contracts.contact.usage import MeterTotal, ReportUsage, UsageReply
from contracts.exchange import (
    REPLY_TYPE,
    Cause,
    ConfirmReply,
    ConfirmRotation,
    RefusalCode,
    Refused,
    ReissueLicenses,
    ReissueReply,
    RenewCertificate,
    RenewReply,
    Reply,
    RevocationList,
    RevocationReply,
    RotateReply,
    RotateSecret,
    SecretStatus,
    StatusReply,
    ValidateLicense,
    ValidateReply,
    purpose_of,
)
from contracts.jose import b64decode
from contracts.trust import encode_trust, parse_trust
from server.base.refused import RequestRefused
from server.exchange import service
from server.exchange.capabilities import CAPABILITIES
from server.exchange.challenges import CHALLENGE_LIFETIME_S
from server.exchange.content import CONTACT_S, KINDS
from server.exchange.kept_replies import Kept
from server.exchange.service import Exchange
from server.exchange.service import Stores as AllStores
from server.keys.jose import new_signing_key, public_jwk
from server.licensing.licenses.deliveries import Page
from server.licensing.licenses.leases import Leased
from server.licensing.licenses.usage import Taken
from server.ota.reports import Given
from server.web.peers import Peer
from server.web.responses import STATUS_OF
from tests.server.agentside import AgentSide, answered
from tests.support.waiting import READY_S

NOW = 1_800_000_000
PRINT = "ab" * 32
PEER = Peer(PRINT, 0, NOW + 86_400, "1", "pos-1", 1)
CHECK = "A" * 22
STATUS = {"current_secret_version": 1, "key_check": CHECK, "highest_version": 1, "serial": 1}
TOTAL = MeterTotal(license="a", meter="sales", epoch="0f" * 16, total=5)
FIELDS: dict[type[Any], dict[str, Any]] = {
    RotateSecret: {**STATUS, "cause": Cause.DUE},
    ConfirmRotation: {"secret_version": 2, "key_check": CHECK},
    SecretStatus: {**STATUS, "audit_seq": 7, "audit_head": "0" * 64},
    ReissueLicenses: {"licenses": ("a", "b"), "secret_version": 2},
    ValidateLicense: {"token": "x.y.z"},
    RevocationList: {},
    RenewCertificate: {"csr": "csr"},
    AnnounceCapabilities: {"capabilities": ("b", "a")},
    ReportUsage: {"totals": (TOTAL,)},
    SyncLicenses: {"license_number": 7, "secret_version": 2, "after": ""},
    LeaseSeats: {"secret_version": 2, "wanted": ("a",), "held": ("a#1",), "released": ()},
    UpdatesRequest: {"running": (), "directive": 3, "outcomes": ()},
    ConfigurationRequest: {"known": 3, "result": None},
}
CHANGE = LicenseChange(license="a", standing=Standing.SUSPENDED, expires=NOW + 5)

SEAT = SeatLease(license="a", seat="a#2", lease_until=NOW + 5, grace_until=NOW + 9, token="h..n.c.t")


@dataclass
class Row:
    agent_id: str
    status: str
    identity_key: dict[str, str]

    @property
    def shown_status(self) -> str:
        return self.status


@dataclass
class Stores:
    """Storage in memory: the exchange is tested here, not the database."""

    rows: dict[str, Row]
    key: dict[str, str] = field(default_factory=new_signing_key)
    answers: dict[tuple[str, str], Kept] = field(default_factory=dict)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    used: list[tuple[Any, ...]] = field(default_factory=list)
    fails: Exception | None = None
    hold: threading.Event | None = None
    lost: dict[str, Row] = field(default_factory=dict)
    alone: threading.Lock = field(default_factory=threading.Lock)

    # Database

    @contextmanager
    def read(self) -> Iterator["Stores"]:
        yield self

    @contextmanager
    def write(self) -> Iterator["Stores"]:
        with self.alone:
            yield self

    def keep_read(self, _session: object) -> None:
        """There is no database that would forget what was read."""

    def begin_nested(self) -> AbstractContextManager[None]:
        return nullcontext()

    # Clones

    def observe(self, _session: object, _agent_id: str, _report: object, _now: int) -> None:
        assert self.alone.locked()

    # Agents and lost records

    def by_certificate(self, _session: object, fingerprint: str, now: int) -> Row | None:
        return self.rows.get(fingerprint)

    def lock(self, _session: object, agent_id: str) -> Row | None:
        assert self.alone.locked()
        return next((row for row in (*self.rows.values(), *self.lost.values()) if row.agent_id == agent_id), None)

    def is_lost_agent(self, _session: object, peer: Peer) -> bool:
        return True

    def skip_serial(self, _session: object, peer: Peer, now: int) -> None:
        self.calls.append(("missed", peer.fingerprint, now))

    def is_new_dispute(self, peer: Peer) -> bool:
        return True

    def record_dispute(self, _session: object, peer: Peer, now: int) -> None:
        self.calls.append(("disputed", peer.fingerprint, now))

    def find(self, _session: object, *key: Any) -> Any:
        """A lost record by its peer, or a kept reply by agent and request."""
        return self.answers.get(key) if len(key) == 2 else self.lost.get(key[0].fingerprint)

    def require_room(self, _session: object, agent_id: str, now: int) -> None:
        assert self.alone.locked()

    def adopt(self, _session: object, peer: Peer, now: int) -> None:
        self._call("adopt", peer.fingerprint, now)
        self.rows[peer.fingerprint] = self.lost.pop(peer.fingerprint)

    def keep(
        self, _session: object, agent_id: str, request_id: str, digest: str, reply: str | None, now: int, kept_s: int
    ) -> None:
        assert (agent_id, request_id) not in self.answers
        self.answers[agent_id, request_id] = Kept(digest, reply)

    # Keyring

    def sign_reply(self, reply: Reply) -> str:
        header = {"alg": "ES256", "typ": REPLY_TYPE, "kid": public_jwk(self.key)["kid"]}
        text: str = jws.serialize_compact(
            header, msgspec.json.encode(reply), ECKey.import_key({**self.key}), algorithms=["ES256"]
        )
        return text

    def challenge_key(self) -> bytes:
        return bytes(32)

    def key_set_number(self) -> int:
        return 3

    def _call(self, *call: Any) -> None:
        self.calls.append(call)
        if self.hold is not None:
            self.hold.wait(READY_S)
        if self.fails is not None:
            raise self.fails

    def note_use(self, _session: object, agent_id: str, fingerprint: str, now: int) -> None:
        self.used.append((agent_id, fingerprint, now))

    def saw(self, _session: object, agent_id: str, now: int, seq: int | None, head: str | None) -> int | None:
        self._call("saw", agent_id, now, seq, head)
        return seq

    def asked_as_before(self, _session: object, agent_id: str, now: int) -> None:
        self._call("asked_as_before", agent_id, now)

    def number(self, _session: object, agent_id: str) -> int:
        self._call("number", agent_id)
        return 9

    def take(self, _session: object, agent_id: str, totals: Any, challenged_at: int, now: int) -> Taken:
        self._call("take", agent_id, totals, challenged_at, now)
        return Taken(("0f" * 16,), ())

    def page(self, _session: object, agent_id: str, known: int, version: int, after: str, now: int) -> Page:
        self._call("page", agent_id, known, version, after, now)
        return Page(9, (CHANGE,), None)

    def lease(self, _session: object, agent_id: str, asked: LeaseSeats, now: int) -> Leased:
        self._call("lease", agent_id, asked.wanted, asked.held, now)
        return Leased((), (SEAT,), (), ("a#1",))

    def contact(self, _session: object, agent_id: str, asked: ConfigurationRequest, now: int) -> str:
        self._call("contact", agent_id, asked.known, now)
        return "c.o.n"

    def note(self, _session: object, agent_id: str, asked: UpdatesRequest, now: int, _records: object) -> tuple[str, ...]:
        self._call("note", agent_id, asked.directive, now)
        return ("changed",)

    def after_reports(self, _session: object, agent_id: str, changed: tuple[str, ...], now: int, _records: object) -> None:
        self._call("after_reports", agent_id, changed, now)

    def before_directive(self, _session: object, agent_id: str, now: int, _records: object) -> None:
        self._call("before_directive", agent_id, now)

    def answer(self, _session: object, agent_id: str, asked: UpdatesRequest, now: int, _records: object) -> Given:
        self._call("answer", agent_id, asked.directive, now)
        return Given("d.i.r", (2,), True)

    def note_contact(self, _session: object, agent_id: str, running: object, _hardware: object, now: int) -> None:
        self._call("note_contact", agent_id, running, now)

    def announced(self, _session: object, agent_id: str, names: tuple[str, ...], now: int) -> None:
        self._call("announced", agent_id, names, now)

    def count(self, _session: object, agent_id: str) -> None:
        self._call("count", agent_id)

    def renew(self, _session: object, agent_id: str, csr_pem: str, now: int) -> tuple[str, ...]:
        self._call("renew", agent_id, csr_pem, now)
        return ("leaf", "ca")

    def rotate(self, _session: object, agent_id: str, current: int, key_check: str | None, highest: int, now: int) -> str:
        self._call("rotate", agent_id, current, key_check, highest, now)
        return "a.b.c"

    def confirm(self, _session: object, agent_id: str, version: int, key_check: str, now: int) -> None:
        self._call("confirm", agent_id, version, key_check, now)

    def status(
        self, _session: object, agent_id: str, current: int, key_check: str | None, highest: int, now: int
    ) -> tuple[int, bool]:
        self._call("status", agent_id, current, key_check, highest, now)
        return 2, True

    def reissue(self, _session: object, agent_id: str, ids: Any, version: int, now: int) -> tuple[list[str], list[str]]:
        self._call("reissue", agent_id, tuple(ids), version, now)
        return ["t.o.k"], ["b"]

    def revocations(self, _session: object, agent_id: str, now: int) -> tuple[int, int, list[str]]:
        self._call("revocations", agent_id, now)
        return 5, now + 60, ["a"]

    def validate(self, _session: object, agent_id: str, token: str, now: int) -> tuple[bool, str, str | None, int | None]:
        self._call("validate", agent_id, token, now)
        return True, "ok", "a", now + 5


class World:
    def __init__(self) -> None:
        self.agent = AgentSide("pos-1")
        self.stores = Stores({PRINT: Row("pos-1", "active", self.agent.public)})
        public = public_jwk(self.stores.key)
        self.agent.trust = parse_trust(encode_trust("issuer", [public], [public]))
        parts = dict.fromkeys((each.name for each in fields(AllStores)), self.stores)
        self.exchange = Exchange(self.stores, self.stores, AllStores(**parts), os.urandom)  # type: ignore[arg-type]

    def challenge(self, now: int = NOW) -> str:
        return self.exchange.challenge(PRINT, now)

    def request(self, kind: type[Any] = RotateSecret, **changes: Any) -> Any:
        return self.agent.request(kind, changes.pop("challenge", self.challenge()), **{**FIELDS[kind], **changes})

    def ask(self, request: Any, now: int = NOW) -> tuple[int, str]:
        return answered(self.exchange, purpose_of(request), PEER, self.agent.sign(request), now)

    def refused(self, answer: tuple[int, str], request_id: str, code: RefusalCode) -> Refused:
        with pytest.raises(Refused) as caught:
            self.agent.verify(answer[1], RotateReply, request_id)
        assert caught.value.refusal.code is code
        assert answer[0] == STATUS_OF[code]
        return caught.value


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(service, "rollouts", made.stores)
    monkeypatch.setattr(service, "note_rotation", made.stores.count)
    return made


def erred(answer: tuple[int, str], status: int, code: RefusalCode) -> None:
    content = json.loads(answer[1])
    assert answer[0] == status and content.keys() == {"error"} and content["error"]["code"] == code.value


REPLIES = [
    (RotateSecret, RotateReply, [("rotate", "pos-1", 1, CHECK, 1, NOW)], {"delivery": "a.b.c"}),
    (ConfirmRotation, ConfirmReply, [("confirm", "pos-1", 2, CHECK, NOW)], {"secret_version": 2}),
    (
        SecretStatus,
        StatusReply,
        [
            ("status", "pos-1", 1, CHECK, 1, NOW),
            ("revocations", "pos-1", NOW),
            ("asked_as_before", "pos-1", NOW),
            ("saw", "pos-1", NOW, 7, "0" * 64),
        ],
        {"secret_version": 2, "rotate_now": True, "revocations": 5, "key_set": 3, "audit_seq": 7},
    ),
    (ReissueLicenses, ReissueReply, [("reissue", "pos-1", ("a", "b"), 2, NOW)], {"tokens": ("t.o.k",), "missing": ("b",)}),
    (
        ValidateLicense,
        ValidateReply,
        [("validate", "pos-1", "x.y.z", NOW)],
        {"valid": True, "reason": "ok", "license_id": "a", "expires_at": NOW + 5},
    ),
    (
        RevocationList,
        RevocationReply,
        [("revocations", "pos-1", NOW)],
        {"number": 5, "next_update": NOW + 60, "revoked": ("a",)},
    ),
    (
        RenewCertificate,
        RenewReply,
        [("count", "pos-1"), ("renew", "pos-1", "csr", NOW)],
        {"certificates": ("leaf", "ca")},
    ),
    (
        SyncLicenses,
        SyncReply,
        [("page", "pos-1", 7, 2, "", NOW)],
        {"license_number": 9, "changes": (CHANGE,), "after": None},
    ),
    (
        LeaseSeats,
        LeaseReply,
        [("lease", "pos-1", ("a",), ("a#1",), NOW)],
        {"floating": (), "seats": (SEAT,), "refused": (), "ended": ("a#1",)},
    ),
    (
        UpdatesRequest,
        UpdatesReply,
        [
            ("note_contact", "pos-1", (), NOW),
            ("note", "pos-1", 3, NOW),
            ("after_reports", "pos-1", ("changed",), NOW),
            ("before_directive", "pos-1", NOW),
            ("answer", "pos-1", 3, NOW),
        ],
        {"directive": "d.i.r", "acknowledged": (2,), "paused": True},
    ),
    (ConfigurationRequest, ConfigurationReply, [("contact", "pos-1", 3, NOW)], {"document": "c.o.n"}),
    (ReportUsage, UsageReply, [("take", "pos-1", (TOTAL,), NOW, NOW)], {"behind": ("0f" * 16,), "refused": ()}),
    (AnnounceCapabilities, AnnounceReply, [("announced", "pos-1", ("b", "a"), NOW)], {"capabilities": CAPABILITIES}),
]


@pytest.mark.parametrize(("kind", "reply_kind", "calls", "content"), REPLIES, ids=lambda value: getattr(value, "__name__", ""))
def test_every_request_has_its_act_and_its_reply(
    world: World, kind: Any, reply_kind: Any, calls: list[Any], content: dict[str, Any]
) -> None:
    request = world.request(kind)
    status, body = world.ask(request)
    assert status == 200
    reply = world.agent.verify(body, reply_kind, request.request_id)
    assert world.stores.calls == calls
    assert {name: getattr(reply, name) for name in content} == content
    assert reply.issued_at == NOW


def test_every_purpose_is_covered() -> None:
    assert {purpose_of(kind) for kind, *_ in REPLIES} == set(KINDS)


def test_agents_are_told_to_come_at_different_times(world: World) -> None:
    times = set()
    for _ in range(40):
        request = world.request(SecretStatus)
        times.add(world.agent.verify(world.ask(request)[1], StatusReply, request.request_id).next_contact_s)
    assert len(times) > 10 and CONTACT_S * 0.9 <= min(times) <= max(times) <= CONTACT_S * 1.1


# Who asks


@pytest.mark.parametrize("peer", [None, Peer("cd" * 32, 0, NOW + 86_400, "2", "pos-1", 1)])
def test_without_a_known_certificate_nobody_is_an_agent(world: World, peer: Peer | None) -> None:
    text = world.agent.sign(world.request())
    erred(answered(world.exchange, "rotate-secret", peer, text, NOW), 401, RefusalCode.UNKNOWN_AGENT)
    assert world.stores.calls == ([] if peer is None else [("missed", peer.fingerprint, NOW)])


def test_a_revoked_agent_is_told_so(world: World) -> None:
    world.stores.rows[PRINT].status = "revoked"
    request = world.request()
    world.refused(world.ask(request), request.request_id, RefusalCode.AGENT_REVOKED)
    assert not world.stores.calls


def test_an_agent_without_a_registered_identity_key_signs_nothing(world: World) -> None:
    world.stores.rows[PRINT].identity_key = {}
    text = world.agent.sign(world.request())
    erred(answered(world.exchange, "rotate-secret", PEER, text, NOW), 403, RefusalCode.BAD_SIGNATURE)


def test_a_revoked_agent_gets_no_kept_answer_either(world: World) -> None:
    request = world.request()
    text = world.agent.sign(request)
    assert answered(world.exchange, "rotate-secret", PEER, text, NOW)[0] == 200
    world.stores.rows[PRINT].status = "revoked"
    world.refused(answered(world.exchange, "rotate-secret", PEER, text, NOW), request.request_id, RefusalCode.AGENT_REVOKED)


# Whether it is theirs


def test_another_key_signs_nothing(world: World) -> None:
    text = world.agent.sign(world.request(), key=new_signing_key())
    erred(answered(world.exchange, "rotate-secret", PEER, text, NOW), 403, RefusalCode.BAD_SIGNATURE)


def test_an_agent_does_not_sign_for_another(world: World) -> None:
    other = AgentSide("pos-2")
    text = other.sign(other.request(RotateSecret, world.challenge(), **FIELDS[RotateSecret]))
    erred(answered(world.exchange, "rotate-secret", PEER, text, NOW), 403, RefusalCode.BAD_SIGNATURE)
    request = world.request(agent_id="pos-2")
    world.refused(world.ask(request), request.request_id, RefusalCode.BAD_REQUEST)


@pytest.mark.parametrize(
    "header",
    [
        {"typ": "JWT"},
        {"typ": None},
        {"alg": None},
        {"kid": None},
        {"cty": "x"},
        {"jku": "https://x"},
        {"crit": ["b64"], "b64": True},
    ],
    ids=str,
)
def test_the_header_is_exactly_what_it_must_be(world: World, header: dict[str, Any]) -> None:
    content = world.request()
    protected = {"alg": "ES256", "typ": "agent-request+jwt", "kid": "pos-1", **header}
    protected = {name: value for name, value in protected.items() if value is not None}
    text = _raw_jws(protected, msgspec.json.encode(content), world.agent.key)
    erred(answered(world.exchange, "rotate-secret", PEER, text, NOW), 400, RefusalCode.BAD_REQUEST)


@pytest.mark.parametrize("alg", ["none", "HS256", "ES384"])
def test_the_algorithm_is_not_the_senders_choice(world: World, alg: str) -> None:
    protected = {"alg": alg, "typ": "agent-request+jwt", "kid": "pos-1"}
    text = _raw_jws(protected, msgspec.json.encode(world.request()), world.agent.key)
    erred(answered(world.exchange, "rotate-secret", PEER, text, NOW), 400, RefusalCode.BAD_REQUEST)


@pytest.mark.parametrize(
    "text", ["", "x", "a.b.c", "..", "a.b.c.d", "é.b.c", "[].[].[]", "e30.W10.AA", "A" * 70_000, "e30.e30."]
)
def test_rubbish_is_told_to_be_rubbish(world: World, text: str) -> None:
    erred(answered(world.exchange, "rotate-secret", PEER, text, NOW), 400, RefusalCode.BAD_REQUEST)


@pytest.mark.parametrize("request_id", [None, 7, "", "A" * 32, "0" * 31])
def test_without_a_request_id_there_is_nothing_to_sign(world: World, request_id: object) -> None:
    content = msgspec.to_builtins(world.request()) | {"request_id": request_id}
    erred(answered(world.exchange, "rotate-secret", PEER, world.agent.sign(content), NOW), 400, RefusalCode.BAD_REQUEST)


# What it says


@pytest.mark.parametrize("version", [0, 2, "1", None, True, [1]])
def test_another_version_is_refused_by_name(world: World, version: object) -> None:
    content = msgspec.to_builtins(world.request()) | {"v": version, "new_in_this_version": 1}
    answer = answered(world.exchange, "rotate-secret", PEER, world.agent.sign(content), NOW)
    world.refused(answer, content["request_id"], RefusalCode.UNSUPPORTED_VERSION)


@pytest.mark.parametrize(
    "change", [{"extra": 1}, {"serial": -1}, {"serial": "1"}, {"cause": "fun"}, {"key_check": "short"}], ids=str
)
def test_what_is_not_of_our_form_is_refused(world: World, change: dict[str, Any]) -> None:
    content = msgspec.to_builtins(world.request()) | change
    answer = answered(world.exchange, "rotate-secret", PEER, world.agent.sign(content), NOW)
    world.refused(answer, content["request_id"], RefusalCode.BAD_REQUEST)
    assert not world.stores.calls


def test_a_request_is_for_one_endpoint(world: World) -> None:
    request = world.request()
    answer = answered(world.exchange, "secret-status", PEER, world.agent.sign(request), NOW)
    world.refused(answer, request.request_id, RefusalCode.BAD_REQUEST)


def test_a_status_has_the_number_of_license_changes_only_if_its_request_has_one(world: World) -> None:
    plain, extended = world.request(SecretStatus), world.request(SecretStatus, license_number=3)
    said = [json.loads(b64decode(json.loads(world.ask(each)[1])["reply"].split(".")[1])) for each in (plain, extended)]
    assert "license_number" not in said[0] and said[1]["license_number"] == 9
    assert ("number", "pos-1") in world.stores.calls


@pytest.mark.parametrize("kind", [SecretStatus, SyncLicenses])
def test_nobody_gets_a_signed_refusal_by_carrying_a_new_form_to_another_endpoint(world: World, kind: Any) -> None:
    # An agent takes a signed bad_request for the word of a server that does not know the form.
    request = world.request(kind, license_number=3)
    answer = answered(world.exchange, "revocation-list", PEER, world.agent.sign(request), NOW)
    erred(answer, 400, RefusalCode.BAD_REQUEST)
    assert not world.stores.calls and not world.stores.answers
    assert world.ask(request)[0] == 200  # the request id is not used up


def test_a_stale_challenge_is_refused_and_a_fresh_one_helps(world: World) -> None:
    request = world.request()
    later = NOW + CHALLENGE_LIFETIME_S
    world.refused(world.ask(request, later), request.request_id, RefusalCode.STALE_CHALLENGE)
    again = world.request(request_id=request.request_id, challenge=world.challenge(later))
    assert world.ask(again, later)[0] == 200


def test_a_challenge_of_another_certificate_is_stale(world: World) -> None:
    request = world.request(challenge=world.exchange.challenge("cd" * 32, NOW))
    world.refused(world.ask(request), request.request_id, RefusalCode.STALE_CHALLENGE)


# Once


def test_the_same_request_gets_the_same_reply_and_acts_once(world: World) -> None:
    text = world.agent.sign(world.request())
    first = answered(world.exchange, "rotate-secret", PEER, text, NOW)
    assert answered(world.exchange, "rotate-secret", PEER, text, NOW + 3600) == first
    assert len(world.stores.calls) == 1


def test_a_refusal_is_given_again_too(world: World) -> None:
    world.stores.fails = RequestRefused(RefusalCode.TOO_MANY_VERSIONS, "too many", 77)
    request = world.request()
    text = world.agent.sign(request)
    first = answered(world.exchange, "rotate-secret", PEER, text, NOW)
    assert world.refused(first, request.request_id, RefusalCode.TOO_MANY_VERSIONS).refusal.retry_after_s == 77
    world.stores.fails = None
    assert answered(world.exchange, "rotate-secret", PEER, text, NOW) == first
    assert len(world.stores.calls) == 1


def test_what_passes_by_itself_is_not_kept(world: World) -> None:
    world.stores.fails = RequestRefused(RefusalCode.UNAVAILABLE, "later", 5)
    text = world.agent.sign(world.request())
    answer = world.exchange.handle("rotate-secret", PEER, text, NOW)
    assert (answer.status, answer.code, answer.retry_after_s) == (503, RefusalCode.UNAVAILABLE, 5)
    world.stores.fails = None
    assert answered(world.exchange, "rotate-secret", PEER, text, NOW)[0] == 200


def test_a_request_id_is_for_one_request(world: World) -> None:
    first = world.request()
    assert world.ask(first)[0] == 200
    for other in (
        world.request(request_id=first.request_id, serial=2),
        world.request(SecretStatus, request_id=first.request_id),
    ):
        world.refused(world.ask(other), first.request_id, RefusalCode.REPLAYED)
    assert len(world.stores.calls) == 1


def test_twice_at_once_acts_once(world: World) -> None:
    world.stores.hold = threading.Event()
    text = world.agent.sign(world.request())
    answers: list[tuple[int, str]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(answered(world.exchange, "rotate-secret", PEER, text, NOW)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    world.stores.hold.set()
    for thread in threads:
        thread.join(READY_S)
    assert len(answers) == 4 and len(set(answers)) == 1 and len(world.stores.calls) == 1


def test_a_database_that_is_away_is_nobodys_fault(world: World) -> None:
    world.stores.fails = OperationalError("SELECT secret", {}, Exception("away"))
    answer = world.exchange.handle("rotate-secret", PEER, world.agent.sign(world.request()), NOW)
    assert answer.status == 503 and answer.retry_after_s and answer.reply is None
    assert "SELECT" not in answer.body()


@pytest.mark.parametrize("code", list(RefusalCode))
def test_every_refusal_has_a_status(world: World, code: RefusalCode) -> None:
    world.stores.fails = RequestRefused(code, "x" * 600)
    request = world.request()
    world.refused(world.ask(request), request.request_id, code)


def _raw_jws(header: dict[str, Any], payload: bytes, key: dict[str, str]) -> str:
    """A JWS with any header, signed as ES256 would be."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    from contracts.jose import b64encode

    signed = f"{b64encode(json.dumps(header).encode())}.{b64encode(payload)}"
    private: Any = ECKey.import_key({**key}).private_key
    r, s = decode_dss_signature(private.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{b64encode(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"
