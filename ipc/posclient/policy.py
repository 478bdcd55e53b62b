"""Decides when a client tries again, and until when. Nothing here performs IO; the clients do.

The rule: a connection that broke, could not be made, or said SHUTTING_DOWN is tried again with a fresh nonce until the
deadline; so are RATE_LIMITED, TIMED_OUT and UNAVAILABLE, after a pause. Every other error is an answer. A request may be
repeated because no operation of the POS socket changes anything but the nonce window, a count is known by its id, and of
answers to an update the last one counts.
"""

import random
from dataclasses import dataclass
from typing import Self

from ..errors import ErrorCode, LicenseAgentError

RETRIED_CODES = frozenset({ErrorCode.SHUTTING_DOWN, ErrorCode.RATE_LIMITED, ErrorCode.TIMED_OUT, ErrorCode.UNAVAILABLE})
"""Error codes after which the same question may get an answer soon."""

FIRST_PAUSE_S = 0.01
LONGEST_PAUSE_S = 0.25
FULL_QUEUE_PAUSE_S = 0.001
"""Between two attempts to connect to an agent whose queue is full, where a client cannot wait in the kernel."""


def cause_text(error: Exception) -> str:
    """Why an attempt failed; of the system's errors their words, without Python's number in brackets."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


class AgentUnavailable(LicenseAgentError):
    """No answer came within the deadline; the cause is the last failure."""


class AgentRefused(LicenseAgentError):
    """The agent answered with an error.

    Attributes:
        code: an `ErrorCode`.
        text: what the agent says, for people.
    """

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(f"{code.name}: {text}")
        self.code = code
        self.text = text

    def __reduce__(self) -> tuple[type[Self], tuple[ErrorCode, str]]:
        # A till's worker process sends its error to the parent.
        return type(self), (self.code, self.text)


_INSTEAD = dict.fromkeys(("require", "licenses", "count_usage"), ", or validate a license token instead")


class AgentTooOld(AgentRefused):
    """The agent does not know the request: it is older than this library. A license token can be validated all the same.

    Attributes:
        op: the operation that it does not know.
    """

    def __init__(self, op: str) -> None:
        super().__init__(
            ErrorCode.UNKNOWN_OP,
            f"the agent of this machine is too old for {op!r}: update license-agent{_INSTEAD.get(op, '')}",
        )
        self.op = op

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:  # type: ignore[override]
        return type(self), (self.op,)


NEW_OPS = frozenset({"require", "licenses", "count_usage", "ota_consent"})
"""Operations that agents of release 0.1.0 do not know."""


def is_too_old(op: str, code: ErrorCode) -> bool:
    """Whether an error code says that the agent is older than the operation."""
    return code is ErrorCode.UNKNOWN_OP and op in NEW_OPS


class TokenFileError(LicenseAgentError, OSError):
    """A token file cannot be read or written. `errno`, `strerror` and `filename` are those of the `OSError`."""


@dataclass(slots=True)
class Attempts:
    """The pauses of one call. Times are in seconds on any clock that never goes back.

    Attributes:
        ends: when the deadline is reached.
        count: attempts made so far.
    """

    ends: float
    count: int = 0

    def remaining(self, now: float) -> float:
        """Seconds left, at least 0."""
        return max(self.ends - now, 0.0)

    def pause(self, now: float, jitter: float | None = None) -> float | None:
        """Seconds to wait before the next attempt; None if the deadline leaves no time for one.

        Args:
            now: the time.
            jitter: between 0 and 1; drawn at random if not given.
        """
        factor = random.random() if jitter is None else jitter  # noqa: S311 - spreads load, guards nothing
        longest = min(FIRST_PAUSE_S * 2.0 ** min(self.count, 16), LONGEST_PAUSE_S)
        self.count += 1
        wait = longest * (0.5 + factor / 2)
        return wait if wait < self.remaining(now) else None
