"""The short way for a token that came before answers, counts and logs as the long way does, whatever happens in between."""

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.audit.coalesced import CoalescedEvents
from agentd.audit.log import AuditLog
from agentd.base.clock.clock import Clock
from agentd.base.config.config import AuditConfig, PosConfig
from agentd.base.counters import SAMPLED
from agentd.pos.service import KNOWN_TOKENS, PosService
from agentd.secrets.revocations import Revocations
from agentd.sockets.connection import Connection, Hub
from audittrail.chain import Chain
from ipc.bounds import MAX_ID
from ipc.clientwire import encode_request
from ipc.errors import ErrorCode
from ipc.peer import Peer
from tests.agentd.audit.test_log import FakeFile
from tests.agentd.sockets.test_connection import Transport
from tests.agentd.world import T0, World, core_of, meta, token

ME = Peer(1000, 1000, 7)
TOKENS = [token(jti="a"), token(jti="b", exp=T0 + 200), token(jti="c", nbf=T0 + 150), "no token at all, but long enough"]


class Way:
    """A till on a connection of its own; `short` says whether the service may know its frames."""

    def __init__(self, directory: Path, *, short: bool, **config: Any) -> None:
        self.mono, self.wall, self.short = 1000.0, float(T0 + 100), 0
        clock = Clock(lambda: self.wall, lambda: self.mono)
        self.world = World(meta())
        self.file, self.hub = FakeFile(), Hub(lambda: self.mono)
        self.repeats = CoalescedEvents(directory / f"repeats-{short}")
        limits = AuditConfig(records_per_s=1, burst=3)
        self.hub.log = self.audit = AuditLog(self.file, Chain(), self.repeats, clock, limits, lambda: None)  # type: ignore[arg-type]
        core = core_of(clock, self.audit, self.world.vault)
        self.counters = core.counters
        self.service = PosService(PosConfig(allowed_uids=frozenset({ME.uid}), **config), core, self.world.validator)
        answer = self.service.reply_to_known

        def counted(frame: bytes, peer: Peer, now: float) -> bytes | None:
            reply = answer(frame, peer, now) if short else None
            self.short += reply is not None
            return reply

        self.service.reply_to_known = counted  # type: ignore[method-assign]
        self.transport = Transport()
        self.connection = Connection(self.hub, self.service, ME)
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]

    def send(self, text: str, request_id: int, nonce: int) -> bytes:
        """The reply."""
        self.transport.sent = b""
        self.connection.data_received(
            encode_request("validate_license", request_id, {"token": text, "nonce": nonce.to_bytes(16, "big")})
        )
        self.hub.end_tick()
        return self.transport.sent

    def seen(self) -> tuple[Any, ...]:
        """What the agent remembers of it all."""
        return self.counters, self.audit.counted, self.file.lines, sorted(map(repr, self.repeats.drain()))

    def close(self) -> None:
        self.repeats.close()
        self.world.vault.close()


def run(work: Callable[[Way, Way], None], **config: Any) -> None:
    """Gives the short way and the long way."""

    async def main() -> None:
        with tempfile.TemporaryDirectory() as directory:
            ways = [Way(Path(directory), short=short, **config) for short in (True, False)]
            try:
                work(*ways)
            finally:
                for way in ways:
                    way.close()

    asyncio.run(main())


def error_of(reply: bytes) -> tuple[int, int]:
    """Id and code."""
    message = msgpack.unpackb(reply[4:])
    return message["id"], message["error"]["code"]


def test_the_third_validation_on_goes_the_short_way_with_the_same_bytes() -> None:
    def work(short: Way, long: Way) -> None:
        for number, request_id in enumerate((1, 2, 3, 127, 128, 255, 256, 65_536, 2**32, MAX_ID)):
            assert short.send(TOKENS[0], request_id, number) == long.send(TOKENS[0], request_id, number)
        assert (short.short, long.short) == (8, 0)
        assert short.seen() == long.seen()

    run(work)


def test_one_validation_in_many_is_timed_on_either_way() -> None:
    def work(short: Way, long: Way) -> None:
        for number in range(2 * SAMPLED + 1):
            for way in (short, long):
                way.send(TOKENS[0], number, number)
        assert [sum(way.counters.validation_s.counts) for way in (short, long)] == [2, 2]
        assert short.short > SAMPLED

    run(work)


def test_users_who_ask_too_often_are_counted_for_a_minute() -> None:
    def work(short: Way, _long: Way) -> None:
        for number in range(5):
            short.send(TOKENS[0], number, number)
        assert short.counters.rate_limited == 1 and short.counters.rate_limited_users == 0
        short.service.tidy()
        assert short.counters.rate_limited_users == 1
        short.service.tidy()
        assert short.counters.rate_limited_users == 0

    run(work, rate_per_s=4)


