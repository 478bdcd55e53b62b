"""One contract for the fake and for a real agent on a stand: what a till sees of both is the same."""

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from license_agent_client import (
    AgentRefused,
    AgentUnavailable,
    LicenseReason,
    LocalProtocolError,
    Reason,
    Verdict,
    WaitingUpdate,
)
from license_agent_client.bounds import (
    DEFAULT_CONNECTIONS_PER_UID,
    DEFAULT_RATE_PER_S,
    LICENSES_PER_PAGE,
    MAX_FRAME_BYTES,
    MAX_TOKEN_CHARS,
    MIN_CONNECTS_PER_S,
)
from license_agent_client.clientwire import FAKE_FIELD
from license_agent_client.errors import ErrorCode
from license_agent_client.frames import FrameDecoder, encode_frame
from license_agent_client.replies import refresh_digest
from license_agent_client.testing import AgentInTest, FakeLicenseAgent, StandLicenseAgent
from license_agent_client.testing.base import MACHINE_REASONS

from tests.support.waiting import READY_S, wait_until

pytestmark = pytest.mark.system
STATES = {
    Reason.MALFORMED: None,
    Reason.UNKNOWN_SECRET: None,
    Reason.WRONG_AUDIENCE: None,
    Reason.SECRET_INVALIDATED: "INVALIDATED",
    Reason.DEGRADED_EXPIRED: "INVALIDATED",
}
OPENED = frozenset({Reason.OK, Reason.EXPIRED, Reason.NOT_YET_VALID, Reason.REVOKED, Reason.REVOCATIONS_STALE})


@pytest.fixture(scope="module", params=[FakeLicenseAgent, StandLicenseAgent], ids=["fake", "stand"])
def shared(request: pytest.FixtureRequest) -> Iterator[AgentInTest]:
    with request.param() as agent:
        yield agent


@pytest.fixture
def agent(shared: AgentInTest) -> AgentInTest:
    shared.reset()
    return shared


class Raw:
    """A connection without the client library."""

    def __init__(self, agent: AgentInTest) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(READY_S)
        # Slower than the agent closes the connections of a process that makes too many (half of MIN_CONNECTS_PER_S).
        time.sleep(3 / MIN_CONNECTS_PER_S)
        self.sock.connect(agent.socket)
        self._decoder = FrameDecoder()
        self._bodies: list[bytes] = []

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, op: str, request_id: int = 1, /, **fields: Any) -> None:
        # The agent may have said why and closed before: its reply can be read all the same.
        with contextlib.suppress(BrokenPipeError):
            self.sock.sendall(encode_frame(msgpack.packb({"v": 1, "id": request_id, "op": op} | fields)))

    def reply(self) -> dict[str, Any] | None:
        """The next reply; None at the end."""
        while not self._bodies:
            try:
                data = self.sock.recv(65_536)
            except ConnectionResetError:
                return None  # it was closed before it had read all
            if not data:
                return None
            self._bodies += self._decoder.receive_data(data)
        reply: dict[str, Any] = msgpack.unpackb(self._bodies.pop(0))
        return reply

    def code(self) -> ErrorCode | None:
        reply = self.reply()
        assert reply is not None
        return ErrorCode(reply["error"]["code"]) if "error" in reply else None


@pytest.mark.parametrize("reason", Reason, ids=str)
def test_each_reason_is_given_by_every_way_to_ask(agent: AgentInTest, reason: Reason, tmp_path: Path) -> None:
    token = agent.token(reason, features=("sales", "fuel"), metadata={"shop": "7"})
    file = tmp_path / "token"
    file.write_text(token)
    with agent.client(deadline=READY_S) as client:
        verdict = client.validate(token)
        by_file = client.validate_file(file)

    async def ask() -> Verdict:
        async with agent.async_client(deadline=READY_S) as client:
            return await client.validate(token)

    # A contact in between may bring the agent a newer token.
    for each in (by_file, asyncio.run(ask())):
        assert replace(each, refreshed=False) == replace(verdict, refreshed=False)
    valid = reason is Reason.OK
    assert (verdict.valid, verdict.reason) == (valid, reason)
    assert (verdict.features, verdict.metadata) == ((("sales", "fuel"), {"shop": "7"}) if valid else ((), {}))
    assert verdict.secret_state == STATES.get(reason, "ACTIVE")
    if reason is not Reason.DEGRADED_EXPIRED:  # the agent says it of a token that it has opened before
        assert (verdict.expires_at is not None) == (reason in OPENED)
    assert verdict.reissue_due == (verdict.secret_state == "INVALIDATED")
    assert not verdict.clock_suspect and verdict.refresh_by is None
    with agent.client(deadline=READY_S) as client:
        assert client.validate(agent.issue()).reason is (reason if reason in MACHINE_REASONS else Reason.OK)
        agent.reset()
        assert client.validate(agent.token()).valid


