"""Reports each change of the verdict on a token file. Time, sleep and output are parameters."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ..answers import Reason, Verdict
from ..clientwire import may_be_sent
from ..errors import LicenseAgentError
from .client import LicenseClient
from .policy import AgentRefused, TokenFileError
from .tokenfile import TokenFile

FLAGS = ("degraded", "clock_suspect", "reissue_due", "refreshed")
Found = Verdict | LicenseAgentError


def ask(client: LicenseClient, file: TokenFile) -> Found:
    """The verdict on what the file holds now, or why there is none. A newer token stays with the agent."""
    try:
        token = file.read(complete=False)
        return client.validate(token) if may_be_sent(token) else Verdict(valid=False, reason=Reason.MALFORMED)
    except LicenseAgentError as error:
        return error


def watch(
    question: Callable[[], Found],
    report: Callable[[Found], None],
    *,
    every: float,
    length: float | None,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> Found:
    """Asks again and again, reports the first answer and each that differs from the one before, and returns the last.

    Args:
        question: asks once.
        report: takes an answer.
        every: seconds from one answer to the next question.
        length: seconds after which it ends; None: never.
        clock: seconds, on any clock that never goes back.
        sleep: waits for so many seconds.
    """
    ends = None if length is None else clock() + length
    before: tuple[object, ...] | None = None
    while True:
        found = question()
        if _essence(found) != before:
            before = _essence(found)
            report(found)
        left = every if ends is None else ends - clock()
        if left <= 0:
            return found
        sleep(min(every, left))


def _essence(found: Found) -> tuple[object, ...]:
    if isinstance(found, Verdict):
        return tuple(sorted(asdict(found).items(), key=lambda item: item[0]))
    # The text may count seconds; the kind is what changes.
    return type(found), getattr(found, "code", None), getattr(found, "errno", None)


def as_json(found: Found, now: float) -> str:
    """One line for programs."""
    line: dict[str, Any] = {"time": int(now), "verdict": None, "error": None}
    if isinstance(found, Verdict):
        line["verdict"] = {name: value for name, value in asdict(found).items() if name != "refresh_error"}
    else:
        line["error"] = {"kind": type(found).__name__, "text": str(found)}
    return json.dumps(line)


def as_text(found: Found, now: float) -> str:
    """One line for people."""
    head = utc(now)
    if not isinstance(found, Verdict):
        kind = "refused" if isinstance(found, AgentRefused) else "file" if isinstance(found, TokenFileError) else "no answer"
        return f"{head}  {kind}: {printable(str(found))}"
    words = [head, "valid" if found.valid else f"not valid: {found.reason}"]
    if found.expires_at is not None:
        words.append(f"expires {utc(found.expires_at)}")
    if found.secret_state is not None:
        words.append(f"secret {printable(found.secret_state)}")
    words += [name.replace("_", " ") for name in FLAGS if getattr(found, name)]
    return "  ".join(words)


def utc(seconds: float) -> str:
    """A time for people."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(min(max(seconds, 0), 253_402_300_799)))


def printable(text: str) -> str:
    """Text for a terminal: what drives it or cannot be seen becomes a question mark."""
    return "".join(character if character.isprintable() else "?" for character in text)
