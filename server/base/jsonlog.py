"""Log lines as JSON on standard error. No token, no secret, no text of an exception: those may carry what was worked on."""

import json
import logging
import sys
import time


class JsonFormatter(logging.Formatter):
    """One record, one line: time, level, event and the record's `fields`."""

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


def log_to_stderr(level: int = logging.INFO) -> None:
    """Sends what the server and its libraries log to standard error, as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("license_server").setLevel(level)


def place_of(problem: BaseException) -> str:
    """File and line in which an exception was raised."""
    trace = problem.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
