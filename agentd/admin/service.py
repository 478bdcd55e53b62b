"""What the admin socket answers. Root and the configured UIDs may use it; every action is logged with who asked for it.

Requests of one connection are handled one after another; those that touch hardware or disk wait without holding up the daemon.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from agentd.audit.log import AuditLog, AuditUnavailable
from agentd.base.config import ManagementConfig
from agentd.licenses.validator import EngineRefused, NoSuchVersion
from agentd.sockets.connection import Connection
from agentd.sockets.unauthorized import Strangers, actor
from agentd.telemetry.metrics import Counters
from agentd.uplink.client import NoContact
from contracts.exchange import Refused
from contracts.jose import BadSignature, MalformedToken
from contracts.licensetoken import WrongAudience
from hwsec.errors import HwsecError
from ipc.bounds import MAX_FRAME_BYTES, PROTOCOL_VERSION
from ipc.errors import ErrorCode, RemoteProtocolError
from ipc.messages import (
    AdminRequest,
    AuditExport,
    AuditTail,
    AuditVerify,
    LicenseCheck,
    LicenseImport,
    MetricsText,
    Ping,
    PolicyShow,
    RequestDecoder,
    SecretInstall,
    SecretInvalidate,
    SecretList,
    Status,
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
        audit: logs.
        counters: of this run.
        monotonic: seconds.
        handlers: what each request does, by its type; `audit_verify` and the like are the daemon's.
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
        self._strangers = Strangers("admin", audit, counters, monotonic)
        self._decode = RequestDecoder[AdminRequest](AdminRequest).decode
        self._queues: dict[Connection, list[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def reconfigure(self, config: ManagementConfig) -> None:
        """Takes over a new configuration."""
        self._config = config

    def admits(self, peer: Peer) -> bool:
        """Root, or a configured UID; the number that stands for nobody never is."""
        return peer.uid != OVERFLOW_ID and (peer.uid == 0 or peer.uid in self._config.allowed_uids)

    def refused(self, peer: Peer) -> bool:
        """Counts, logs and alerts; returns whether to answer."""
        return self._strangers.refused(peer)

    def tidy(self) -> None:
        """Gives back memory that is no longer needed; called every minute."""
        self._strangers.tidy()

    def connection_limit(self) -> int:
        """Connections that one UID may have."""
        return CONNECTIONS_PER_UID

    def rejected(self, peer: Peer, code: ErrorCode) -> None:
        """Counts and logs an error that ended a connection."""
        self._counters.refused_requests += 1
        self._audit.record("request.refused", code.name.lower(), socket="admin", actor=actor(peer))

    def handle(self, body: bytes, connection: Connection) -> bytes | None:
        """Queues the request; its reply is sent later."""
        queue = self._queues.get(connection)
        if queue is not None and len(queue) >= MAX_QUEUED:
            raise RemoteProtocolError(ErrorCode.RATE_LIMITED, f"more than {MAX_QUEUED} requests at once")
        if queue is None:
            queue = self._queues[connection] = []
            task = asyncio.get_running_loop().create_task(self._work(connection, queue))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        queue.append(body)
        return None

    async def _work(self, connection: Connection, queue: list[bytes]) -> None:
        try:
            while queue:
                reply = await self._reply(queue[0], connection.peer)
                queue.pop(0)
                connection.reply_later(reply)
        finally:
            del self._queues[connection]

    async def _reply(self, body: bytes, peer: Peer) -> bytes:
        try:
            request = self._decode(body)
        except RemoteProtocolError as error:
            self.rejected(peer, error.code)
            return encode_error(error.code, error.text, error.request_id)
        op = str(type(request).__struct_config__.tag)
        try:
            handler = self._handlers.get(type(request))
            if handler is None and not isinstance(request, Ping):
                raise EngineRefused("this device is no license agent yet: 'license-agent-cli provision' makes it one")
            fields = {} if handler is None else await handler(request, peer)
            if isinstance(request, AuditTail | AuditExport) and request.after_seq >= 0:
                # Somebody follows the log: a full record of each look would be something new to see at the next.
                self._audit.count(
                    ("admin", op, peer.uid), "admin.request", "ok", lambda: {"op": op, "actor": actor(peer), "follows": True}
                )
            else:
                self._audit.record("admin.request", "ok", op=op, actor=actor(peer))
            return encode_reply({"v": PROTOCOL_VERSION, "id": request.id, **fields})
        except Exception as error:  # noqa: BLE001 - each kind is told apart in `explain`; none may end the daemon
            code, text = explain(error)
            self._audit.record("admin.request", "failed", op=op, actor=actor(peer), code=int(code), text=text)
            return encode_error(code, text, request.id)

    async def finish(self, seconds: float) -> None:
        """Waits for requests that are being handled, but no longer than that."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)


def explain(error: Exception) -> tuple[ErrorCode, str]:
    """The code and text of an error; what is not known becomes INTERNAL without detail."""
    if isinstance(error, NoSuchVersion):
        return ErrorCode.NOT_FOUND, str(error)
    if isinstance(error, EngineRefused | MalformedToken | BadSignature | WrongAudience):
        return ErrorCode.REFUSED, str(error)
    if isinstance(error, Refused):
        return ErrorCode.REFUSED, str(error)
    if isinstance(error, NoContact | HwsecError | AuditUnavailable):
        return ErrorCode.UNAVAILABLE, str(error)
    if isinstance(error, OSError):
        return ErrorCode.UNAVAILABLE, f"{error.filename or 'the disk'}: {error.strerror}"
    log.error("an admin request failed", exc_info=error)
    return ErrorCode.INTERNAL, "the agent failed; its journal says more"


ADMIN_READS = (Status, SecretList, AuditTail, AuditExport, AuditVerify, LicenseCheck, MetricsText, PolicyShow)
"""Requests that change nothing."""
ADMIN_CHANGES = (SecretInstall, SecretInvalidate, LicenseImport)
"""Requests that change something."""
REPLY_ROOM = MAX_FRAME_BYTES - 4096
"""Bytes of a reply that its payload may take."""
