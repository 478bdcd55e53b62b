"""Answers administrators on the admin socket and logs every request with its sender. Root and the configured UIDs may use it.

`Access` decides who may ask for what: a request is performed once it has returned the peer, or the caller whose certificate
has signed the request. What it refuses is counted, logged and answered late. Requests of one connection are handled one after
another; a request that waits for hardware or disk does not block the daemon.
"""

import asyncio
import logging
import os
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from agentd.audit.log import AuditLog, AuditUnavailable, actor
from agentd.base.alerts import ADMIN_REFUSED
from agentd.base.config.config import ManagementConfig
from agentd.base.counters import Counters
from agentd.base.errors import NoSuchLicense, NoSuchVersion, Refused
from agentd.sockets.connection import KEPT_OPEN, Connection
from agentd.sockets.unauthorized import UnauthorizedPeers
from agentd.uplink.transport import NoContact
from common.files import os_problem
from common.plain import msgspec_text
from common.tokenbucket import Buckets
from contracts.exchange import Refused as ServerRefused
from contracts.jose import BadSignature, MalformedToken
from contracts.licensetoken import WrongAudience
from hwsec.errors import HwsecError
from ipc.bounds import ADMIN_SESSION_S, MAX_FRAME_BYTES, MIN_CONNECTS_PER_S, PROTOCOL_VERSION
from ipc.errors import ErrorCode, RemoteProtocolError
from ipc.messages import (
    AdminRequest,
    AuditExport,
    AuditTail,
    CertificateCheck,
    Challenge,
    Health,
    OtaHandOver,
    OtaPackage,
    OtaStatus,
    Ping,
    Request,
    RequestDecoder,
    SessionBegin,
    Signed,
    Status,
    SystemInfo,
    encode_error,
    encode_reply,
)
from ipc.peer import OVERFLOW_ID, Peer

from .access import Access
from .authentication import Authenticated, Conversation, NotAccepted
from .roles import RULES, Role
from .setback import Setbacks

log = logging.getLogger(__name__)

MAX_QUEUED = 16
CONNECTIONS_PER_UID = 16
ALERT_EVERY_S, ALERTS_AT_ONCE = 60.0, 3
"""How many refused certificates of each user raise an alert; the others are counted."""

