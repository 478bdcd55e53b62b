"""A log whose reader is frozen, stopped or gone makes nobody wait; what is lost is counted and told."""

import asyncio
import contextlib
import gc
import linecache
import logging
import os
import pty
import socket
import subprocess
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.logqueue import (
    MAX_BYTES,
    MAX_LINE_CHARS,
    MAX_LINES,
    DatagramSink,
    LineFormatter,
    LogQueue,
    PrefixFormatter,
    StreamSink,
    encoder,
    install,
)
from tests.support.waiting import READY_S, wait_until

pytestmark = pytest.mark.system

LINES = encoder(LineFormatter())


class Frozen:
    """Takes nothing."""

    def send(self, _data: bytes) -> int:
        return 0

    def close(self) -> None:
        pass


class Taker(Frozen):
    """Takes everything."""

    def __init__(self, sent: list[bytes]) -> None:
        self._sent = sent

    def send(self, data: bytes) -> int:
        self._sent.append(data)
        return len(data)


@contextlib.contextmanager
def logger_of(queue: LogQueue) -> Iterator[logging.Logger]:
    """A logger that nothing else hears."""
    logger = logging.Logger("tests")
    logger.addHandler(queue)
    yield logger
    logger.removeHandler(queue)


CloseLater = Callable[[LogQueue], LogQueue]


@pytest.fixture
def closed_later() -> Iterator[CloseLater]:
    """Closes queues at the end of the test."""
    made: list[LogQueue] = []
    yield lambda queue: (made.append(queue), queue)[1]
    for queue in made:
        queue.close()


def read_all(descriptor: int) -> str:
    """What is in a pipe or terminal now."""
    os.set_blocking(descriptor, False)
    found = b""
    with contextlib.suppress(BlockingIOError):
        while part := os.read(descriptor, 65_536):
            found += part
    return found.decode()


def drained(queue: LogQueue, read: Callable[[], str]) -> str:
    """Everything that the queue has to send."""
    text = ""
    while not queue.flow():
        text += read()
    return text + read()


def test_a_journal_that_nobody_reads_makes_nobody_wait(tmp_path: Path, closed_later: CloseLater) -> None:
    path = tmp_path / "journal"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(path))
        queue = closed_later(LogQueue(LINES, DatagramSink(str(path))))
        with logger_of(queue) as logger:
            for number in range(MAX_LINES + 200):
                logger.warning("line %d", number)
        assert queue.waiting == MAX_LINES
        assert 0 < queue.dropped < 200
        journald.setblocking(False)

        def read() -> str:
            text = ""
            with contextlib.suppress(BlockingIOError):
                while True:
                    text += journald.recv(65_536).decode()
            return text

        lines = drained(queue, read).splitlines()
    kept = MAX_LINES + 200 - queue.dropped
    assert lines[:-1] == [f"line {number}" for number in range(kept)]
    assert lines[-1] == f"{queue.dropped} log lines were dropped: nobody took them in time"


def test_a_journal_that_comes_back_hears_how_much_it_missed(tmp_path: Path, closed_later: CloseLater) -> None:
    path = tmp_path / "journal"
    queue = closed_later(LogQueue(LINES, DatagramSink(str(path))))
    with logger_of(queue) as logger:
        logger.warning("nobody is there")
        assert (queue.dropped, queue.waiting) == (1, 0)
        queue.flow()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
            journald.bind(str(path))
            logger.warning("here again")
            assert journald.recv(1000) == b"1 log line was dropped: nobody took them in time\n"
            assert journald.recv(1000) == b"here again\n"
    assert queue.dropped == 1


def test_a_pipe_whose_reader_has_stopped_makes_nobody_wait(closed_later: CloseLater) -> None:
    reading, writing = os.pipe()
    flags = os.get_blocking(writing)
    queue = closed_later(LogQueue(encoder(PrefixFormatter()), StreamSink(writing)))
    with logger_of(queue) as logger:
        for number in range(3000):
            logger.warning("%d %s", number, "x" * 1000)
    assert queue.dropped and queue.waiting
    assert os.get_blocking(writing) is flags, "other processes have this pipe too"
    lines = drained(queue, lambda: read_all(reading)).splitlines()
    assert all(line.startswith("<4>") for line in lines)
    assert [line[3:].split()[0] for line in lines[:-1]] == [str(number) for number in range(3000 - queue.dropped)]
    assert lines[-1].startswith(f"<4>{queue.dropped} log lines were dropped")
    os.close(reading)
    os.close(writing)


