"""Sends log messages to the system journal by its own protocol, or to stderr where there is no journal. No message ever waits.

On stderr each line begins with its level as `<N>`, which systemd reads (sd-daemon(3)); on a terminal the prefix is left out.
"""

import logging
import sys
from collections.abc import Callable
from pathlib import Path

from common.logqueue import (
    MAX_LINE_CHARS,
    DatagramSink,
    LineFormatter,
    LogQueue,
    PrefixFormatter,
    StreamSink,
    encoder,
    install,
    level_of,
)

JOURNAL_SOCKET = Path("/run/systemd/journal/socket")

_installed: LogQueue | None = None


def set_up(identifier: str = "license-agent") -> LogQueue:
    """Sends the root logger's messages to the journal or to stderr."""
    global _installed
    if JOURNAL_SOCKET.exists() and not sys.stderr.isatty():
        queue = LogQueue(journal_encoder(identifier), DatagramSink(str(JOURNAL_SOCKET)))
    else:
        queue = LogQueue(encoder(LineFormatter() if sys.stderr.isatty() else PrefixFormatter()), StreamSink())
    _installed = queue
    install(queue)
    return queue


def lines_dropped() -> int:
    """Log lines of this process that were lost."""
    return 0 if _installed is None else _installed.dropped


def journal_encoder(identifier: str) -> Callable[[logging.LogRecord], bytes]:
    """Encodes a record as a datagram of the journal's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL).

    Args:
        identifier: SYSLOG_IDENTIFIER, by which `journalctl -t` finds the messages.
    """
    formatter = LineFormatter()

    def encode(record: logging.LogRecord) -> bytes:
        fields = {
            "MESSAGE": formatter.format(record)[:MAX_LINE_CHARS],
            "PRIORITY": str(level_of(record)),
            "SYSLOG_IDENTIFIER": identifier,
            "LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName or "",
        }
        return b"".join(_field(name, value) for name, value in fields.items())

    return encode


def _field(name: str, value: str) -> bytes:
    data = value.encode(errors="backslashreplace")
    if b"\n" not in data:
        return name.encode() + b"=" + data + b"\n"
    # A value of more than one line comes with its length, 64 bits, little-endian.
    return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
