"""Answers administrators on the admin socket and logs every request with its sender. Root and the configured UIDs may use it.

Requests of one connection are handled one after another; a request that waits for hardware or disk does not block the daemon.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from agentd.audit.log import AuditLog, AuditUnavailable, actor
from agentd.base.config import ManagementConfig
from agentd.base.counters import Counters
from agentd.base.errors import NoSuchLicense, NoSuchVersion, Refused
from agentd.sockets.connection import KEPT_OPEN, Connection
from agentd.sockets.unauthorized import UnauthorizedPeers
from agentd.uplink.transport import NoContact
from common.files import os_problem
from common.plain import msgspec_text
from contracts.exchange import Refused as ServerRefused
from contracts.jose import BadSignature, MalformedToken
from contracts.licensetoken import WrongAudience
from hwsec.errors import HwsecError
from ipc.bounds import MAX_FRAME_BYTES, MIN_CONNECTS_PER_S, PROTOCOL_VERSION
from ipc.errors import ErrorCode, RemoteProtocolError
from ipc.messages import (
    AdminRequest,
    AuditExport,
    AuditTail,
    Ping,
    RequestDecoder,
    encode_error,
    encode_reply,
)
from ipc.peer import OVERFLOW_ID, Peer

log = logging.getLogger(__name__)

MAX_QUEUED = 16
CONNECTIONS_PER_UID = 16

Handler = Callable[[Any, Peer], Awaitable[dict[str, Any]]]


class AdminService:
    """Answers administrators.

    Args:
        config: who may ask besides root.
        monotonic: seconds.
        handlers: handle each type of request.
    """

    name = "admin"

    def __init__(
        self,
        config: ManagementConfig,
        audit: AuditLog,
        counters: Counters,
        monotonic: Callable[[], float],
        handlers: dict[type, Handler],
    ) -> None:
        self._config = config
        self._audit = audit
        self._counters = counters
        self._handlers = handlers
        self._unauthorized = UnauthorizedPeers("admin", audit, counters, monotonic)
        self._decode = RequestDecoder[AdminRequest](AdminRequest).decode
        self._queues: dict[Connection, list[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def reconfigure(self, config: ManagementConfig) -> None:
        """Applies a new configuration."""
        self._config = config

    def admits(self, peer: Peer) -> bool:
        """Whether the peer is root or a configured UID. The overflow UID (65534) is never admitted."""
        return peer.uid != OVERFLOW_ID and (peer.uid == 0 or peer.uid in self._config.allowed_uids)

    def refused(self, peer: Peer) -> bool:
        """Counts, logs and alerts; returns whether to answer."""
        return self._unauthorized.refused(peer)

    def tidy(self) -> None:
        """Frees memory that is no longer needed; called every minute."""
        self._unauthorized.tidy()

    def connection_limit(self) -> int:
        """Connections that one UID may have."""
        return CONNECTIONS_PER_UID

    def connects_per_s(self) -> int:
        """New connections that one UID may make each second."""
        return MIN_CONNECTS_PER_S

    def skipped(self, peer: Peer, times: int, *, admitted: bool) -> None:
        """Counts and logs connections beyond that."""
        if not admitted:
            self._unauthorized.skipped(peer, times)
            return
        self._counters.refused_requests += times
        self._audit.count(
            ("connects", "admin", peer.uid),
            "request.refused",
            ErrorCode.RATE_LIMITED.name.lower(),
            lambda: {"socket": "admin", "actor": actor(peer), "connects": True},
            times,
        )

    def rejected(self, peer: Peer, code: ErrorCode) -> None:
        """Counts and logs an error that ended a connection."""
        self._counters.refused_requests += 1
        self._audit.record("request.refused", code.name.lower(), socket="admin", actor=actor(peer))

    def reply_to_known(self, _frame: bytes, _peer: Peer, _now: float) -> bytes | None:
        """No request is known by its bytes."""
        return None

    def handle(self, body: bytes, connection: Connection) -> bytes | None:
        """Queues the request; its reply is sent later. While as many wait as may, the connection is not read from.

        Raises:
            RemoteProtocolError: the stream cannot go on.
        """
        request: AdminRequest | bytes
        try:
            request = self._decode(body)
        except RemoteProtocolError as error:
            if error.code not in KEPT_OPEN:
                raise
            self.rejected(connection.peer, error.code)
            request = encode_error(error.code, msgspec_text(error.text), error.request_id)
        queue = self._queues.get(connection)
        if queue is None:
            queue = self._queues[connection] = []
            task = asyncio.get_running_loop().create_task(self._work(connection, queue))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        queue.append(request)
        if len(queue) >= MAX_QUEUED:
            connection.hold()
        return None

    async def _work(self, connection: Connection, queue: list[AdminRequest | bytes]) -> None:
        try:
            while queue:
                request = queue[0]
                reply = request if isinstance(request, bytes) else await self._reply(request, connection.peer)
                queue.pop(0)
                connection.reply_later(reply)
                if len(queue) == MAX_QUEUED - 1:
                    connection.go_on()
        finally:
            del self._queues[connection]

    async def _reply(self, request: AdminRequest, peer: Peer) -> bytes:
        op = str(type(request).__struct_config__.tag)
        try:
            handler = self._handlers.get(type(request))
            if handler is None and not isinstance(request, Ping):
                raise Refused("this device is not an agent yet: 'license-agent-cli provision' makes it one")
            fields = {} if handler is None else await handler(request, peer)
            if isinstance(request, Ping):
                # Monitoring asks so before each status.
                self._audit.count(("admin", op, peer.uid), "admin.request", "ok", lambda: {"op": op, "actor": actor(peer)})
            elif isinstance(request, AuditTail | AuditExport) and request.after_seq >= 0:
                # A reader that follows the log: a full record of each request would be something new for the next one.
                self._audit.count(
                    ("admin", op, peer.uid), "admin.request", "ok", lambda: {"op": op, "actor": actor(peer), "follows": True}
                )
            else:
                self._audit.record("admin.request", "ok", op=op, actor=actor(peer))
            return encode_reply({"v": PROTOCOL_VERSION, "id": request.id, **fields})
        except Exception as error:  # noqa: BLE001 - `explain` tells the kinds apart; none may end the daemon
            code, text = explain(error)
            self._audit.record("admin.request", "failed", op=op, actor=actor(peer), code=int(code), text=text)
            return encode_error(code, text, request.id)

    async def finish(self, seconds: float) -> None:
        """Waits for requests that are being handled, but no longer than that."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)


def explain(error: Exception) -> tuple[ErrorCode, str]:
    """The code and text of an error; an error that is not expected becomes INTERNAL without detail."""
    if isinstance(error, NoSuchVersion | NoSuchLicense):
        return ErrorCode.NOT_FOUND, str(error)
    if isinstance(error, Refused | ServerRefused | MalformedToken | BadSignature | WrongAudience):
        return ErrorCode.REFUSED, str(error)
    if isinstance(error, NoContact | HwsecError | AuditUnavailable):
        return ErrorCode.UNAVAILABLE, str(error)
    if isinstance(error, OSError):
        return ErrorCode.UNAVAILABLE, os_problem(error)
    log.error("an admin request failed", exc_info=error)
    return ErrorCode.INTERNAL, "the agent failed; its journal says more"


REPLY_ROOM = MAX_FRAME_BYTES - 4096
"""Bytes of a reply that its payload may take."""