def test_a_repeated_nonce_is_refused_with_the_id_of_its_request() -> None:
    def work(short: Way, long: Way) -> None:
        for number in range(3):
            assert short.send(TOKENS[0], 1, number) == long.send(TOKENS[0], 1, number)
        reply = short.send(TOKENS[0], 70_000, 0)
        assert reply == long.send(TOKENS[0], 70_000, 0)
        assert error_of(reply) == (70_000, ErrorCode.NONCE_REPLAYED)
        assert short.short == 2 and short.seen() == long.seen()

    run(work)


def test_no_more_than_the_rate_goes_the_short_way() -> None:
    def work(short: Way, long: Way) -> None:
        for number in range(6):
            reply = short.send(TOKENS[0], number, number)
            assert reply == long.send(TOKENS[0], number, number)
            assert (number == 5) == (b"error" in reply)
        assert error_of(reply) == (5, ErrorCode.RATE_LIMITED)
        assert short.short == 3 and short.seen() == long.seen()

    run(work, rate_per_s=5)


def test_no_more_nonces_than_a_window_takes_go_the_short_way() -> None:
    def work(short: Way, long: Way) -> None:
        for number in range(6):
            reply = short.send(TOKENS[0], number, number)
            assert reply == long.send(TOKENS[0], number, number)
        assert error_of(reply) == (5, ErrorCode.RATE_LIMITED) and short.seen() == long.seen()

    run(work, nonces_per_uid=5)


@pytest.mark.parametrize(
    "change",
    [
        lambda way: setattr(way.world.validator, "revocations", Revocations(number=1, revoked=frozenset({"a"}))),
        lambda way: way.world.invalidate(1),
        lambda way: setattr(way.world.validator, "degraded", True),
        lambda way: setattr(way, "wall", float(T0 - 10**9)),
        lambda way: setattr(way, "wall", float(T0 + 31 * 86_400)),
    ],
    ids=["revoked", "invalidated", "degraded", "clock suspect", "expired"],
)
def test_what_changes_the_verdict_counts_from_the_next_request_on(change: Callable[[Way], None]) -> None:
    def work(short: Way, long: Way) -> None:
        for number in range(4):
            before = short.send(TOKENS[0], 1, number)
            assert before == long.send(TOKENS[0], 1, number)
        assert short.short == 2
        change(short)
        change(long)
        after = short.send(TOKENS[0], 1, 4)
        assert after == long.send(TOKENS[0], 1, 4) and after[40:] != before[40:]
        assert short.short == 2 and short.seen() == long.seen()

    run(work)


def test_a_failure_on_the_short_way_is_told_as_one_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def work(short: Way, _long: Way) -> None:
        for number in range(3):
            short.send(TOKENS[0], 1, number)
        use, short.service._nonces.use = short.service._nonces.use, None  # type: ignore[method-assign,assignment]
        assert error_of(short.send(TOKENS[0], 300, 3)) == (300, ErrorCode.INTERNAL)
        short.service._nonces.use = use  # type: ignore[method-assign]
        assert b"error" not in short.send(TOKENS[0], 1, 4)
        assert "a request on the POS socket failed" in caplog.text

    run(work)


def test_what_is_known_is_bounded_and_forgotten_with_its_epoch() -> None:
    def work(short: Way, _long: Way) -> None:
        for number in range(KNOWN_TOKENS + 5):
            text = token(jti=f"license-{number}")
            for again in range(2):
                short.send(text, 1, 2 * number + again)
                short.mono += 0.1
        assert len(short.service._known) == KNOWN_TOKENS
        short.service.tidy()
        assert len(short.service._known) == KNOWN_TOKENS
        short.world.ring.touch()
        short.service.tidy()
        assert not short.service._known

    run(work)


STEPS = st.one_of(
    st.tuples(st.just("send"), st.integers(0, len(TOKENS) - 1), st.integers(0, 400), st.integers(0, 30)),
    st.tuples(st.just("wait"), st.sampled_from((0.01, 0.3, 30.0, 130.0))),
    st.tuples(st.just("clock"), st.sampled_from((-(10.0**9), -1.0, 1.0, 60.0, 86_400.0))),
    st.tuples(st.just("degraded"), st.booleans()),
    st.tuples(st.just("touch")),
    st.tuples(st.just("tidy")),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(STEPS, max_size=40))
def test_both_ways_answer_count_and_log_the_same(steps: list[tuple[Any, ...]]) -> None:
    def work(short: Way, long: Way) -> None:
        for step in steps:
            replies = []
            for way in (short, long):
                match step:
                    case ("send", which, request_id, nonce):
                        replies.append(way.send(TOKENS[which], request_id, nonce))
                    case ("wait", seconds):
                        way.mono += seconds
                        way.wall += seconds
                    case ("clock", seconds):
                        way.wall += seconds
                    case ("degraded", on):
                        way.world.validator.degraded = on
                    case ("touch",):
                        way.world.ring.touch()
                    case ("tidy",):
                        way.service.tidy()
            assert len(set(replies)) <= 1, step
        assert short.seen() == long.seen()

    run(work, rate_per_s=5, nonces_per_uid=12)