def test_a_pipe_that_cannot_be_opened_again_is_asked_for_room(
    monkeypatch: pytest.MonkeyPatch, closed_later: CloseLater
) -> None:
    reading, writing = os.pipe()

    def refuse(*_: object) -> int:
        raise PermissionError

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        sink = StreamSink(writing)
    queue = closed_later(LogQueue(LINES, sink))
    with logger_of(queue) as logger:
        for number in range(100):
            logger.warning("%d %s", number, "x" * 8000)
    lines = drained(queue, lambda: read_all(reading)).splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [str(number) for number in range(100 - queue.dropped)]
    os.close(reading)
    os.close(writing)


def test_a_reader_that_has_gone_loses_lines_and_stops_nothing(closed_later: CloseLater) -> None:
    reading, writing = os.pipe()
    queue = closed_later(LogQueue(LINES, StreamSink(writing)))
    os.close(reading)
    with logger_of(queue) as logger:
        for _ in range(10):
            logger.warning("to nobody")
    assert (queue.dropped, queue.waiting) == (10, 0)
    os.close(writing)


def test_a_stream_socket_as_systemd_gives_it_makes_nobody_wait(closed_later: CloseLater) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        queue = closed_later(LogQueue(LINES, StreamSink(ours.fileno())))
        with logger_of(queue) as logger:
            for number in range(3000):
                logger.warning("%d %s", number, "x" * 500)
        assert queue.dropped
        assert ours.getblocking()
        lines = drained(queue, lambda: read_all(theirs.fileno())).splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [str(number) for number in range(3000 - queue.dropped)]


def test_a_terminal_that_was_stopped_makes_nobody_wait(closed_later: CloseLater) -> None:
    """As with Ctrl+S."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    termios.tcflow(slave, termios.TCOOFF)
    queue = closed_later(LogQueue(LINES, StreamSink(slave)))
    with logger_of(queue) as logger:
        for number in range(100):
            logger.warning("line %d %s", number, "x" * 1000)
    assert queue.waiting
    termios.tcflow(slave, termios.TCOON)
    text = drained(queue, lambda: read_all(master))
    assert text.startswith("line 0 ") and "line 99 " in text
    os.close(slave)
    os.close(master)


def test_what_waits_is_bounded_in_bytes_and_each_line_in_length() -> None:
    queue = LogQueue(LINES, Frozen())
    with logger_of(queue) as logger:
        logger.warning("x" * 10 * MAX_LINE_CHARS)
        ((line, _),) = queue._waiting
        assert len(line) <= MAX_LINE_CHARS + 4
        for _ in range(200):
            logger.warning("x" * MAX_LINE_CHARS)
    assert sum(len(data) for data, _ in queue._waiting) <= MAX_BYTES < sum(len(data) for data, _ in queue._waiting) + 9000


def test_a_loop_keeps_the_log_flowing(closed_later: CloseLater) -> None:
    reading, writing = os.pipe()
    queue = closed_later(LogQueue(LINES, StreamSink(writing)))

    async def check() -> str:
        flowing = asyncio.create_task(queue.keep_flowing(asyncio.sleep))
        with logger_of(queue) as logger:
            for _ in range(1000):
                logger.warning("x" * 500)
        text = ""
        async with asyncio.timeout(READY_S):
            while "in time" not in text:
                text += read_all(reading)
                await asyncio.sleep(0.01)
        flowing.cancel()
        return text

    assert asyncio.run(check()).endswith(f"\n{queue.dropped} log lines were dropped: nobody took them in time\n")
    assert queue.dropped
    os.close(reading)
    os.close(writing)


def test_the_end_of_a_process_waits_no_longer_than_asked() -> None:
    queue = LogQueue(LINES, Frozen())
    with logger_of(queue) as logger:
        logger.warning("never taken")
    began = time.monotonic()
    queue.finish(0.1)
    assert time.monotonic() - began < READY_S / 2


def test_a_traceback_reads_no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk that holds it may not answer."""
    read: list[str] = []
    for name in ("updatecache", "checkcache"):
        true = getattr(linecache, name)
        monkeypatch.setattr(linecache, name, lambda *given, name=name, true=true: (read.append(name), true(*given))[1])
    sent: list[bytes] = []
    queue = LogQueue(LINES, Taker(sent))
    with logger_of(queue) as logger:
        try:
            try:
                raise KeyError("inner")
            except KeyError as error:
                raise ValueError("outer") from error
        except ValueError:
            logger.exception("it failed")
        logger.error("group", exc_info=ExceptionGroup("both", [OSError("one"), TypeError("two")]))
    assert not read
    text = b"".join(sent).decode()
    assert text.index("it failed") < text.index("KeyError: 'inner'") < text.index("ValueError: outer")
    assert f'File "{__file__}", line ' in text and "in test_a_traceback_reads_no_source" in text
    assert "OSError: one" in text and "TypeError: two" in text