def test_an_unknown_reason_is_refused(agent: AgentInTest) -> None:
    with pytest.raises(ValueError, match="'bored' is not a valid Reason"):
        agent.token("bored")


def test_a_nonce_is_used_once_whatever_the_verdict_and_the_connection(agent: AgentInTest) -> None:
    nonce = os.urandom(16)
    with Raw(agent) as raw:
        raw.send("validate_license", 1, token="garbage", nonce=nonce)
        reply = raw.reply()
        assert reply is not None and (reply["id"], reply["nonce"], reply["reason"]) == (1, nonce, "malformed")
        raw.send("validate_license", 2, token="garbage", nonce=nonce)
        assert raw.code() is ErrorCode.NONCE_REPLAYED
    with Raw(agent) as raw:
        raw.send("validate_license", 1, token="other", nonce=nonce)
        assert raw.code() is ErrorCode.NONCE_REPLAYED
        # A request that breaks a rule uses none.
        fresh = os.urandom(16)
        raw.send("validate_license", 2, token="", nonce=fresh)
        assert raw.code() is ErrorCode.BAD_REQUEST
        raw.send("validate_license", 3, token="other", nonce=fresh)
        assert raw.code() is None


def test_replies_come_in_the_order_of_pipelined_requests(agent: AgentInTest) -> None:
    with Raw(agent) as raw:
        ids = [5, 3, 9, 0, 2**53 - 1]
        for number in ids:
            raw.send("ping", number)
        assert [(raw.reply() or {})["id"] for _ in ids] == ids


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"op": "status"}, ErrorCode.UNKNOWN_OP),
        ({"v": 2}, ErrorCode.UNSUPPORTED_VERSION),
        ({"surplus": 1}, ErrorCode.BAD_REQUEST),
        ({"op": "validate_license", "token": "t"}, ErrorCode.BAD_REQUEST),
        ({"op": "validate_license", "token": "t", "nonce": bytes(15)}, ErrorCode.BAD_REQUEST),
        ({"op": "validate_license", "token": b"t", "nonce": bytes(16)}, ErrorCode.BAD_REQUEST),
        ({"op": "refresh_license", "token": "t" * (MAX_TOKEN_CHARS + 1)}, ErrorCode.BAD_REQUEST),
    ],
)
def test_a_broken_rule_is_answered_and_the_connection_kept(agent: AgentInTest, fields: dict[str, Any], code: ErrorCode) -> None:
    with Raw(agent) as raw:
        raw.send("ping", 8, **fields)
        reply = raw.reply()
        assert reply is not None and (reply["v"], reply["id"], reply["error"]["code"]) == (1, 8, code)
        assert 0 < len(reply["error"]["text"]) <= 500
        raw.send("ping", 9)
        assert raw.code() is None


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (encode_frame(b"\x90"), ErrorCode.BAD_MESSAGE),
        (encode_frame(msgpack.packb({"v": msgpack.ExtType(1, b"")})), ErrorCode.BAD_MESSAGE),
        (bytes(4), ErrorCode.FRAME_TOO_LARGE),
        ((MAX_FRAME_BYTES + 1).to_bytes(4, "big"), ErrorCode.FRAME_TOO_LARGE),
    ],
)
def test_a_broken_stream_ends_after_the_replies_before_it(agent: AgentInTest, frame: bytes, code: ErrorCode) -> None:
    with Raw(agent) as raw:
        raw.sock.sendall(encode_frame(msgpack.packb({"v": 1, "id": 4, "op": "ping"})) + frame)
        assert (raw.reply() or {})["id"] == 4
        reply = raw.reply()
        assert reply is not None and (reply["id"], reply["error"]["code"]) == (None, code)
        assert raw.reply() is None


