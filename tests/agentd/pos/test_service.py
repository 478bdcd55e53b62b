"""Each request on the POS socket is answered in its turn; a stream that cannot go on ends in a typed error."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Coroutine
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentd.audit.coalesced import CoalescedEvents
from agentd.audit.log import AuditLog
from agentd.base.clock.clock import Clock
from agentd.base.config.config import AuditConfig, PosConfig
from agentd.pos.service import PosService
from agentd.sockets.connection import Connection, Hub
from agentd.sockets.refusal import RefusingService
from audittrail.chain import Chain
from ipc.bounds import IDLE_TIMEOUT_S, MAX_CONNECTIONS, MAX_UNSENT_BYTES, PARTIAL_FRAME_TIMEOUT_S, UNSENT_TIMEOUT_S
from ipc.errors import ErrorCode
from ipc.frames import FrameDecoder, encode_frame
from ipc.peer import OVERFLOW_ID, Peer, peer_of
from tests.agentd.audit.test_log import FakeFile
from tests.agentd.world import T0, World, core_of, meta, token
from tests.support.waiting import READY_S

ME = os.geteuid()


class Till:
    """The daemon's POS side in this loop, and sockets to it."""

    def __init__(self, directory: Path, config: PosConfig, service: Any = None) -> None:
        self.mono, self.file = 1000.0, FakeFile()
        clock = Clock(lambda: float(T0 + 100), lambda: self.mono)
        self.world = World(meta())
        self.repeats = CoalescedEvents(directory / "repeats")
        self.hub = Hub(lambda: self.mono)
        self.audit = AuditLog(self.file, Chain(), self.repeats, clock, AuditConfig(), self.hub.schedule)  # type: ignore[arg-type]
        self.hub.log = self.audit
        core = core_of(clock, self.audit, self.world.vault)
        self.counters = core.counters
        self.service = service or PosService(config, core, self.world.validator)
        self.clients: list[socket.socket] = []
        self.connections: list[Connection] = []

    async def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.clients.append(ours)
        connection = Connection(self.hub, self.service, peer_of(theirs))
        self.connections.append(connection)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, theirs)
        return ours

    async def send(self, sock: socket.socket, *messages: dict[str, Any]) -> None:
        await self.send_bytes(sock, b"".join(encode_frame(msgpack.packb(message)) for message in messages))

    async def send_bytes(self, sock: socket.socket, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await asyncio.get_running_loop().sock_sendall(sock, data)

    async def receive(self, sock: socket.socket, count: int) -> list[dict[str, Any]]:
        """So many replies; fewer if the connection is closed before."""
        decoder, found = FrameDecoder(), []
        async with asyncio.timeout(READY_S):
            while len(found) < count:
                try:
                    data = await asyncio.get_running_loop().sock_recv(sock, 65_536)
                except ConnectionResetError:
                    break
                if not data:
                    break
                found += [msgpack.unpackb(body) for body in decoder.receive_data(data)]
        return found

    async def to_the_end(self, sock: socket.socket) -> list[dict[str, Any]]:
        return await self.receive(sock, 10**9)

    async def close(self) -> None:
        self.hub.close_all()
        for sock in self.clients:
            sock.close()
        for _time in range(4):
            await asyncio.sleep(0)
        self.repeats.close()
        self.world.vault.close()


def run(directory: Path, work: Callable[[Till], Coroutine[Any, Any, None]], *, service: Any = None, **config: Any) -> Till:
    async def main() -> Till:
        till = Till(directory, PosConfig(**{"allowed_uids": frozenset({ME}), **config}), service)
        try:
            await work(till)
        finally:
            await till.close()
        return till

    return asyncio.run(main())


def validate(number: int = 1, text: str | None = None, nonce: int | None = None) -> dict[str, Any]:
    used = (number if nonce is None else nonce).to_bytes(16, "big")
    return {"v": 1, "id": number, "op": "validate_license", "token": text or GOOD, "nonce": used}


def ping(number: int = 1) -> dict[str, Any]:
    return {"v": 1, "id": number, "op": "ping"}


GOOD = token()


def codes(replies: list[dict[str, Any]]) -> list[int]:
    return [reply["error"]["code"] for reply in replies]


def test_a_validation_is_answered_and_logged_before_its_reply(tmp_path: Path) -> None:
    async def work(till: Till) -> None:
        sock = await till.connect()
        await till.send(sock, validate(7))
        (reply,) = await till.receive(sock, 1)
        assert len(till.file.lines) == 1
        assert (reply["id"], reply["nonce"], reply["valid"], reply["reason"]) == (7, (7).to_bytes(16, "big"), True, "ok")
        assert (reply["features"], reply["metadata"]) == (["till", "scale"], {"shop": "Bürgerstraße"})
        assert GOOD.encode() not in till.file.lines[0]

    till = run(tmp_path, work)
    assert (till.counters.validations, till.counters.validations_failed) == (1, 0)


def test_a_malformed_token_uses_its_nonce_and_a_bad_request_does_not(tmp_path: Path) -> None:
    async def work(till: Till) -> None:
        sock = await till.connect()
        await till.send(sock, {**validate(1, nonce=5), "more": 1}, validate(2, "bad", nonce=5), validate(3, nonce=5))
        refused, malformed, repeated = await till.receive(sock, 3)
        assert refused["error"]["code"] == ErrorCode.BAD_REQUEST
        assert malformed["reason"] == "malformed"
        assert repeated["error"]["code"] == ErrorCode.NONCE_REPLAYED

    run(tmp_path, work)


def test_pipelined_requests_are_answered_in_their_order(tmp_path: Path) -> None:
    async def work(till: Till) -> None:
        sock = await till.connect()
        requests = [
            validate(1),
            ping(2),
            validate(3, "bad"),
            {"v": 1, "id": 4, "op": "agent_info"},
            {"v": 1, "id": 5, "op": "nonsense"},
            {"v": 1, "id": 6, "op": "refresh_license", "token": GOOD},
            {"v": 9, "id": 7, "op": "ping"},
            {"v": 1, "id": 8, "op": "ping", "more": 1},
            ping(9),
        ]
        await till.send(sock, *requests)
        replies = await till.receive(sock, 9)
        assert [reply["id"] for reply in replies] == list(range(1, 10))
        assert [reply.get("error", {}).get("code") for reply in replies] == [None] * 4 + [5, None, 4, 6, None]
        assert replies[2]["reason"] == "malformed"
        assert (replies[3]["agent_id"], replies[3]["protocol_versions"], replies[3]["time"]) == ("pos-001", [1], T0 + 100)
        assert replies[5] == {"v": 1, "id": 6, "token": None, "license": None, "for_token": sha256(GOOD.encode()).digest()}

    assert run(tmp_path, work).counters.refused_requests == 3


def test_the_reply_says_for_which_token_and_license_the_newer_token_is(tmp_path: Path) -> None:
    async def work(till: Till) -> None:
        newer = token(iat=T0 + 50)
        till.world.validator.import_token(newer, T0 + 100)
        sock = await till.connect()
        await till.send(sock, {"v": 1, "id": 6, "op": "refresh_license", "token": GOOD})
        (reply,) = await till.receive(sock, 1)
        for_token = sha256(GOOD.encode()).digest()
        assert reply == {"v": 1, "id": 6, "token": newer, "license": "license-1", "for_token": for_token}

    run(tmp_path, work)


def test_a_repeated_nonce_is_refused_on_any_connection(tmp_path: Path) -> None:
    async def work(till: Till) -> None:
        for _time in range(2):
            sock = await till.connect()
            await till.send(sock, validate(1, nonce=5), validate(2, nonce=5))
            replies = await till.receive(sock, 2)
            assert replies[1]["error"]["code"] == ErrorCode.NONCE_REPLAYED
        assert replies[0]["error"]["code"] == ErrorCode.NONCE_REPLAYED

    till = run(tmp_path, work)
    assert till.counters.validations == 1
    assert sum(b'"license.replayed"' in line for line in till.file.lines) == 3


def test_more_than_the_rate_is_told_to_wait(tmp_path: Path) -> None:
    async def work(till: Till) -> None:
        sock = await till.connect()
        await till.send(sock, *[ping(number) for number in range(5)])
        replies = await till.receive(sock, 5)
        assert ["error" in reply for reply in replies] == [False] * 3 + [True] * 2
        assert set(codes(replies[3:])) == {ErrorCode.RATE_LIMITED}
        till.mono += 1
        await till.send(sock, ping(9))
        assert await till.receive(sock, 1) == [{"v": 1, "id": 9}]

    run(tmp_path, work, rate_per_s=3)


def test_too_many_nonces_are_told_to_wait(tmp_path: Path) -> None:
    async def work(till: Till) -> None:
        sock = await till.connect()
        await till.send(sock, *[validate(number) for number in range(3)])
        replies = await till.receive(sock, 3)
        assert codes(replies[2:]) == [ErrorCode.RATE_LIMITED]

    run(tmp_path, work, nonces_per_uid=2)


def test_a_user_has_so_many_connections(tmp_path: Path) -> None:
    async def work(till: Till) -> None:
        first, second, third = [await till.connect() for _time in range(3)]
        assert codes(await till.to_the_end(third)) == [ErrorCode.RATE_LIMITED]
        first.close()
        while len(till.hub.connections) > 1:
            await asyncio.sleep(0)
        fourth = await till.connect()
        await till.send(fourth, ping())
        assert len(await till.receive(fourth, 1)) == 1
        await till.send(second, ping())
        assert len(await till.receive(second, 1)) == 1
        assert till.hub.per_uid == {("pos", ME): 2}

    till = run(tmp_path, work, connections_per_uid=2)
    assert till.hub.per_uid == {}
    assert till.hub.connections == set()
    assert MAX_CONNECTIONS == 1024


def test_who_is_not_on_the_list_is_refused_counted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work(till: Till) -> None:
        sock = await till.connect()
        await till.send(sock, validate())
        assert codes(await till.to_the_end(sock)) == [ErrorCode.FORBIDDEN]

    till = run(tmp_path, work, allowed_uids=frozenset({ME + 1}))
    assert (till.counters.unauthorized, till.counters.validations) == (1, 0)
    assert b'"access.denied"' in till.file.lines[0]
    assert "ALERT unauthorized access" in caplog.text


@pytest.mark.parametrize(
    ("peer", "admitted"),
    [
        (Peer(1, 9, 0), True),
        (Peer(9, 2, 0), True),
        (Peer(9, 9, 0), False),
        (Peer(2, 1, 0), False),
        (Peer(OVERFLOW_ID, 2, 0), False),
        (Peer(1, OVERFLOW_ID, 0), False),
        (Peer(-1, -1, 0), False),
    ],
)
def test_uid_or_primary_gid_admits(tmp_path: Path, peer: Peer, admitted: bool) -> None:
    async def work(till: Till) -> None:
        assert till.service.admits(peer) is admitted

    run(tmp_path, work, allowed_uids=frozenset({1}), allowed_gids=frozenset({2}))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (bytes(4), ErrorCode.FRAME_TOO_LARGE),
        (b"\xff\xff\xff\xff", ErrorCode.FRAME_TOO_LARGE),
        (encode_frame(b"\xc1"), ErrorCode.BAD_MESSAGE),
        (encode_frame(b"\x90"), ErrorCode.BAD_MESSAGE),
    ],
)
def test_a_stream_that_cannot_go_on_ends_after_what_came_before(tmp_path: Path, data: bytes, code: ErrorCode) -> None:
    async def work(till: Till) -> None:
        sock = await till.connect()
        await till.send_bytes(sock, encode_frame(msgpack.packb(ping(1))) + data + encode_frame(msgpack.packb(ping(2))))
        replies = await till.to_the_end(sock)
        assert replies[0] == {"v": 1, "id": 1}
        assert codes(replies[1:]) == [code]

    assert run(tmp_path, work).counters.refused_requests == 1


