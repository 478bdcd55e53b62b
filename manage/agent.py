"""Talks to the agent's admin socket. What it sends there has no more authority than the person who signed it.

A connection is one conversation: its challenge, and the session that was begun on it, are worth nothing on another.
"""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ipc.bounds import HEADER_BYTES, PROTOCOL_VERSION
from ipc.clientwire import decode_map, encode_request
from ipc.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from ipc.frames import FrameDecoder
from ipc.peer import UntrustedDaemon, check_daemon

SOON_S = 10.0
"""Longest wait for a reply that needs no disk, TPM or server, and for the connection itself."""
LONG_S = 300.0
"""Longest wait for the reply to an act: a rotation waits for the server."""
_READ_BYTES = 64 * 1024


class AgentDown(Exception):
    """The agent cannot be reached; the text says why, and the action what to do."""

    def __init__(self, text: str, action: str) -> None:
        super().__init__(text)
        self.text = text
        self.action = action


class NoReply(Exception):
    """The agent has not answered. Whether it has performed the request is not known."""


class AgentRefuses(Exception):
    """The agent has answered with an error.

    Attributes:
        code: on the wire.
        text: for people.
        challenge: the next one of the connection, if it gave one.
    """

    def __init__(self, code: ErrorCode, text: str, challenge: bytes | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.challenge = challenge


class Conversation(Protocol):
    """A connection to the agent, as the interface sees it."""

    async def ask(self, op: str, fields: Mapping[str, Any], seconds: float = SOON_S) -> dict[str, Any]:
        """The members of the reply to one request, without `v` and `id`."""
        ...

    async def ask_signed(
        self, op: str, params: Mapping[str, Any], certificates: Sequence[bytes], signature: bytes, seconds: float
    ) -> dict[str, Any]:
        """As `ask`, for a request that an administrator has signed."""
        ...

    def close(self) -> None:
        """Ends it, and with it challenge and session."""
        ...


_START = "start it: systemctl start license-agent"
_ACTIONS = {
    errno.ENOENT: _START,
    errno.ECONNREFUSED: _START,
    errno.EACCES: "let the user license-agent-manage use the socket: usermod -aG license-agent-admin license-agent-manage, "
    "then systemctl restart license-agent-manage",
    errno.EAGAIN: "the agent is busy; try again in a second",
}
FORBIDDEN_ACTION = (
    'add "license-agent-manage" to allowed_uids under [management] in /etc/license-agent/config.toml, then run systemctl '
    "reload license-agent; the agent accepts nothing from this user but what an administrator has signed"
)


class AdminConnection:
    """One connection to the admin socket; requests wait for each other.

    Args:
        sock: connected; does not block.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._decoder = FrameDecoder()
        self._number = 0
        self._turn = asyncio.Lock()
        self._closed = self._busy = False

    @classmethod
    async def open(cls, path: Path, agent_uid: int) -> "AdminConnection":
        """Connects, and makes sure that the agent answers there.

        Raises:
            AgentDown: nobody answers, or somebody else.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            async with asyncio.timeout(SOON_S):
                await asyncio.get_running_loop().sock_connect(sock, str(path))
            check_daemon(sock, str(path), frozenset({0, agent_uid}))
        except UntrustedDaemon as error:
            sock.close()
            raise AgentDown(str(error), "find out who serves that socket, and start the agent") from None
        except (OSError, TimeoutError) as error:
            sock.close()
            number = getattr(error, "errno", None)
            why = getattr(error, "strerror", None) or "it does not answer"
            action = _ACTIONS.get(number, "look at the agent: systemctl status license-agent") if number else _START
            raise AgentDown(f"the agent's admin socket {path} cannot be used: {why}", action) from None
        return cls(sock)

    async def ask(self, op: str, fields: Mapping[str, Any], seconds: float = SOON_S) -> dict[str, Any]:
        """The members of the reply, without `v` and `id`.

        Raises:
            AgentDown: the connection has ended before the request was sent, or the agent does not let this user in.
            NoReply: the agent has not answered.
            AgentRefuses: the reply is an error.
            ValueError: the fields cannot be sent.
        """
        async with self._turn:
            return await self._exchange(self._encode(op, self._next_number(), fields), seconds)

    async def ask_signed(
        self, op: str, params: Mapping[str, Any], certificates: Sequence[bytes], signature: bytes, seconds: float
    ) -> dict[str, Any]:
        """As `ask`, for a request that an administrator has signed."""
        async with self._turn:
            number = self._next_number()
            inner = self._encode(op, number, params)[HEADER_BYTES:]
            fields = {"certificates": list(certificates), "signature": signature, "request": inner}
            return await self._exchange(self._encode("signed", number, fields), seconds)

    def close(self) -> None:
        """Ends the connection; a request under way ends with NoReply."""
        self._closed = True
        if not self._busy:
            self._sock.close()
            return
        # The event loop waits for this descriptor: to close it now would leave the loop with a number that another gets.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    @staticmethod
    def _encode(op: str, number: int, fields: Mapping[str, Any]) -> bytes:
        if reserved := {"v", "id", "op"} & fields.keys():
            raise ValueError(f"a member must not be called {min(reserved)}")
        try:
            return encode_request(op, number, dict(fields))
        except LocalProtocolError as error:
            raise ValueError(error.text) from None
        except (TypeError, OverflowError, RecursionError):
            raise ValueError("a member has a value that no request can have") from None

    async def _exchange(self, frame: bytes, seconds: float) -> dict[str, Any]:
        if self._closed:
            raise AgentDown("the connection to the agent has ended", "ask for a new challenge")
        loop = asyncio.get_running_loop()
        answered, self._busy = False, True
        try:
            async with asyncio.timeout(seconds):
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have said why before it hung up
                    await loop.sock_sendall(self._sock, frame)
                body = await self._receive(loop)
            answered = True
        except TimeoutError:
            raise NoReply(f"the agent has not answered for {seconds:g} s") from None
        except OSError:
            raise NoReply("the agent has closed the connection") from None
        finally:
            self._busy = False
            if not answered or self._closed:  # a reply that came later would be taken for the next one's
                self.close()
        return self._read(body)

    async def _receive(self, loop: asyncio.AbstractEventLoop) -> bytes:
        bodies: list[bytes] = []
        while not bodies:
            data = await loop.sock_recv(self._sock, _READ_BYTES)
            if not data:
                raise ConnectionResetError
            try:
                bodies = self._decoder.receive_data(data)
            except RemoteProtocolError:
                raise ConnectionResetError from None
        return bodies[0]

    def _read(self, body: bytes) -> dict[str, Any]:
        try:
            reply = decode_map(body)
        except RemoteProtocolError:
            self.close()
            raise NoReply("the agent's reply cannot be read") from None
        error = reply.get("error")
        if isinstance(error, dict):
            raise self._refusal(error, reply.get("next_challenge"))
        if reply.get("v") != PROTOCOL_VERSION or reply.get("id") != self._number:
            self.close()
            raise NoReply("the agent's reply is to another request")
        return {name: value for name, value in reply.items() if name not in ("v", "id")}

    def _refusal(self, error: Mapping[str, Any], challenge: Any) -> Exception:
        known = ErrorCode._value2member_map_.get(error.get("code"))
        code = known if isinstance(known, ErrorCode) else ErrorCode.INTERNAL
        text = str(error.get("text", ""))
        if code is ErrorCode.FORBIDDEN:
            self.close()
            return AgentDown(f"the agent does not let this program's user use its admin socket: {text}", FORBIDDEN_ACTION)
        if code in (ErrorCode.SHUTTING_DOWN, ErrorCode.TIMED_OUT):
            self.close()
        return AgentRefuses(code, text, challenge if isinstance(challenge, bytes) else None)