def test_a_frame_may_come_in_pieces(agent: AgentInTest) -> None:
    with Raw(agent) as raw:
        for byte in encode_frame(msgpack.packb({"v": 1, "id": 4, "op": "ping"})):
            raw.sock.sendall(bytes([byte]))
        assert (raw.reply() or {})["id"] == 4


def test_too_many_requests_are_refused_and_the_connection_kept(agent: AgentInTest) -> None:
    many = 3 * DEFAULT_RATE_PER_S
    with Raw(agent) as raw:
        sent = b"".join(encode_frame(msgpack.packb({"v": 1, "id": number, "op": "ping"})) for number in range(many))
        writer = threading.Thread(target=raw.sock.sendall, args=(sent,))
        writer.start()
        codes = [raw.code() for _ in range(many)]
        writer.join()
        assert set(codes) == {None, ErrorCode.RATE_LIMITED}

        def answers() -> bool:
            raw.send("ping", 1)
            return raw.code() is None

        wait_until(answers, "the limit does not end")
    with agent.client(deadline=READY_S) as client:
        client.ping()


def test_too_many_connections_are_refused(agent: AgentInTest) -> None:
    raws: list[Raw] = []
    try:
        refused = None
        while refused is None and len(raws) <= DEFAULT_CONNECTIONS_PER_UID:
            raws.append(Raw(agent))
            raws[-1].send("ping")
            reply = raws[-1].reply()
            refused = reply if reply is not None and "error" in reply else None
        assert len(raws) == DEFAULT_CONNECTIONS_PER_UID + 1
        assert refused is not None and (refused["id"], refused["error"]["code"]) == (None, ErrorCode.RATE_LIMITED)
        assert raws[-1].reply() is None
    finally:
        for raw in raws:
            raw.sock.close()

    def free() -> bool:
        with Raw(agent) as raw:
            raw.send("ping")
            return raw.code() is None

    wait_until(free, "closed connections still count")


def test_what_may_not_be_sent_is_not(agent: AgentInTest, tmp_path: Path) -> None:
    with agent.client(deadline=READY_S) as client:
        for token in ("", "é", "t" * (MAX_TOKEN_CHARS + 1)):
            with pytest.raises(LocalProtocolError):
                client.validate(token)
            (tmp_path / "token").write_text(token)
            assert client.validate_file(tmp_path / "token").reason is Reason.MALFORMED


def test_a_fake_says_so_and_a_real_agent_does_not(agent: AgentInTest, caplog: pytest.LogCaptureFixture) -> None:
    with Raw(agent) as raw:
        for op, fields in (("ping", {}), ("agent_info", {}), ("refresh_license", {"token": "t"}), ("bake", {})):
            raw.send(op, **fields)
            assert (FAKE_FIELD in (raw.reply() or {})) is agent.is_fake
    with agent.client(deadline=READY_S) as client:
        info = client.info()
        assert (":" in info.agent_id) is agent.is_fake and info.protocol_versions == (1,)
        client.validate("x")
    assert ("fake" in caplog.text) is agent.is_fake


def test_neither_takes_the_others_tokens(agent: AgentInTest) -> None:
    others = "fake-token.pos-001.1.000001.licenses-nothing", "eyJhbGciOiJkaXIifQ..aaaa.aaaa.aaaa"
    with FakeLicenseAgent() as fake:
        foreign = others[1] if agent.is_fake else fake.issue()
    with agent.client(deadline=READY_S) as client:
        assert client.validate(foreign).reason is Reason.MALFORMED
        assert not client.validate(others[0]).valid


