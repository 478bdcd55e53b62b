"""Writes the log as JSON lines to standard error.

A line has no token, no secret and no exception text: an exception may quote what was being processed.
"""

import json
import logging
import time

from common.logqueue import LogQueue, StreamSink, encoder, install


class JsonFormatter(logging.Formatter):
    """Formats a record as one line: time, level, event and the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        content = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage()[:500],
            **getattr(record, "fields", {}),
        }
        if record.exc_info is not None and record.exc_info[1] is not None:
            content |= {"kind": type(record.exc_info[1]).__name__, "at": place_of(record.exc_info[1])}
        return json.dumps(content, separators=(",", ":"), ensure_ascii=False)


def log_to_stderr(level: int = logging.INFO) -> LogQueue:
    """Logs the server's events, and its libraries' warnings, to standard error; no request waits for who reads that."""
    lines = LogQueue(encoder(JsonFormatter()), StreamSink())
    install(lines, logging.WARNING)
    logging.getLogger("license_server").setLevel(level)
    return lines


def place_of(problem: BaseException) -> str:
    """The file and line where an exception was raised."""
    trace = problem.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
