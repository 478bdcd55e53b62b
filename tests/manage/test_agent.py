"""The connection to the admin socket, against an agent that a test makes say what it wants."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from ipc.bounds import PROTOCOL_VERSION
from ipc.errors import ErrorCode
from manage.agent import AdminConnection, AgentDown, AgentRefuses, NoReply
from manage.app import App, Caller, Request
from tests.support.waiting import READY_S

pytestmark = pytest.mark.system

Reply = Callable[[dict[str, Any]], bytes | None]


def frame(message: Any) -> bytes:
    body: bytes = msgpack.packb(message)
    return len(body).to_bytes(4, "big") + body


def fine(**members: Any) -> Reply:
    return lambda request: frame({"v": PROTOCOL_VERSION, "id": request["id"], **members})


def against(directory: Path, reply: Reply, work: Callable[[AdminConnection], Awaitable[None]]) -> None:
    """Runs work on a connection to an agent that replies so, and hangs up where it replies None."""
    path = directory / "admin.sock"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.read(4):
                answer = reply(msgpack.unpackb(await reader.readexactly(int.from_bytes(head, "big"))))
                if answer is None:
                    return
                writer.write(answer)
                await writer.drain()
        finally:
            writer.close()

    async def main() -> None:
        server = await asyncio.start_unix_server(serve, path)
        try:
            connection = await AdminConnection.open(path, os.geteuid())
            try:
                await work(connection)
            finally:
                connection.close()
        finally:
            server.close()

    directory.chmod(0o755)
    asyncio.run(main())


@pytest.mark.parametrize(
    "reply",
    [
        lambda _request: None,
        lambda _request: b"\0\0\0\0",
        lambda _request: b"\xff\xff\xff\xff",
        lambda _request: frame([1]),
        lambda _request: frame({"v": PROTOCOL_VERSION, "id": 77}),
        lambda request: frame({"v": 2, "id": request["id"]}),
    ],
    ids=["it hangs up", "an empty frame", "a huge frame", "no map", "to another request", "of another version"],
)
def test_a_reply_that_is_none_is_not_taken_for_one(tmp_path: Path, reply: Reply) -> None:
    async def work(connection: AdminConnection) -> None:
        with pytest.raises(NoReply):
            await connection.ask("status", {})
        with pytest.raises(AgentDown):  # what may come late is nobody's
            await connection.ask("status", {})

    against(tmp_path, reply, work)


def test_an_error_is_told_with_its_code_text_and_the_next_challenge(tmp_path: Path) -> None:
    async def work(connection: AdminConnection) -> None:
        with pytest.raises(AgentRefuses) as refused:
            await connection.ask("status", {})
        assert (refused.value.code, refused.value.text, refused.value.challenge) == (ErrorCode.REFUSED, "no", b"c" * 32)

    against(tmp_path, fine(error={"code": 14, "text": "no"}, next_challenge=b"c" * 32), work)


@pytest.mark.parametrize("error", [{"code": 999, "text": "new"}, {"code": "14"}, {}])
def test_an_error_that_is_not_known_is_one_of_the_agent(tmp_path: Path, error: dict[str, Any]) -> None:
    async def work(connection: AdminConnection) -> None:
        with pytest.raises(AgentRefuses) as refused:
            await connection.ask("status", {})
        assert refused.value.code is ErrorCode.INTERNAL

    against(tmp_path, fine(error=error), work)


def test_a_connection_that_is_ended_under_a_request_ends_the_request(tmp_path: Path) -> None:
    asked = asyncio.Event()

    def never(_request: dict[str, Any]) -> bytes:
        asked.set()
        return b""

    async def work(connection: AdminConnection) -> None:
        waiting = asyncio.create_task(connection.ask("rotate", {}, READY_S))
        next_one = asyncio.create_task(connection.ask("status", {}, READY_S))
        await asked.wait()
        connection.close()
        with pytest.raises(NoReply):
            await waiting
        with pytest.raises(AgentDown):
            await next_one

    against(tmp_path, never, work)


def test_members_that_no_request_can_have_are_refused_before_anything_is_sent(tmp_path: Path) -> None:
    asked: list[Any] = []

    async def work(connection: AdminConnection) -> None:
        for params in ({"op": "x"}, {"v": 1}, {"id": 1}, {"a": 1 << 70}, {"a": object()}, {"a": "x" * 70_000}, {"a": "\ud800"}):
            with pytest.raises(ValueError, match=r"a member|a frame holds|surrogates"):
                await connection.ask_signed("status", params, [b"c"], b"s", READY_S)
        assert asked == []
        assert await connection.ask("status", {}) == {}

    against(tmp_path, lambda request: (asked.append(request), fine()(request))[1], work)


def test_somebody_else_than_the_agent_is_not_asked(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    tmp_path.chmod(0o777)

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            with pytest.raises(AgentDown, match="others may write"):
                await AdminConnection.open(path, os.geteuid())

    asyncio.run(main())


def test_an_agent_of_release_0_1_0_is_told_as_such(tmp_path: Path) -> None:
    """It knows none of the operations that this program asks without a signature."""

    async def work(connection: AdminConnection) -> None:
        async def connect() -> AdminConnection:
            return connection

        app = App(connect, lambda: "0" * 32, lambda: 0.0)
        answer = await app.handle(Request("GET", "/system/info"), Caller("ab" * 32, b"der"))
        assert answer.status == 503 and b"older release" in answer.body and b"of one release" in answer.body

    against(tmp_path, fine(error={"code": 5, "text": "this socket knows …"}), work)