def test_after_a_rotation_the_newer_token_is_handed_over(agent: AgentInTest, tmp_path: Path) -> None:
    token = agent.issue(license_id=f"refresh-{os.urandom(4).hex()}")
    file = tmp_path / "token"
    file.write_text(token)
    with agent.client(deadline=READY_S) as client:
        assert client.validate(token).valid and client.refresh(token) is None
        agent.rotate()
        old = client.validate(token)
        assert old.valid and (old.secret_state, old.refreshed, old.reissue_due) == ("GRACE", True, True)
        assert old.refresh_by is not None and old.refresh_by > client.info().time
        newer = client.refresh(token)
        assert newer is not None and client.refresh(newer) is None
        verdict = client.validate_file(file)
        assert verdict.valid and (verdict.secret_state, verdict.refreshed) == ("ACTIVE", False)
        assert file.read_text().strip() == newer
    with Raw(agent) as raw:
        raw.send("refresh_license", token=token)
        reply = raw.reply()
        assert reply is not None and (reply["token"], reply["for_token"]) == (newer, refresh_digest(token))
        assert reply["license"].startswith("refresh-")
        raw.send("refresh_license", token="unknown")
        reply = raw.reply()
        assert reply is not None and (reply["token"], reply["license"]) == (None, None)


def test_a_token_whose_secret_is_gone_leads_to_the_newer_one(agent: AgentInTest) -> None:
    version = agent.rotate()
    token = agent.issue()
    with agent.client(deadline=READY_S) as client:
        assert client.validate(token).valid
        agent.rotate()
        agent.invalidate(version)
        verdict = client.validate(token)
        assert (verdict.reason, verdict.refreshed, verdict.expires_at) == (Reason.SECRET_INVALIDATED, True, None)
        newer = client.refresh(token)
        assert newer is not None and client.validate(newer).valid
    with pytest.raises((ValueError, RuntimeError), match="no secret version 999"):
        agent.invalidate(999)


def test_a_license_is_revoked_and_another_is_not(agent: AgentInTest) -> None:
    token, other = agent.issue(), agent.issue()
    with agent.client(deadline=READY_S) as client:
        assert client.validate(token).valid
        agent.revoke(token)
        assert client.validate(token).reason is Reason.REVOKED and client.validate(other).valid
    with pytest.raises(ValueError, match="issued"):
        agent.revoke("somebody else's")


def test_a_license_expires_when_its_time_comes(agent: AgentInTest) -> None:
    token, later = agent.issue(expires_in=15), agent.issue(begins_in=15)
    with agent.client(deadline=READY_S) as client:
        assert client.validate(later).reason is Reason.NOT_YET_VALID
        agent.expire(token)
        assert client.validate(token).reason is Reason.EXPIRED
        agent.advance(15)
        assert client.validate(later).valid


def test_degraded_mode_shows_in_verdicts(agent: AgentInTest) -> None:
    token = agent.issue()
    with agent.client(deadline=READY_S) as client:
        agent.degrade()
        verdict = client.validate(token)
        assert verdict.valid and verdict.degraded and client.info().degraded
        agent.degrade(False)
        assert not client.validate(token).degraded


def test_a_stopped_agent_gives_no_answer_and_a_call_waits_for_its_start(agent: AgentInTest) -> None:
    token = agent.issue()
    with agent.client(deadline=READY_S) as client:
        client.ping()
        agent.stop()
        with agent.client(deadline=0.3) as short, pytest.raises(AgentUnavailable):
            short.validate(token)
        starter = threading.Timer(0.2, agent.start)
        starter.start()
        assert client.validate(token).valid
        starter.join()


# The licenses that the machine holds


def unique(name: str) -> str:
    """A name that no other test of a shared agent uses."""
    return f"{name}-{os.urandom(4).hex()}"