def test_a_frame_that_is_left_unfinished_times_out(tmp_path: Path) -> None:
    async def work(till: Till) -> None:
        sock = await till.connect()
        await till.send_bytes(sock, b"\0\0\0\x10half")
        while till.connections[0]._partial_since is None:
            await asyncio.sleep(0)
        till.mono += PARTIAL_FRAME_TIMEOUT_S
        till.hub.sweep()
        assert not till.connections[0]._closing
        till.mono += 0.1
        till.hub.sweep()
        assert codes(await till.to_the_end(sock)) == [ErrorCode.TIMED_OUT]

    run(tmp_path, work)


def test_a_frame_that_drips_times_out_all_the_same(tmp_path: Path) -> None:
    async def work(till: Till) -> None:
        sock = await till.connect()
        connection = till.connections[0]
        for byte in b"\0\0\0\x10ab":
            connection.data_received(bytes([byte]))
            till.mono += 1
            till.hub.sweep()
        assert codes(await till.to_the_end(sock)) == [ErrorCode.TIMED_OUT]

    run(tmp_path, work)


def test_an_idle_connection_times_out(tmp_path: Path) -> None:
    async def work(till: Till) -> None:
        sock = await till.connect()
        till.mono += IDLE_TIMEOUT_S
        till.hub.sweep()
        await till.send(sock, ping())
        assert len(await till.receive(sock, 1)) == 1
        till.mono += IDLE_TIMEOUT_S + 0.1
        till.hub.sweep()
        assert codes(await till.to_the_end(sock)) == [ErrorCode.TIMED_OUT]

    run(tmp_path, work)


