"""Runs the client library's calls on a blocking socket."""

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Generator
from types import TracebackType
from typing import Self, TypeVar

from ..answers import AgentInfo, ConsentAnswer, FeatureVerdict, HeldLicense, UsageCount, Verdict, WaitingUpdate
from ..bounds import DEFAULT_DEADLINE_S
from ..clientwire import decode_reply, encode_request
from ..errors import LicenseAgentError, RemoteProtocolError
from ..peer import UntrustedDaemon, check_daemon
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
from .policy import RETRIED_CODES, AgentRefused, AgentTooOld, AgentUnavailable, Attempts, cause_text, is_too_old
from .refresh import UnstoredTokens
from .tokenfile import TokenFile
from .trust import DEFAULT_POS_SOCKET, trusted_uids

T = TypeVar("T")
_READ_BYTES = 65_540


class LicenseClient:
    """Asks the agent about licenses; one connection, kept open and renewed when it breaks.

    Safe to share between threads: calls take turns. After a fork, parent and child have connections of their own.

    Args:
        path: the agent's POS socket; by default `LICENSE_AGENT_SOCKET` or /run/license-agent/pos.sock.
        deadline: seconds that a call may take, retries included.
        on_refresh: see `RefreshCallback`; None leaves newer tokens with the agent.
        agent_uid: the agent's UID where its user is not named `license-agent`; 65534 in a container whose user namespace does
            not map root.
    """

    # A request of the POS socket changes nothing but the nonce window, so it may be repeated; a count is known by its id, and
    # of answers to an update the last one counts.
    _repeats = True
    _retried_codes = RETRIED_CODES

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
        self._connections = Connections(threading.Lock)

    def validate(self, token: str) -> Verdict:
        """The agent's verdict on a token. An invalid license is a verdict, not an exception.

        Raises what is a `LicenseAgentError`:
            LocalProtocolError: the token is not ASCII text, or too long.
            AgentUnavailable: no answer within the deadline.
            AgentRefused: the agent answered with an error.
            UntrustedDaemon: something else than the agent answers at the path.
        """
        return self._hold(validate_and_refresh(token, self._on_refresh, self._unstored))

    def validate_file(self, path: str | os.PathLike[str]) -> Verdict:
        """`validate` for a token kept in a file, which is replaced when the agent holds a newer one.

        A byte order mark of UTF-8 and white space around the token are skipped; a file that holds anything else than ASCII
        text of a token's length is `malformed`. A symbolic link is followed. Owner, mode and attributes of the file are kept.

        Where the file cannot be replaced (it belongs to root, the disk is read-only), the verdict is that on the newer token
        all the same, and its `refresh_error` says why the file still holds the old one. Replacing it is tried again when the
        obstacle has changed, after a minute that grows to an hour, or with a still newer token.

        Raises:
            TokenFileError: the file cannot be read; else as `validate`.
        """
        file = TokenFile(path)
        return self._hold(validate_file(file, file.read(), self._unstored))

    def require(self, feature: str, product: str | None = None) -> FeatureVerdict:
        """Whether a license of this machine allows a feature now. No token is needed: the agent holds the licenses.

        Of several licenses the valid one answers that ends last, or else the one that is nearest to valid.

        Args:
            feature: 1 to 64 characters.
            product: the license must be for this product, its metadata `product`; None for any.

        Raises what is a `LicenseAgentError`:
            LocalProtocolError: feature or product is not a text of the permitted length.
            AgentTooOld: the agent does not know this request.
            AgentUnavailable, AgentRefused, UntrustedDaemon: as `validate`.
        """
        return self._hold(ask_require(feature, product))

    def licenses(self, *, metadata: bool = False) -> list[HeldLicense]:
        """The licenses that this machine holds and this user may know of, in the order of their ids. Raises as `require`.

        Args:
            metadata: also what the issuer attached to each valid one.
        """
        return self._hold(ask_licenses(metadata))

    def count_usage(self, meter: str, amount: int = 1, *, count_id: bytes | None = None) -> UsageCount:
        """Counts usage for a license of this machine that allows the meter: that has the feature `meter:NAME`.

        If it raises `AgentUnavailable`, the usage may be counted or not: call it again with the same id, and it is counted
        once. A usage that no license allows is not counted, which is an answer and not an exception.

        Args:
            meter: 1 to 48 characters: a-z, 0-9, '.', '_' and '-'.
            amount: 1 to 4,294,967,295.
            count_id: 16 random bytes, new for each usage; keep them with what was used. None for an id that is used in this
                call only.

        Raises what is a `LicenseAgentError`:
            LocalProtocolError: meter, amount or id is not one.
            AgentTooOld: the agent does not know this request.
            AgentRefused: also where the id was used for another meter or amount.
            AgentUnavailable, UntrustedDaemon: as `validate`.
        """
        return self._hold(ask_count(meter, amount, count_id))

    def ota_consent(self, answer: ConsentAnswer | str | None = None, *, until: int = 0) -> WaitingUpdate:
        """Whether an update of this machine waits for the shop; with an answer, also whether it may begin.

        An answer counts even if the call then raises `AgentUnavailable`, or does not: call it again. The last answer counts.

        Args:
            answer: None for a look. `ConsentAnswer.READY`: nobody is served now, for the next 15 minutes. `BUSY`: not before
                `until`. `AFTER_SHIFT`: not before `READY`, or an hour without a validation.
            until: end of `BUSY`, seconds since 1970 UTC by the machine's clock; at most 4 hours ahead count. 0 with any
                other answer.

        Raises what is a `LicenseAgentError`:
            LocalProtocolError: answer or `until` is not one, or they do not belong together.
            AgentTooOld: the agent does not know this request, and asks nobody before it is updated.
            AgentUnavailable, AgentRefused, UntrustedDaemon: as `validate`.
        """
        return self._hold(ask_consent(answer, until))

    def refresh(self, token: str) -> str | None:
        """The newest token of the same license; None if the agent holds none that is newer. Raises as `validate`."""
        return self._hold(ask_refresh(token))

    def info(self) -> AgentInfo:
        """What the agent says about itself. Raises as `validate`."""
        return self._hold(ask_info())

    def ping(self) -> None:
        """Returns when the agent answers. Raises as `validate`."""
        self._hold(ask_ping())

    def close(self) -> None:
        """Closes the connection; the next call would open another."""
        with self._connections.mine().lock:
            self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _hold(self, conversation: Generator[Question, Answer, T]) -> T:
        with self._connections.mine().lock:
            attempts = Attempts(ends=time.monotonic() + self._deadline)
            try:
                question = next(conversation)
                while True:
                    try:
                        answer = self._ask(question, attempts)
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

    def _ask(self, question: Question, attempts: Attempts) -> Answer:
        while True:
            try:
                return self._attempt(question, attempts)
            except (OSError, EOFError) as error:
                self._drop()
                cause: Exception = error
            except RemoteProtocolError as error:
                self._drop()
                if error.code not in self._retried_codes:
                    if is_too_old(question.op, error.code):
                        raise AgentTooOld(question.op) from None
                    raise AgentRefused(error.code, error.text) from None
                cause = error
            except BaseException:
                # A call cut in its middle (Ctrl-C) leaves a reply behind that is nobody's.
                self._drop()
                raise
            wait = attempts.pause(time.monotonic()) if self._repeats else None
            if wait is None:
                within = f" within {self._deadline:g} s" if self._repeats else ""
                raise AgentUnavailable(f"no answer from the agent at {self._path}{within}: {cause_text(cause)}") from cause
            time.sleep(wait)

    def _attempt(self, question: Question, attempts: Attempts) -> Answer:
        connection = self._connections.mine()
        sock = self._connected(connection, attempts)
        request_id = connection.next_id()
        fields = question.fields()
        frame = encode_request(question.op, request_id, fields)
        self._limit(sock, attempts)
        # On a broken pipe the daemon may have said why before it closed: the reply is read all the same.
        with contextlib.suppress(BrokenPipeError):
            sock.sendall(frame)
        while True:
            self._limit(sock, attempts)
            data = sock.recv(_READ_BYTES)
            if not data:
                raise EOFError("the agent closed the connection")
            bodies = connection.decoder.receive_data(data)
            if bodies:
                return Answer(sent=fields, reply=decode_reply(bodies[0], request_id))

    def _connected(self, connection: Connection[threading.Lock], attempts: Attempts) -> socket.socket:
        if connection.socket is None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self._limit(sock, attempts)
                self._connect(sock, attempts)
                check_daemon(sock, self._path, self._trusted)
            except BaseException:
                sock.close()
                raise
            connection.use(sock)
            return sock
        return connection.socket

    def _connect(self, sock: socket.socket, attempts: Attempts) -> None:
        """Connects; where the agent's queue is full, waits in the kernel for a place, which is sooner than asking again."""
        remaining = attempts.remaining(time.monotonic())
        sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(remaining), int(remaining % 1 * 1e6) or 1)
        )
        sock.settimeout(None)
        sock.connect(self._path)

    def _limit(self, sock: socket.socket, attempts: Attempts) -> None:
        remaining = attempts.remaining(time.monotonic())
        if remaining <= 0:
            raise TimeoutError("the deadline has passed")
        sock.settimeout(remaining)

    def _drop(self) -> None:
        self._connections.mine().drop()


__all__ = ["LicenseClient", "UntrustedDaemon"]
