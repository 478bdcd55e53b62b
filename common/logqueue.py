"""Sends log lines and never waits for their reader: lines that it does not take now are kept, up to a bound, and then dropped.

Nothing here blocks, so that any thread may log at any time. The owner of the event loop runs `keep_flowing`, which sends what
was kept once the reader takes lines again. Dropped lines are counted, and a line tells of them where they are missing.
"""

import errno
import logging
import os
import select
import socket
import stat
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

from .text import shown

MAX_LINES = 1000
MAX_BYTES = 256 * 1024
"""What may wait: so many lines, of so many bytes together."""
MAX_LINE_CHARS = 8 * 1024
"""A longer line is cut."""
RETRY_S = 0.2
LAST_LINES_S = 1.0
"""How long a process that ends waits for its last lines to be taken."""
MAX_CHAIN = 8
PIPE_BUF = 4096
"""What a pipe that select(2) calls writable takes at once, pipe(7)."""

_PREFIXES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


class Sink(Protocol):
    """Where lines go."""

    def send(self, data: bytes) -> int:
        """Sends some bytes, or their beginning, and returns how many: 0 if there is no room. Never waits. Raises OSError."""
        ...

    def close(self) -> None:
        """Gives back what it holds."""
        ...


def level_of(record: logging.LogRecord) -> int:
    """The record's level as syslog(3) and sd-daemon(3) number it."""
    return _PREFIXES.get(record.levelno, 6)