def test_a_peer_who_takes_no_replies_is_not_read_from_and_in_the_end_cut_off(tmp_path: Path) -> None:
    async def work(till: Till) -> None:
        slow, quick = await till.connect(), await till.connect()
        connection = till.connections[0]
        info = encode_frame(msgpack.packb({"v": 1, "id": 1, "op": "agent_info"})) * 500
        sent = 0
        while connection._stuck_since is None:
            with contextlib.suppress(BlockingIOError):
                sent += slow.send(info)
            await asyncio.sleep(0)
        assert not connection._transport.is_reading()
        assert connection._transport.get_write_buffer_size() < 4 * MAX_UNSENT_BYTES
        await till.send(quick, ping())
        assert len(await till.receive(quick, 1)) == 1
        till.mono += UNSENT_TIMEOUT_S + 1
        till.hub.sweep()
        for _time in range(3):
            await asyncio.sleep(0)
        assert connection not in till.hub.connections

    run(tmp_path, work, rate_per_s=10_000_000)


def test_a_slow_peer_who_catches_up_is_read_from_again(tmp_path: Path) -> None:
    async def work(till: Till) -> None:
        sock = await till.connect()
        connection = till.connections[0]
        connection.pause_writing()
        assert not connection._transport.is_reading()
        connection.resume_writing()
        await till.send(sock, ping())
        assert len(await till.receive(sock, 1)) == 1

    run(tmp_path, work)


