"""A client that was made before a fork works in parent and children alike, each on a connection of its own."""

import json
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.ipc.fakeagent import FakeAgent, frame, success
from tests.support.waiting import READY_S

pytestmark = pytest.mark.system
ROOT = Path(__file__).resolve().parents[3]
CALLS = 150


def _told_apart(request: dict[str, Any]) -> dict[str, Any]:
    """A reply that shows for which token it is, also where nothing in the protocol does (an agent of 0.1.0)."""
    reply = success(request)
    if request["op"] == "validate_license":
        reply["features"] = [request["token"]]
    elif request["op"] == "refresh_license":
        reply["token"] = f"{request['token']}.newer"
    return reply


def _beside_others(agent: FakeAgent, connection: socket.socket) -> None:
    own = connection.dup()

    def work() -> None:
        with own:
            while (request := agent.take(own)) is not None:
                own.sendall(frame(_told_apart(request)))

    threading.Thread(target=work, daemon=True).start()


BLOCKING = """
import json, os, sys, threading
from ipc.posclient.client import LicenseClient

def call(client, name):
    verdict = client.validate(name)
    return verdict.features == (name,) and client.refresh(name) == name + ".newer"

def calls(client, who, count):
    failed = []
    for number in range(count):
        try:
            if not call(client, f"{who}-{number}"):
                failed.append("a reply to somebody else")
        except Exception as error:
            failed.append(repr(error))
    return failed

make = lambda path: LicenseClient(path, deadline=READY)
"""
AIO = """
import asyncio, json, os, sys, threading
from ipc.posclient.aioclient import AsyncLicenseClient

async def several(client, who, count):
    failed = []
    for number in range(count):
        name = f"{who}-{number}"
        try:
            verdict = await client.validate(name)
            if verdict.features != (name,) or await client.refresh(name) != name + ".newer":
                failed.append("a reply to somebody else")
        except Exception as error:
            failed.append(repr(error))
    return failed

def calls(client, who, count):
    return asyncio.run(several(client, who, count))

make = lambda path: AsyncLicenseClient(path, deadline=READY)
"""
CHILDREN = """
client = make(sys.argv[1])
failed = calls(client, "before", 1)
readers = []
for child in range(2):
    reader, writer = os.pipe()
    if os.fork() == 0:
        BEFORE
        os.write(writer, json.dumps(calls(client, f"child{child}", CALLS)).encode()[:60_000])
        os._exit(0)
    os.close(writer)
    readers.append(reader)
failed += calls(client, "parent", CALLS)
for reader in readers:
    with os.fdopen(reader) as file:
        failed += json.load(file)
print(json.dumps(failed))
"""
# As daemons do; the descriptor's number then belongs to a file of the child, which must not be closed.
CLOSES_ALL = """os.closerange(3, writer); os.closerange(writer + 1, 100)
        own = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
        import atexit, errno
        write = os.write
        def checked(where, what):
            for number in own:
                os.fstat(number)
            return write(where, what)
        os.write = checked"""
HELD = """
client = make(sys.argv[1])
held, go_on = threading.Event(), threading.Event()
def hold():
    with client._connections.mine().lock if hasattr(client, "_connections") else client._lock:
        held.set()
        go_on.wait(READY)
thread = threading.Thread(target=hold)
thread.start()
held.wait()
import warnings
warnings.simplefilter("ignore")
if os.fork() == 0:
    print(json.dumps(calls(client, "child", 3)), flush=True)
    os._exit(0)
os.wait()
go_on.set()
thread.join()
"""


def _run(path: Path, program: str) -> list[str]:
    text = program.replace("READY", repr(READY_S)).replace("CALLS", str(CALLS))
    with FakeAgent(path, _beside_others) as agent:
        done = subprocess.run(
            [sys.executable, "-c", text, agent.path],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=3 * READY_S,
        )
    assert done.returncode == 0, done.stderr
    failed: list[str] = json.loads(done.stdout)
    return failed


@pytest.mark.parametrize("before", ["pass", CLOSES_ALL], ids=["plain", "closes all descriptors"])
@pytest.mark.parametrize("client", [BLOCKING, AIO], ids=["blocking", "asyncio"])
def test_children_and_parent_share_a_client_and_no_connection(socket_dir: Path, client: str, before: str) -> None:
    failed = _run(socket_dir / "pos.sock", client + CHILDREN.replace("BEFORE", before))
    assert not failed, f"{len(failed)} of {3 * CALLS} calls: {failed[:3]}"


def test_a_lock_that_the_parent_held_at_the_fork_stops_no_child(socket_dir: Path) -> None:
    assert _run(socket_dir / "pos.sock", BLOCKING + HELD) == []


def test_the_parents_connection_stays_as_it_was(socket_dir: Path) -> None:
    program = BLOCKING + (
        "client = make(sys.argv[1])\n"
        "failed = calls(client, 'before', 1)\n"
        "before = client._connections.mine().socket.fileno()\n"
        "if os.fork() == 0:\n"
        "    failed = calls(client, 'child', 1)\n"
        "    client.close()\n"
        "    os._exit(len(failed))\n"
        "failed += ['the child failed'] * os.waitstatus_to_exitcode(os.wait()[1])\n"
        "failed += calls(client, 'parent', 1)\n"
        "failed += [] if client._connections.mine().socket.fileno() == before else ['another connection']\n"
        "print(json.dumps(failed))\n"
    )
    with FakeAgent(socket_dir / "pos.sock", _beside_others) as agent:
        done = subprocess.run(
            [sys.executable, "-c", program.replace("READY", repr(READY_S)), agent.path],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=READY_S,
        )
        assert json.loads(done.stdout) == []
        assert agent.connections == 2