@pytest.mark.parametrize("formatter", [LineFormatter(), PrefixFormatter()], ids=["terminal and journal", "standard error"])
def test_what_others_have_written_makes_no_line_of_its_own_and_drives_no_terminal(formatter: LineFormatter) -> None:
    """journalctl shows a message with such bytes as `blob data`: an alert that nobody could read."""
    sent: list[bytes] = []
    queue = LogQueue(encoder(formatter), Taker(sent))
    with logger_of(queue) as logger:
        logger.critical("ALERT break-glass: %s", "leak\n<6>all is well\r\x1b[2J\x9b1m\u202e\ud800 café")
        try:
            raise ValueError("\x1b[31mred")
        except ValueError:
            logger.exception("it failed")
    line, failed = b"".join(sent).decode().split("\n", 1)
    assert line.removeprefix("<2>") == (
        "ALERT break-glass: leak | <6>all is well<U+000D><U+001B>[2J<U+009B>1m<U+202E><U+D800> café"
    )
    assert "\x1b" not in failed and "ValueError: <U+001B>[31mred" in failed


def test_a_line_whose_values_do_not_fit_is_told_all_the_same() -> None:
    sent: list[bytes] = []
    queue = LogQueue(LINES, Taker(sent))
    with logger_of(queue) as logger:
        logger.error("only %d", "text")
    assert sent == [b"only %d (its values could not be formatted)\n"]


def test_threads_and_finalizers_log_through_the_same_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []
    queue = LogQueue(LINES, Taker(sent))
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(logging, "raiseExceptions", True)
    try:
        install(queue)

        class Fails:
            def __del__(self) -> None:
                raise OSError("in a finalizer")

        def fail() -> None:
            raise OSError("in a thread")

        Fails()
        gc.collect()
        thread = threading.Thread(target=fail, name="worker")
        thread.start()
        thread.join()
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        logging.captureWarnings(False)
    text = b"".join(sent).decode()
    assert "OSError: in a finalizer" in text
    assert "thread worker ended" in text and "OSError: in a thread" in text


PROGRAMS = {
    "agent": "from agentd.base import journal; from pathlib import Path; journal.JOURNAL_SOCKET = Path('/nowhere'); "
    "lines = journal.set_up()",
    "link": "from common.logqueue import *; lines = LogQueue(encoder(PrefixFormatter()), StreamSink()); install(lines)",
    "server": "from server.base.jsonlog import log_to_stderr; lines = log_to_stderr()",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_whose_standard_error_is_stuck_goes_on_and_ends(program: str) -> None:
    code = PROGRAMS[program] + (
        "\nimport logging, sys\n"
        "for n in range(5000): logging.getLogger('x').error('line %d %s', n, 'x' * 200)\n"
        "print(lines.dropped); sys.stdout.flush(); lines.finish()"
    )
    reading, writing = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=writing, text=True)
    os.close(writing)
    try:
        out, _ = process.communicate(timeout=READY_S)
        assert process.returncode == 0 and int(out) > 1000
    finally:
        process.kill()
        process.wait()
        os.close(reading)


def test_nothing_waits_while_the_reader_is_quick(tmp_path: Path, closed_later: CloseLater) -> None:
    file = (tmp_path / "log").open("wb")
    queue = closed_later(LogQueue(LINES, StreamSink(file.fileno())))
    with logger_of(queue) as logger:
        for number in range(2 * MAX_LINES):
            logger.warning("line %d", number)
    assert (queue.dropped, queue.waiting) == (0, 0)
    wait_until(lambda: (tmp_path / "log").read_text().count("\n") == 2 * MAX_LINES, lambda: "lines are missing")
    file.close()