def test_a_peer_who_is_told_to_go_and_takes_nothing_is_told_once_and_then_cut_off(tmp_path: Path) -> None:
    async def work(till: Till) -> None:
        await till.connect()
        connection = till.connections[0]
        # Replies wait below the level at which reading is paused, and the next frame stays unfinished.
        connection._transport.write(bytes(MAX_UNSENT_BYTES))
        connection.data_received(b"\0\0\0\x10half")
        assert connection._stuck_since is None
        for _second in range(2 * UNSENT_TIMEOUT_S):
            till.mono += 1
            till.hub.sweep()
            await asyncio.sleep(0)
        assert till.counters.refused_requests == 1
        assert connection not in till.hub.connections

    run(tmp_path, work)


def test_a_fault_of_ours_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(till: Till) -> None:
        def broken(*_arguments: object) -> None:
            raise RuntimeError("inner detail")

        monkeypatch.setattr(till.world.validator, "look", broken)
        sock = await till.connect()
        await till.send(sock, validate(3), ping(4))
        replies = await till.receive(sock, 2)
        assert (replies[0]["id"], replies[0]["error"]["code"]) == (3, ErrorCode.INTERNAL)
        assert "inner" not in replies[0]["error"]["text"]
        assert replies[1] == {"v": 1, "id": 4}

    run(tmp_path, work)


@pytest.mark.parametrize("text", ["é", "x", "....", "€" * 9])
@pytest.mark.parametrize("op", ["validate_license", "refresh_license"])
def test_any_text_as_a_token_is_an_answer(tmp_path: Path, op: str, text: str) -> None:
    async def work(till: Till) -> None:
        sock = await till.connect()
        await till.send(sock, {**validate(1, text), "op": op} if op[0] == "v" else {"v": 1, "id": 1, "op": op, "token": text})
        (reply,) = await till.receive(sock, 1)
        assert "error" not in reply

    run(tmp_path, work)


streams = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.binary(min_size=1, max_size=40).map(encode_frame),
        st.sampled_from([ping(), validate(), {"v": 2}]).map(lambda message: encode_frame(msgpack.packb(message))),
    ),
    max_size=5,
).map(b"".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(streams)
def test_each_stream_ends_in_replies_or_one_typed_error(tmp_path: Path, data: bytes) -> None:
    async def work(till: Till) -> None:
        sock = await till.connect()
        await till.send_bytes(sock, data)
        sock.shutdown(socket.SHUT_WR)
        replies = await till.to_the_end(sock)
        assert all("error" in reply or reply["id"] is not None for reply in replies)
        assert all(reply["error"]["code"] in list(ErrorCode) for reply in replies if "error" in reply)

    run(tmp_path, work)


def test_a_daemon_that_cannot_work_says_so_with_the_requests_id(tmp_path: Path) -> None:
    async def work(till: Till) -> None:
        sock = await till.connect()
        await till.send(sock, validate(3), {"v": 1, "id": 4, "op": "status"}, {"v": 1, "id": 5, "op": "nonsense"})
        replies = await till.receive(sock, 3)
        assert set(codes(replies)) == {ErrorCode.AGENT_MISCONFIGURED}
        assert [reply["id"] for reply in replies] == [3, 4, 5]

    run(tmp_path, work, service=RefusingService(ErrorCode.AGENT_MISCONFIGURED, "mend it"))
