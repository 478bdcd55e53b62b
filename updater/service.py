"""Serves the core's orders, one at a time, and returns when none has come for a while."""

import array
import logging
import os
import socket
from collections.abc import Callable

from ipc.errors import ErrorCode, RemoteProtocolError
from ipc.frames import FrameDecoder
from ipc.messages import Request
from ipc.peer import peer_of
from ipc.updatermessages import (
    UPDATER_MAX_FRAME_BYTES,
    UPDATER_ORDER_TIMEOUT_S,
    UPDATER_VERSION,
    Failure,
    Progress,
    TakeBundle,
    UpdaterCode,
    encode_updater,
    to_updater_decoder,
)

from .clock import Clock
from .download import Report
from .failures import CoreGone

log = logging.getLogger("updater")

SEND_TIMEOUT_S = 30.0
"""For one message to the core; a core that takes nothing for so long is gone."""
_FD_BYTES = array.array("i").itemsize

CarryOut = Callable[[Request, int | None, Report], Request]
"""Takes an order, the descriptor that came with it and what takes the progress; returns the answer."""


class Service:
    """Serves a listening socket.

    Args:
        listener: a Unix stream socket.
        core_uid: the only user whose orders are carried out.
        carry_out: carries out one order; it raises no other exception than `CoreGone`, by way of its report.
        clock: seconds that pass.
        idle_s: seconds without an order, after which it returns.
    """

    def __init__(self, listener: socket.socket, core_uid: int, carry_out: CarryOut, clock: Clock, idle_s: float) -> None:
        self._listener = listener
        self._core_uid = core_uid
        self._carry_out = carry_out
        self._clock = clock
        self._idle_s = idle_s

    def serve(self) -> None:
        """Returns after `idle_s` seconds without a connection."""
        self._listener.settimeout(self._idle_s)
        while True:
            try:
                sock, _ = self._listener.accept()
            except TimeoutError:
                return
            with sock:
                try:
                    self._serve_one(sock)
                except CoreGone:
                    log.info("the core has closed its connection; what was downloaded is kept")
                except OSError as error:  # a peer that is slow or gone must not affect the next one
                    log.warning("a connection failed: %s", error.strerror or error)

    def _serve_one(self, sock: socket.socket) -> None:
        uid = peer_of(sock, sure_of_pid=False).uid
        if uid != self._core_uid:
            log.warning("refused a connection from uid %d; only uid %d may use the updater's socket", uid, self._core_uid)
            _send(sock, _failure(0, UpdaterCode.NOT_ALLOWED, "only the agent may use the updater's socket"))
            return
        descriptors: list[int] = []
        try:
            order = self._read(sock, descriptors)
            if order is None:
                return
            if len(descriptors) != isinstance(order, TakeBundle):
                text = "a bundle comes as one descriptor with its order, and no other order has one"
                _send(sock, _failure(order.id, UpdaterCode.MALFORMED, text))
                return

            def report(done: int, total: int) -> None:
                _send(sock, Progress(v=UPDATER_VERSION, id=order.id, done=done, total=total))

            _send(sock, self._carry_out(order, descriptors[0] if descriptors else None, report))
        except RemoteProtocolError as error:
            _send(sock, _failure(error.request_id or 0, UpdaterCode.MALFORMED, error.text))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _read(self, sock: socket.socket, descriptors: list[int]) -> Request | None:
        """The order; None at the end of the stream. What comes as descriptors is put into the list, which the caller closes.

        Raises:
            RemoteProtocolError: it is not an order.
            OSError: none came in time.
        """
        ends = self._clock.monotonic() + UPDATER_ORDER_TIMEOUT_S
        decoder = FrameDecoder(UPDATER_MAX_FRAME_BYTES)
        while (left := ends - self._clock.monotonic()) > 0:
            sock.settimeout(left)
            data, ancillary, flags, _ = sock.recvmsg(
                UPDATER_MAX_FRAME_BYTES, socket.CMSG_SPACE(2 * _FD_BYTES), socket.MSG_CMSG_CLOEXEC
            )
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    numbers = array.array("i")
                    numbers.frombytes(content[: len(content) - len(content) % _FD_BYTES])
                    descriptors.extend(numbers)
            if flags & socket.MSG_CTRUNC or len(descriptors) > 1:
                raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "more than one descriptor")
            if not data:
                return None
            if frames := decoder.receive_data(data, 1):
                order: Request = to_updater_decoder().decode(frames[0])
                return order
        raise TimeoutError(f"the order was not complete within {UPDATER_ORDER_TIMEOUT_S:g} s")


def _failure(request_id: int, code: UpdaterCode, text: str) -> Failure:
    return Failure(v=UPDATER_VERSION, id=request_id, code=code.value, text=text[:500], network=False)


def _send(sock: socket.socket, message: Request) -> None:
    sock.settimeout(SEND_TIMEOUT_S)
    try:
        sock.sendall(encode_updater(message))
    except OSError:
        raise CoreGone from None