Handler = Callable[[Any, Peer], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Handed:
    """A request with the file that came before it.

    Attributes:
        request: the request.
        descriptor: of the file; closed once the handler has returned.
    """

    request: OtaPackage
    descriptor: int


class AdminService:
    """Answers administrators.

    Args:
        config: who may ask besides root.
        monotonic: seconds.
        handlers: handle each type of request.
        access: decides who may ask for what.
        pause: waits for seconds.
    """

    name = "admin"

    def __init__(
        self,
        config: ManagementConfig,
        audit: AuditLog,
        counters: Counters,
        monotonic: Callable[[], float],
        handlers: dict[type, Handler],
        access: Access,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._config = config
        self._audit = audit
        self._counters = counters
        self._handlers = handlers
        self._access = access
        self._monotonic = monotonic
        self._pause = pause
        self._setbacks = Setbacks()
        self._alerts = Buckets(1 / ALERT_EVERY_S, ALERTS_AT_ONCE)
        self._talks: weakref.WeakKeyDictionary[Connection, Conversation] = weakref.WeakKeyDictionary()
        self._unauthorized = UnauthorizedPeers("admin", audit, counters, monotonic)
        self._decode = RequestDecoder[AdminRequest](AdminRequest).decode
        self._queues: dict[Connection, list[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def reconfigure(self, config: ManagementConfig) -> None:
        """Applies a new configuration."""
        self._config = config
        self._access.reconfigure(config.authentication)

    def admits(self, peer: Peer) -> bool:
        """Whether the peer is root or a configured UID. The overflow UID (65534) is never admitted."""
        return peer.uid != OVERFLOW_ID and (peer.uid == 0 or peer.uid in self._config.allowed_uids)

    def refused(self, peer: Peer) -> bool:
        """Counts, logs and alerts; returns whether to answer."""
        return self._unauthorized.refused(peer)

    def tidy(self) -> None:
        """Frees memory that is no longer needed; called every minute."""
        self._unauthorized.tidy()
        now = self._monotonic()
        self._setbacks.tidy(now)
        self._alerts.forget_full(now)

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
        self._audit.record_within_budget(
            peer.uid,
            ("error", "admin", peer.uid, code),
            "request.refused",
            code.name.lower(),
            lambda: {"socket": "admin", "actor": actor(peer)},
            important=False,
        )

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
        if isinstance(request, OtaHandOver) and OtaPackage in self._handlers:
            # At once, before the loop reads on: what it reads with the byte that brings the file, it would lose.
            try:
                connection.expect_descriptor()
            except OSError as error:
                request = encode_error(ErrorCode.UNAVAILABLE, os_problem(error), request.id)
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
                reply = request if isinstance(request, bytes) else await self._answer(request, connection)
                queue.pop(0)
                connection.reply_later(reply)
                if len(queue) == MAX_QUEUED - 1:
                    connection.go_on()
        finally:
            del self._queues[connection]

    async def _answer(self, request: AdminRequest, connection: Connection) -> bytes:
        peer, talk = connection.peer, self._talks.setdefault(connection, Conversation())
        if not isinstance(request, Signed):
            try:
                signs = peer.uid in self._config.signing_uids
                caller = self._access.permit_unsigned(type(request), peer, talk, self._monotonic(), signs=signs)
            except NotAccepted as error:
                return await self._refuse(error, request, peer, {})
            if isinstance(request, Challenge):
                return await self._reply(request, caller, self._access.challenge(talk, self._monotonic()), connection)
            return await self._reply(request, caller, {}, connection)
        await self._pause(self._setbacks.wait(peer.uid, self._monotonic()))
        try:
            found = self._access.authenticate(request, talk, peer, self._monotonic())
        except NotAccepted as error:
            return await self._refuse(error, request, peer, self._next(talk))
        more = self._next(talk)
        if isinstance(found.request, SessionBegin):
            more = {**more, **self._begin_session(talk, found)}
        return await self._reply(found.request, found.caller, more, connection)

    def _next(self, talk: Conversation) -> dict[str, Any]:
        """The next challenge, as each reply to a signed request carries it."""
        return {"next_challenge": self._access.challenge(talk, self._monotonic())["challenge"]}

    def _begin_session(self, talk: Conversation, found: Authenticated) -> dict[str, Any]:
        caller = self._access.begin_session(talk, found, self._monotonic())
        self._audit.record("admin.session", "begun", actor=actor(caller), seconds=ADMIN_SESSION_S)
        return {"role": caller.role, "name": caller.name, "seconds": ADMIN_SESSION_S}

    async def _refuse(self, error: NotAccepted, request: AdminRequest, peer: Peer, more: dict[str, Any]) -> bytes:
        """Counts, logs and delays a request that is not performed."""
        op, now = str(type(request).__struct_config__.tag), self._monotonic()
        self._counters.refused_administrators += 1
        self._setbacks.failed(peer.uid, now)
        who, more_of = actor(peer), _of_refusal(error)
        if error.suspicious and self._alerts.take(peer.uid, now):
            text = f"a request of uid {peer.uid} pid {peer.pid} on the admin socket was refused: {error.text}"
            if error.shown is not None:
                text += f"; the certificate that was shown is that of {error.shown.name} (SHA-256 {error.shown.digests[0]})"
            self._audit.raise_alert(ADMIN_REFUSED, text, error.outcome, op=op, actor=who, text=error.text, **more_of)
        else:
            certificate = None if error.shown is None else error.shown.digests[0]
            key = ("admin.refused", op, error.outcome, peer.uid, certificate, error.wanted)
            self._audit.count(key, "admin.refused", error.outcome, lambda: {"op": op, "actor": who, **more_of})
        await self._pause(self._setbacks.wait(peer.uid, now))
        return encode_error(error.code, error.text, request.id, more)

    async def _perform(self, handler: Handler, request: Request, peer: Peer, connection: Connection) -> dict[str, Any]:
        if not isinstance(request, OtaPackage) or (descriptor := connection.take_descriptor()) is None:
            return await handler(request, peer)
        try:
            return await handler(Handed(request, descriptor), peer)
        finally:
            os.close(descriptor)

    async def _reply(self, request: Request, peer: Peer, more: dict[str, Any], connection: Connection) -> bytes:
        """Performs a request that may be performed.

        Args:
            request: what to do.
            peer: who asks.
            more: further members of the reply.
            connection: that it came on.
        """
        op = str(type(request).__struct_config__.tag)
        try:
            handler = self._handlers.get(type(request))
            known = isinstance(request, Ping | Challenge | SessionBegin)
            known = known or (isinstance(request, OtaHandOver) and OtaPackage in self._handlers)
            if handler is None and not known:
                raise Refused("this device is not an agent yet: 'license-agent-cli provision' makes it one")
            fields = {} if handler is None else await self._perform(handler, request, peer, connection)
            if isinstance(request, Ping | Health | Status | SystemInfo | CertificateCheck | Challenge | OtaStatus):
                # Monitoring asks so each minute, `status --watch` every few seconds, and a client before each signature.
                self._count(op, peer, {})
            elif isinstance(request, AuditTail | AuditExport) and request.after_seq >= 0:
                # A reader that follows the log: a full record of each request would be something new for the next one.
                self._count(op, peer, {"follows": True})
            else:
                self._performed(request, peer)
            if taken := fields.keys() & {"v", "id", *more}:
                raise TypeError(
                    f"the handler of {op} returns members that the reply has of its own: {', '.join(sorted(taken))}"
                )
            return encode_reply({"v": PROTOCOL_VERSION, "id": request.id, **fields, **more})
        except Exception as error:  # noqa: BLE001 - `explain` tells the kinds apart; none may end the daemon
            code, text = explain(error)
            self._failed(request, peer, code, text)
            return encode_error(code, text, request.id, more)

    def _performed(self, request: Request, peer: Peer) -> None:
        """Logs a request in full; one that only looks, within its user's budget. Beyond that it is counted, by certificate."""
        op, who = str(type(request).__struct_config__.tag), actor(peer)
        if RULES[type(request)].role is not Role.VIEWER:
            self._audit.record("admin.request", "ok", op=op, actor=who)
            return
        key = ("admin look", op, peer.uid, who.get("certificate"))
        self._audit.record_within_budget(
            peer.uid, key, "admin.request", "ok", lambda: {"op": op, "actor": who}, important=False
        )

    def _failed(self, request: Request, peer: Peer, code: ErrorCode, text: str) -> None:
        """As `_performed`, of a request that has failed."""
        op, who, number = str(type(request).__struct_config__.tag), actor(peer), int(code)
        if RULES[type(request)].role is not Role.VIEWER:
            self._audit.record("admin.request", "failed", op=op, actor=who, code=number, text=text)
            return
        key = ("admin look failed", op, number, peer.uid, who.get("certificate"))
        self._audit.record_within_budget(
            peer.uid,
            key,
            "admin.request",
            "failed",
            lambda: {"op": op, "actor": who, "code": number, "text": text},
            important=False,
        )

    def _count(self, op: str, peer: Peer, more: dict[str, Any]) -> None:
        who = actor(peer)
        key = ("admin", op, peer.uid, who.get("certificate"))
        self._audit.count(key, "admin.request", "ok", lambda: {"op": op, "actor": who, **more})

    async def finish(self, seconds: float) -> None:
        """Waits for requests that are being handled, but no longer than that."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)


def _of_refusal(error: NotAccepted) -> dict[str, Any]:
    """What the log says of a certificate that was shown, and of what was wanted with it."""
    found: dict[str, Any] = {"wanted": error.wanted} if error.wanted else {}
    if error.shown is not None:
        found["shown"] = {"certificate": error.shown.digests[0], "name": error.shown.name}
    return found


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
