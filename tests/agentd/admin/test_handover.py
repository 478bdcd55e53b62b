"""An open file that comes over the admin socket: received by both event loops, once, and closed on every way."""

import array
import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from agentd.admin.service import Handed
from agentd.sockets import handover
from ipc.errors import ErrorCode
from ipc.frames import encode_frame
from ipc.messages import OtaPackage
from ipc.peer import Peer
from tests.support.adminops import body_of

from .world import ADMIN, ROOT, VIEWER, Administrator, AdminSocket, run

pytestmark = pytest.mark.system
SHA256 = "ab" * 32


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The loop of the test: `asyncio.run` takes it."""

    def run_on(work: Any) -> Any:
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(work)

    monkeypatch.setattr(asyncio, "run", run_on)
    yield


class Desk:
    """An admin socket whose handler reads the file that it is given."""

    def __init__(self, world: AdminSocket) -> None:
        self.read: list[bytes] = []
        self.without = 0
        world.handlers[OtaPackage] = self._take

    async def _take(self, request: Any, _peer: Peer) -> dict[str, Any]:
        if isinstance(request, Handed):
            assert request.request.sha256 == SHA256
            self.read.append(os.pread(request.descriptor, 100, 0))
        else:
            self.without += 1
        return {}


def send(someone: Administrator, *numbers: int) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", numbers))] if numbers else []
    someone.sock.sendmsg([b"\0"], rights)


def opened() -> int:
    return len(os.listdir("/proc/self/fd"))


def file_with(directory: Path, content: bytes) -> int:
    path = directory / "x.bundle"
    path.write_bytes(content)
    return os.open(path, os.O_RDONLY)


def test_a_file_is_handed_over_signed_for_read_and_closed(tmp_path: Path, loop: None) -> None:
    async def work(world: AdminSocket) -> None:
        desk, someone, number = Desk(world), await world.connect(), file_with(tmp_path, b"whole")
        before = opened()
        assert "error" not in await someone.ask("ota_hand_over")
        send(someone, number)
        assert "error" not in await someone.ask("ping")
        assert opened() == before + 1, "the file waits for the request that is about it"
        refused = await someone.sign(VIEWER, "ota_package", sha256=SHA256)
        assert refused["error"]["code"] == ErrorCode.REFUSED and desk.read == []
        assert "error" not in await someone.sign(ADMIN, "ota_package", sha256=SHA256)
        assert (desk.read, opened()) == ([b"whole"], before)
        # It is used up.
        await someone.sign(ADMIN, "ota_package", sha256=SHA256)
        assert desk.without == 1
        os.close(number)

    run(tmp_path, work)


def test_the_file_of_a_connection_that_ends_is_closed_and_a_second_one_takes_its_place(tmp_path: Path, loop: None) -> None:
    async def work(world: AdminSocket) -> None:
        desk, someone = Desk(world), await world.connect(ROOT)
        before = opened()
        for content in (b"first", b"second"):
            number = file_with(tmp_path, content)
            await someone.ask("ota_hand_over")
            send(someone, number)
            os.close(number)
            await someone.ask("ping")
            assert opened() == before + 1
            (tmp_path / "x.bundle").unlink()
        await someone.sign(ADMIN, "ota_package", sha256=SHA256)
        assert desk.read == [b"second"]
        await someone.ask("ota_hand_over")  # and it waits for another
        someone.sock.close()
        await until(lambda: not world.till.hub.connections)
        assert opened() == before - 2, "both ends of the socket are gone too, and the duplicate"

    run(tmp_path, work)


@pytest.mark.parametrize("count", [0, 2, 3])
def test_anything_else_than_one_file_ends_the_connection_and_leaves_nothing_open(
    tmp_path: Path, loop: None, count: int
) -> None:
    async def work(world: AdminSocket) -> None:
        desk, someone, number = Desk(world), await world.connect(ROOT), file_with(tmp_path, b"x")
        await someone.ask("ota_hand_over")
        before = opened()
        send(someone, *[number] * count)
        (reply,) = await world.till.receive(someone.sock, 1)
        assert reply["error"]["code"] == ErrorCode.BAD_MESSAGE and "one open file" in reply["error"]["text"]
        await until(lambda: not world.till.hub.connections)
        assert opened() == before - 2, "its end of the socket, and the duplicate"
        assert desk.read == []
        os.close(number)

    run(tmp_path, work)


def test_who_announces_a_file_and_sends_none_is_disconnected(
    tmp_path: Path, loop: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "HANDOVER_S", 0.01)

    async def work(world: AdminSocket) -> None:
        someone = await world.connect(ROOT)
        await someone.ask("ota_hand_over")
        (reply,) = await world.till.receive(someone.sock, 1)
        assert reply["error"]["code"] == ErrorCode.BAD_MESSAGE
        await until(lambda: not world.till.hub.connections)

    run(tmp_path, work)


def test_what_comes_in_one_read_behind_the_announcement_waits_and_is_answered(tmp_path: Path, loop: None) -> None:
    async def work(world: AdminSocket) -> None:
        desk, someone, number = Desk(world), await world.connect(ROOT), file_with(tmp_path, b"late")
        before = opened()
        someone.number = 2
        someone.sock.send(b"".join(encode_frame(body_of(op, {}, each)) for each, op in ((1, "ota_hand_over"), (2, "ping"))))
        (first,) = await world.till.receive(someone.sock, 1)
        assert first["id"] == 1
        send(someone, number)
        (second,) = await world.till.receive(someone.sock, 1)
        assert second["id"] == 2 and opened() == before + 1
        await someone.sign(ADMIN, "ota_package", sha256=SHA256)
        assert desk.read == [b"late"]
        os.close(number)

    run(tmp_path, work)


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0)
