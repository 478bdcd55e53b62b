"""Runs the client library's calls as asyncio coroutines."""

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections.abc import Generator
from types import TracebackType
from typing import Self, TypeVar

from ..answers import AgentInfo, ConsentAnswer, FeatureVerdict, HeldLicense, UsageCount, Verdict, WaitingUpdate
from ..bounds import DEFAULT_DEADLINE_S
from ..clientwire import decode_reply, encode_request
from ..errors import LicenseAgentError, RemoteProtocolError
from ..peer import check_daemon
from .calls import (
    Answer,
    Question,
    RefreshCallback,
    ask_consent,
    ask_count,
    ask_info,
    ask_licenses,
    ask_ping,
    ask_refresh,
    ask_require,
    validate_and_refresh,
    validate_file,
)
from .connection import Connection, Connections
from .policy import (
    FULL_QUEUE_PAUSE_S,
    RETRIED_CODES,
    AgentRefused,
    AgentTooOld,
    AgentUnavailable,
    Attempts,
    cause_text,
    is_too_old,
)
from .refresh import UnstoredTokens
from .tokenfile import TokenFile
from .trust import DEFAULT_POS_SOCKET, trusted_uids

T = TypeVar("T")
_READ_BYTES = 65_540


class AsyncLicenseClient:
    """Asks the agent about licenses from an event loop; arguments and errors as for `LicenseClient`.

    Calls of several tasks take turns on one connection. After a fork, parent and child have connections of their own.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        deadline: float = DEFAULT_DEADLINE_S,
        on_refresh: RefreshCallback | None = None,
        agent_uid: int | None = None,
    ) -> None:
        self._path = os.fspath(path or os.environ.get("LICENSE_AGENT_SOCKET") or DEFAULT_POS_SOCKET)
        self._deadline = deadline
        self._on_refresh = on_refresh
        self._unstored = UnstoredTokens(time.monotonic)
        self._trusted = trusted_uids(agent_uid)
        self._connections = Connections(asyncio.Lock)

    async def validate(self, token: str) -> Verdict:
        """The agent's verdict on a token; see `LicenseClient.validate`."""
        return await self._hold(validate_and_refresh(token, self._on_refresh, self._unstored))

    async def validate_file(self, path: str | os.PathLike[str]) -> Verdict:
        """`validate` for a token kept in a file; see `LicenseClient.validate_file`."""
        file = TokenFile(path)
        return await self._hold(validate_file(file, file.read(), self._unstored))

    async def require(self, feature: str, product: str | None = None) -> FeatureVerdict:
        """Whether a license of this machine allows a feature now; see `LicenseClient.require`."""
        return await self._hold(ask_require(feature, product))

    async def licenses(self, *, metadata: bool = False) -> list[HeldLicense]:
        """The licenses that this machine holds; see `LicenseClient.licenses`."""
        return await self._hold(ask_licenses(metadata))

    async def count_usage(self, meter: str, amount: int = 1, *, count_id: bytes | None = None) -> UsageCount:
        """Counts usage for a license of this machine; see `LicenseClient.count_usage`."""
        return await self._hold(ask_count(meter, amount, count_id))

    async def ota_consent(self, answer: ConsentAnswer | str | None = None, *, until: int = 0) -> WaitingUpdate:
        """Whether an update waits for the shop, and whether it may begin; see `LicenseClient.ota_consent`."""
        return await self._hold(ask_consent(answer, until))

    async def refresh(self, token: str) -> str | None:
        """The newest token of the same license; see `LicenseClient.refresh`."""
        return await self._hold(ask_refresh(token))

    async def info(self) -> AgentInfo:
        """What the agent says about itself."""
        return await self._hold(ask_info())

    async def ping(self) -> None:
        """Returns when the agent answers."""
        await self._hold(ask_ping())

    async def close(self) -> None:
        """Closes the connection; the next call would open another."""
        async with self._connections.mine().lock:
            self._drop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _hold(self, conversation: Generator[Question, Answer, T]) -> T:
        loop = asyncio.get_running_loop()
        async with self._connections.mine().lock:
            attempts = Attempts(ends=loop.time() + self._deadline)
            try:
                question = next(conversation)
                while True:
                    try:
                        answer = await self._ask(question, attempts)
                    except LicenseAgentError as error:
                        question = conversation.throw(error)
                    else:
                        question = conversation.send(answer)
            except StopIteration as stop:
                result: T = stop.value
                return result
            except RemoteProtocolError as error:
                self._drop()
                raise AgentRefused(error.code, error.text) from None
            finally:
                conversation.close()

    async def _ask(self, question: Question, attempts: Attempts) -> Answer:
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout_at(attempts.ends):
                    return await self._attempt(question)
            except (OSError, EOFError) as error:
                self._drop()
                cause: Exception = error
            except RemoteProtocolError as error:
                self._drop()
                if error.code not in RETRIED_CODES:
                    if is_too_old(question.op, error.code):
                        raise AgentTooOld(question.op) from None
                    raise AgentRefused(error.code, error.text) from None
                cause = error
            except BaseException:
                # A cancelled call leaves a reply behind that is nobody's.
                self._drop()
                raise
            wait = attempts.pause(loop.time())
            if wait is None:
                raise AgentUnavailable(
                    f"no answer from the agent at {self._path} within {self._deadline:g} s: {cause_text(cause)}"
                ) from cause
            await asyncio.sleep(wait)

    async def _attempt(self, question: Question) -> Answer:
        loop = asyncio.get_running_loop()
        connection = self._connections.mine()
        sock = await self._connected(connection)
        request_id = connection.next_id()
        fields = question.fields()
        # On a broken pipe the daemon may have said why before it closed: the reply is read all the same.
        with contextlib.suppress(BrokenPipeError):
            await loop.sock_sendall(sock, encode_request(question.op, request_id, fields))
        while True:
            data = await loop.sock_recv(sock, _READ_BYTES)
            if not data:
                raise EOFError("the agent closed the connection")
            bodies = connection.decoder.receive_data(data)
            if bodies:
                return Answer(sent=fields, reply=decode_reply(bodies[0], request_id))

    async def _connected(self, connection: Connection[asyncio.Lock]) -> socket.socket:
        if connection.socket is None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                # A Unix socket is connected at once or not at all (EAGAIN: the agent's queue is full); the loop's own
                # sock_connect takes EAGAIN for a connect that is under way. Places come free by the millisecond.
                while (failed := sock.connect_ex(self._path)) == errno.EAGAIN:
                    await asyncio.sleep(FULL_QUEUE_PAUSE_S)
                if failed:
                    raise OSError(failed, os.strerror(failed), self._path)
                check_daemon(sock, self._path, self._trusted)
            except BaseException:
                sock.close()
                raise
            connection.use(sock)
            return sock
        return connection.socket

    def _drop(self) -> None:
        self._connections.mine().drop()