class LineFormatter(logging.Formatter):
    """Formats the message in one line, and a traceback without the lines of source: reading those could wait for a disk.

    A message may hold what others have written. It begins no line of its own, and drives no terminal.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The message, and the traceback if there is one."""
        return shown(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The message in one line."""
        return super().formatMessage(record).replace("\n", " | ")

    def formatException(self, ei: object) -> str:
        """The exception, what led to it, and where."""
        error = ei[1] if isinstance(ei, tuple) else None
        return "" if error is None else "\n".join(_trace(error))


class PrefixFormatter(LineFormatter):
    """As `LineFormatter`, in one line that begins with its level as systemd reads it: `<N>`, sd-daemon(3)."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return f"<{level_of(record)}>" + super().format(record).replace("\n", " | ")


def _trace(error: BaseException) -> Iterator[str]:
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in chain and len(chain) < MAX_CHAIN:
        chain.append(following)
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
    yield "Traceback (most recent call last):"
    for raised in reversed(chain):
        for frame, line in traceback.walk_tb(raised.__traceback__):
            yield f'  File "{frame.f_code.co_filename}", line {line}, in {frame.f_code.co_name}'
        yield _named(raised)
        if raised is not error:
            yield "which led to:"
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions[:MAX_CHAIN]:
            yield from _trace(inner)


def _named(error: BaseException) -> str:
    # Not by `traceback`: that would look at the source of whatever led to the exception.
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an exception that cannot say what it is must not hide where it came from
        text = "(no text)"
    return "\n".join([f"{name}: {text}" if text else name, *getattr(error, "__notes__", ())])


class LogQueue(logging.Handler):
    """A handler that sends what it can and keeps the rest.

    Args:
        encode: the bytes of a record, as they are sent.
        sink: where they go.

    Attributes:
        dropped: lines that were lost since the start.
    """

    def __init__(self, encode: Callable[[logging.LogRecord], bytes], sink: Sink) -> None:
        super().__init__()
        self._encode = encode
        self._sink = sink
        self._guard = threading.RLock()  # a finalizer may log while a line is being put
        self._waiting: deque[tuple[bytes, int]] = deque()  # with the number of dropped lines that it tells of; 0 for a line
        self._bytes = 0
        self._missing = 0
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """Lines that wait for room."""
        return len(self._waiting)

    def emit(self, record: logging.LogRecord) -> None:
        """Sends the record's line, keeps it for later, or drops it."""
        try:
            data = self._encode(record)
        except Exception:  # noqa: BLE001 - a record whose values do not fit its text must not end what logged it
            data = self._encode(_record(record.levelno, f"{record.msg!s} (its values could not be formatted)"))
        with self._guard:
            self._send_waiting()
            if len(self._waiting) >= MAX_LINES or self._bytes + len(data) > MAX_BYTES:
                self._lose()
                return
            self._tell_of_missing()
            self._keep(data, 0)
            self._send_waiting()

    def flow(self) -> bool:
        """Sends what waits, as far as there is room; returns whether nothing waits any more."""
        with self._guard:
            self._send_waiting()
            if self._missing and not self._waiting:
                self._tell_of_missing()
                self._send_waiting()
            return not self._waiting

    async def keep_flowing(self, sleep: Callable[[float], Awaitable[object]]) -> None:
        """Calls `flow` now and then, for as long as the task is not cancelled.

        Args:
            sleep: of the event loop.
        """
        while True:
            # Nothing waits, as a rule: then there is no hurry to look.
            await sleep(RETRY_S if self._waiting else 5 * RETRY_S)
            self.flow()

    def finish(self, seconds: float = LAST_LINES_S) -> None:
        """Waits until all lines are sent, but no longer than that. For a process that serves nobody any more."""
        ends = time.monotonic() + seconds
        while not self.flow() and time.monotonic() < ends:
            time.sleep(0.01)

    def forget(self) -> None:
        """Leaves what waits to the process that this one was forked from."""
        with self._guard:
            self._waiting.clear()
            self._bytes = self._missing = 0

    def close(self) -> None:
        """Ends the log; what waits is lost."""
        self._sink.close()
        super().close()

    def _keep(self, data: bytes, tells_of: int) -> None:
        self._waiting.append((data, tells_of))
        self._bytes += len(data)

    def _lose(self) -> None:
        self._missing += 1
        self.dropped += 1

    def _tell_of_missing(self) -> None:
        if missing := self._missing:
            self._missing = 0
            lines = "1 log line was" if missing == 1 else f"{missing} log lines were"
            self._keep(self._encode(_record(logging.WARNING, f"{lines} dropped: nobody took them in time")), missing)

    def _send_waiting(self) -> None:
        while self._waiting:
            data, tells_of = self._waiting[0]
            try:
                sent = self._sink.send(data)
            except OSError:
                # Nobody is there: this line is lost. The next one finds out whether somebody has come.
                self._waiting.popleft()
                self._bytes -= len(data)
                if tells_of:
                    self._missing += tells_of
                else:
                    self._lose()
                continue
            if not sent:
                return
            self._bytes -= sent
            if sent < len(data):
                self._waiting[0] = (data[sent:], tells_of)
            else:
                self._waiting.popleft()


def _record(level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord("log", level, "", 0, text, None, None)


def encoder(formatter: logging.Formatter) -> Callable[[logging.LogRecord], bytes]:
    """Encodes a record as a line of text."""

    def encode(record: logging.LogRecord) -> bytes:
        text = formatter.format(record)
        return f"{text[:MAX_LINE_CHARS]}{'…' if len(text) > MAX_LINE_CHARS else ''}\n".encode(errors="backslashreplace")

    return encode


class StreamSink:
    """Standard error, or another descriptor, whatever it is.

    A socket is asked not to wait. A pipe or terminal is opened again, because the flag that makes it non-blocking would hold
    for every process that has it too. Where it cannot be opened, poll(2) tells whether there is room. A regular file has no
    reader; only its disk can make a write wait.
    """

    def __init__(self, descriptor: int = 2) -> None:
        kind = os.fstat(descriptor).st_mode
        self._socket: socket.socket | None = None
        self._asks = False
        self._own = -1
        self._descriptor = descriptor
        if stat.S_ISSOCK(kind):
            self._socket = socket.socket(fileno=os.dup(descriptor))
        elif not stat.S_ISREG(kind):
            try:
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self._descriptor = self._own = os.open(f"/proc/self/fd/{descriptor}", flags)
            except OSError:
                self._asks = True

    def send(self, data: bytes) -> int:
        """As `Sink.send`."""
        try:
            if self._socket is not None:
                return self._socket.send(data, socket.MSG_DONTWAIT)
            if self._asks:
                return os.write(self._descriptor, data[:PIPE_BUF]) if self._has_room() else 0
            return os.write(self._descriptor, data)
        except BlockingIOError:
            return 0

    def _has_room(self) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        return bool(poll.poll(0))

    def close(self) -> None:
        """As `Sink.close`; the descriptor that was given stays open."""
        if self._socket is not None:
            self._socket.close()
        if self._own >= 0:
            os.close(self._own)
            self._own = -1


class DatagramSink:
    """A Unix socket that takes each line as a datagram, and that may be made again meanwhile."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def send(self, data: bytes) -> int:
        """As `Sink.send`."""
        try:
            return self._socket.sendto(data, socket.MSG_DONTWAIT, self._path)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                return 0
            raise

    def close(self) -> None:
        """As `Sink.close`."""
        self._socket.close()


def install(queue: LogQueue, level: int = logging.INFO) -> None:
    """Makes a queue the only way of this process's log: of warnings and of exceptions that nobody catches, too."""
    root = logging.getLogger()
    root.setLevel(level)
    root.handlers[:] = [queue]
    logging.captureWarnings(True)
    logging.raiseExceptions = False
    sys.unraisablehook = _unraisable
    threading.excepthook = _in_thread


def _unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    error = unraisable.exc_value
    if error is not None:
        logging.getLogger("log").error(
            "%s", unraisable.err_msg or "ignored", exc_info=(type(error), error, error.__traceback__)
        )


def _in_thread(args: "threading.ExceptHookArgs") -> None:
    error = args.exc_value
    if error is not None and not isinstance(error, SystemExit):
        name = "?" if args.thread is None else args.thread.name
        logging.getLogger("log").error("thread %s ended", name, exc_info=(type(error), error, error.__traceback__))
