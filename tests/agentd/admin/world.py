"""An admin socket in this loop, with an admin CA whose file the test writes, replaces and removes."""

import asyncio
import json
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack

from agentd.admin.access import Access
from agentd.admin.service import AdminService, Handler
from agentd.audit.log import actor
from agentd.base.config.config import ManagementConfig, PosConfig
from agentd.secrets.record import NO_ADMIN_ACCESS
from agentd.sockets.connection import Connection
from contracts.admin.adminca import BadAdminCa
from hwsec.errors import BackendUnavailable
from ipc.peer import Peer
from tests.agentd.pos.test_service import Till
from tests.support.adminops import SIGNABLE
from tests.support.adminpki import Ca, Holder

CA = Ca(start=1_700_000_000)
ADMIN = CA.issue("ann", start=1_700_000_000, days=3650)
OPERATOR = CA.issue("olga", role="operator", start=1_700_000_000, days=3650)
VIEWER = CA.issue("victor", role="viewer", start=1_700_000_000, days=3650)
ROOT, KEEPER, FRONT = 0, 1000, 1001


class FakeStore:
    """Keeps what the sealed store would, and fails when it is told to."""

    def __init__(self) -> None:
        self.record: Any = SimpleNamespace(access=NO_ADMIN_ACCESS)
        self.kept: list[str] = []
        self.broken = False

    async def keep(self, event: str, changes: dict[str, Any], **_fields: Any) -> None:
        if self.broken:
            raise BackendUnavailable("the TPM is gone")
        self.kept.append(event)
        self.record.access = changes["access"]


class AdminSocket:
    """A service whose handlers say who has asked, and connections to it from any UID."""

    def __init__(self, till: Till, policy: str | None = None, pem: bytes | None = CA.pem, agent_id: str = "till-1") -> None:
        self.till, self.pem, self.problem = till, pem, ""
        self.store = FakeStore()
        self.pauses: list[float] = []
        self.performed: list[tuple[str, dict[str, Any]]] = []
        self.access = Access(agent_id, bytes(range(16)), self._read, policy, till.audit._clock, till.audit, self.store)  # type: ignore[arg-type]
        self.access.look()
        self.handlers: dict[type, Handler] = dict.fromkeys(SIGNABLE, self._perform)
        self.service = AdminService(
            ManagementConfig(frozenset({KEEPER, FRONT}), policy, frozenset({FRONT})),
            till.audit,
            till.counters,
            lambda: till.mono,
            self.handlers,
            self.access,
            self._pause,
        )

    def _read(self) -> bytes | None:
        if self.problem:
            raise BadAdminCa(self.problem)
        return self.pem

    async def _perform(self, request: Any, peer: Peer) -> dict[str, Any]:
        self.performed.append((str(type(request).__struct_config__.tag), actor(peer)))
        return {"done": True}

    async def _pause(self, seconds: float) -> None:
        if seconds:
            self.pauses.append(round(seconds, 3))
            self.till.mono += seconds

    async def connect(self, uid: int = KEEPER) -> "Administrator":
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.till.clients.append(ours)
        connection = Connection(self.till.hub, self.service, Peer(uid, uid, 77))
        await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, theirs)
        return Administrator(self, ours)

    def records(self, event: str) -> list[dict[str, Any]]:
        self.till.audit.emit_counts()
        self.till.audit.flush()
        lines = [json.loads(line) for line in self.till.file.lines]
        return [line for line in lines if line["event"] == event]


class Administrator:
    """One connection."""

    def __init__(self, world: AdminSocket, sock: socket.socket) -> None:
        self.world, self.sock, self.number = world, sock, 0

    async def ask(self, op: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        await self.world.till.send(self.sock, {"v": 1, "id": self.number, "op": op, **params})
        (reply,) = await self.world.till.receive(self.sock, 1)
        assert reply["id"] == self.number
        return reply

    async def sign(self, holder: Holder, op: str, *, challenge: dict[str, Any] | None = None, **params: Any) -> dict[str, Any]:
        challenge = challenge or await self.ask("challenge")
        signature = holder.sign(challenge, op, **params)
        body = msgpack.packb({"v": 1, "id": self.number + 1, "op": op, **params})
        return await self.ask("signed", certificates=[holder.der], signature=signature, request=body)


def run(directory: Path, work: Callable[[AdminSocket], Coroutine[Any, Any, None]], **options: Any) -> AdminSocket:
    """Runs a test's work on an admin socket; `options` as for `AdminSocket`."""

    async def main() -> AdminSocket:
        till = Till(directory, PosConfig())
        world = AdminSocket(till, **options)
        try:
            await work(world)
        finally:
            await till.close()
        return world

    return asyncio.run(main())