def test_a_delivered_license_answers_without_a_token(agent: AgentInTest) -> None:
    feature, license_id = unique("fuel"), unique("license")
    with agent.client(deadline=READY_S) as client:
        assert client.require(feature).reason is LicenseReason.NO_LICENSE
        token = agent.deliver(
            features=("sales", feature), metadata={"product": "forecourt", "shop": "7"}, license_id=license_id
        )
        verdict = client.require(feature)
        expected = client.validate(token)
        assert client.require(feature, "forecourt") == verdict
        assert client.require(feature, "bakery").reason is LicenseReason.NO_LICENSE
    assert (verdict.valid, verdict.reason, verdict.license_id) == (True, LicenseReason.OK, license_id)
    assert (verdict.product, verdict.expires_at, verdict.secret_state) == ("forecourt", expected.expires_at, "ACTIVE")
    assert (verdict.features, verdict.metadata) == (expected.features, expected.metadata)

    async def ask() -> None:
        async with agent.async_client(deadline=READY_S) as client:
            assert await client.require(feature) == verdict
            assert license_id in {held.license_id for held in await client.licenses()}

    asyncio.run(ask())


def test_the_license_that_serves_best_answers(agent: AgentInTest) -> None:
    feature = unique("f")
    ids = [unique(f"license-{number}") for number in range(4)]
    agent.deliver(features=(feature,), license_id=ids[0], begins_in=86_400, expires_in=90 * 86_400)
    with agent.client(deadline=READY_S) as client:
        early = client.require(feature)
        assert (early.valid, early.reason, early.license_id) == (False, LicenseReason.NOT_YET_VALID, ids[0])
        assert early.features == () and early.metadata == {}
        agent.deliver(features=(feature,), license_id=ids[1], expires_in=10 * 86_400)
        assert client.require(feature).license_id == ids[1]
        longest = agent.deliver(features=(feature,), license_id=ids[2], expires_in=20 * 86_400)
        agent.deliver(features=(feature,), license_id=ids[3], expires_in=15 * 86_400)
        assert client.require(feature).license_id == ids[2]
        agent.revoke(longest)
        assert client.require(feature).license_id == ids[3]
        assert {held.license_id: held.reason for held in client.licenses() if held.license_id in ids} == {
            ids[0]: LicenseReason.NOT_YET_VALID,
            ids[1]: LicenseReason.OK,
            ids[2]: LicenseReason.REVOKED,
            ids[3]: LicenseReason.OK,
        }


def test_a_license_of_the_machine_ends_and_is_revoked_as_a_token_is(agent: AgentInTest) -> None:
    ending, revoked = unique("ending"), unique("revoked")
    token = agent.deliver(features=(ending,), expires_in=3)
    other = agent.deliver(features=(revoked,))
    with agent.client(deadline=READY_S) as client:
        assert client.require(revoked).valid
        agent.revoke(other)
        assert client.require(revoked).reason is LicenseReason.REVOKED
        agent.expire(token)
        verdict = client.require(ending)
        assert (verdict.valid, verdict.reason) == (False, LicenseReason.EXPIRED)


def test_a_license_that_a_till_has_carried_is_held_after_a_rotation(agent: AgentInTest) -> None:
    feature = unique("carried")
    token = agent.issue(features=(feature,))
    delivered = unique("delivered")
    agent.deliver(features=(delivered,))
    with agent.client(deadline=READY_S) as client:
        assert client.validate(token).valid
        assert client.require(feature).reason is LicenseReason.NO_LICENSE
        assert client.require(delivered).valid
        agent.rotate()
        assert client.require(feature).valid and client.require(feature).secret_state == "ACTIVE"
        assert client.require(delivered).valid and client.require(delivered).secret_state == "ACTIVE"


def test_all_licenses_are_listed_in_order_and_with_metadata_when_asked(agent: AgentInTest) -> None:
    license_id = unique("listed")
    agent.deliver(license_id=license_id, metadata={"product": "forecourt"})
    with agent.client(deadline=READY_S) as client:
        plain, full = client.licenses(), client.licenses(metadata=True)
        info = client.info()
    assert [held.license_id for held in plain] == [held.license_id for held in full] == sorted(one.license_id for one in plain)
    (held,) = [held for held in full if held.license_id == license_id]
    assert held.metadata == {"product": "forecourt"} and held.product == "forecourt" and held.features == ("sales",)
    assert held.begins_at is not None and held.begins_at <= info.time < (held.expires_at or 0)
    assert all(held.metadata == {} for held in plain)


