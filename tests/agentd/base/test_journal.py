"""Messages reach the journal in its own form, many lines and all."""

import contextlib
import logging
import socket
import sys
from pathlib import Path

import pytest

from agentd.base import journal
from agentd.base.journal import journal_encoder

pytestmark = pytest.mark.system


def fields_of(data: bytes) -> dict[str, str]:
    """Reads the native protocol as journald does."""
    found: dict[str, str] = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + size], rest[8 + size + 1 :]
        found[name.decode()] = value.decode()
        data = rest
    return found


def record(text: str, level: int = logging.WARNING, *values: object) -> logging.LogRecord:
    return logging.LogRecord("agentd.x", level, "/a/file.py", 7, text, values, None, "work")


def test_a_message_has_level_identifier_and_place() -> None:
    found = fields_of(journal_encoder("license-agent")(record("ALERT %s", logging.CRITICAL, "x=y")))
    assert found == {
        "MESSAGE": "ALERT x=y",
        "PRIORITY": "2",
        "SYSLOG_IDENTIFIER": "license-agent",
        "LOGGER": "agentd.x",
        "CODE_FILE": "/a/file.py",
        "CODE_LINE": "7",
        "CODE_FUNC": "work",
    }


def test_a_message_of_many_lines_stays_one_and_forges_no_field() -> None:
    found = fields_of(journal_encoder("license-agent")(record("first\nPRIORITY=7\n\nlast \udc80")))
    assert found["MESSAGE"] == "first | PRIORITY=7 |  | last <U+DC80>"
    assert found["PRIORITY"] == "4"


def test_the_journal_is_used_where_it_is_and_standard_error_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "socket"
    monkeypatch.setattr(journal, "JOURNAL_SOCKET", path)
    monkeypatch.setattr(journal, "install", lambda _queue: None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    with contextlib.closing(journal.set_up()) as lines:
        lines.emit(record("to standard error"))
    assert capfd.readouterr().err == "<4>to standard error\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(path))
        with contextlib.closing(journal.set_up()) as lines:
            lines.emit(record("to the journal"))
        assert fields_of(journald.recv(4096))["MESSAGE"] == "to the journal"
    assert journal.lines_dropped() == 0
