"""Sends log messages to the system journal through systemd-python, or to stderr where that or the journal is missing.

On stderr each line begins with its level as `<N>`, which systemd reads (sd-daemon(3)); on a terminal the prefix is left out.
"""

import logging
import sys
from pathlib import Path

JOURNAL_SOCKET = Path("/run/systemd/journal/socket")
_PREFIXES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


class PrefixFormatter(logging.Formatter):
    """Puts the sd-daemon level before the message."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        text = super().format(record).replace("\n", " | ")
        return f"<{_PREFIXES.get(record.levelno, 6)}>{text}"


def set_up(identifier: str = "license-agent") -> str:
    """Sends the root logger's messages to the journal or stderr and says to which."""
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.handlers.clear()
    if JOURNAL_SOCKET.exists() and not sys.stderr.isatty():
        try:
            # mypy looks into our folder of units, which has the name of the PyPI module.
            from systemd import journal  # type: ignore[attr-defined,unused-ignore]
        except ImportError:
            pass
        else:
            root.addHandler(journal.JournalHandler(SYSLOG_IDENTIFIER=identifier))
            return "journal"
    handler = logging.StreamHandler(sys.stderr)
    if not sys.stderr.isatty():
        handler.setFormatter(PrefixFormatter("%(message)s"))
    root.addHandler(handler)
    return "stderr"