def test_a_nonce_of_one_operation_is_used_for_the_others(agent: AgentInTest) -> None:
    requests: list[tuple[str, dict[str, Any]]] = [
        ("validate_license", {"token": "garbage"}),
        ("require", {"feature": "x", "product": None}),
        ("licenses", {"after": "", "metadata": False}),
    ]
    with Raw(agent) as raw:
        for op, fields in requests:
            nonce = os.urandom(16)
            raw.send(op, 1, nonce=nonce, **fields)
            reply = raw.reply()
            assert reply is not None and reply["nonce"] == nonce and (FAKE_FIELD in reply) is agent.is_fake
            for other, more in requests:
                raw.send(other, 2, nonce=nonce, **more)
                assert raw.code() is ErrorCode.NONCE_REPLAYED
        raw.send("require", 3, feature="", product=None, nonce=os.urandom(16))
        assert raw.code() is ErrorCode.BAD_REQUEST
        raw.send("licenses", 3, after=None, metadata=False, nonce=os.urandom(16))
        assert raw.code() is ErrorCode.BAD_REQUEST


def test_both_say_the_same_fields(agent: AgentInTest) -> None:
    feature = unique("fields")
    agent.deliver(features=(feature,))
    with Raw(agent) as raw:
        raw.send("require", 1, feature=feature, product=None, nonce=os.urandom(16))
        reply = raw.reply() or {}
        assert set(reply) - {FAKE_FIELD} == {
            "v", "id", "nonce", "valid", "reason", "license", "product", "expires_at", "features", "metadata", "secret_state",
            "degraded", "clock_suspect",
        }  # fmt: skip
        raw.send("licenses", 2, after="", metadata=True, nonce=os.urandom(16))
        reply = raw.reply() or {}
        assert set(reply) - {FAKE_FIELD} == {"v", "id", "nonce", "licenses", "next"}
        assert set(reply["licenses"][0]) == {
            "license", "valid", "reason", "begins_at", "expires_at", "product", "features", "metadata",
        }  # fmt: skip


def test_licenses_come_in_pages(agent: AgentInTest) -> None:
    ids = sorted(unique("page") for _ in range(LICENSES_PER_PAGE + 2 if agent.is_fake else 3))
    for license_id in ids:
        agent.deliver(license_id=license_id)
    with Raw(agent) as raw:
        raw.send("licenses", 1, after=ids[0], metadata=False, nonce=os.urandom(16))
        reply = raw.reply() or {}
        listed = [held["license"] for held in reply["licenses"]]
        assert listed[: len(ids) - 1] == ids[1 : LICENSES_PER_PAGE + 1]
        assert reply["next"] == (listed[-1] if agent.is_fake else None)


def test_no_update_waits_on_a_machine_without_updates(agent: AgentInTest) -> None:
    with agent.client(deadline=READY_S) as client:
        assert client.ota_consent() == client.ota_consent("after_shift") == WaitingUpdate(pending=False)


def test_usage_is_counted_once_for_a_license_that_allows_the_meter(agent: AgentInTest) -> None:
    meter = f"m-{os.urandom(4).hex()}"
    with agent.client(deadline=READY_S) as client:
        none = client.count_usage(meter)
        assert (none.counted, none.reason, none.license_id) == (False, LicenseReason.NO_LICENSE, None)
        license_id = f"license-{meter}"
        agent.deliver(features=(f"meter:{meter}",), license_id=license_id)
        first = client.count_usage(meter, 3, count_id=none.count_id)
        assert (first.counted, first.repeated, first.reason, first.license_id) == (True, False, LicenseReason.OK, license_id)
        agent.stop()
        agent.start()
        again = client.count_usage(meter, 3, count_id=first.count_id)
        assert (again.counted, again.repeated, again.license_id) == (True, True, license_id)
        with pytest.raises(AgentRefused) as caught:
            client.count_usage(meter, 4, count_id=first.count_id)
        assert caught.value.code is ErrorCode.REFUSED

    async def ask() -> None:
        async with agent.async_client(deadline=READY_S) as client:
            assert (await client.count_usage(meter, 3, count_id=first.count_id)).repeated
            assert not (await client.count_usage(meter)).repeated

    asyncio.run(ask())
