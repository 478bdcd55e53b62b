"""Decides when the TPM is asked again, and when an answer that nobody signs is believed. Performs no IO of its own.

A TPM authenticates its answers by the session's HMAC, but never a response code that says "no" (Part 1, 18.10). Anybody on the
bus, or one disturbed bit, can make one up. So after an answer that does not fit, and after each one that only a response code
supports, the same is asked over a fresh connection. The conclusion is believed when nothing else was answered on `CONNECTIONS`
connections over `SPAN_S` seconds. Otherwise the TPM is unreliable until its answers fit again.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Generic, TypeVar

from common.statetable import Table

from .errors import BackendUnavailable, HwsecError, UnreliableHardware

log = logging.getLogger(__name__)

T = TypeVar("T")

DELAYS_S = (0.0, 0.25, 1.0, 2.0)
"""Before the second, third, … attempt of one call."""
CONNECTIONS = 3
SPAN_S = 3.0
LIMIT_S = 10.0
"""A call that has taken longer makes no further attempt."""
QUIET_S = 40.0
"""So long after the last answer that did not fit, one that fits ends the state `unreliable`, whatever was asked.

Longer than the agent's looks at the status are apart, so that each of these states raises its alert."""


class Trust(StrEnum):
    """How far one kind of call is believed."""

    RELIABLE = "reliable"
    REPEATING = "repeating"
    UNRELIABLE = "unreliable"
    CONCLUDED = "concluded"


class Event(StrEnum):
    """What an attempt shows."""

    FITS = "fits"
    """An answer that the TPM authenticates."""
    DOUBTFUL = "doubtful"
    """An answer that does not fit, or that nobody signs."""
    REPEATED = "repeated"
    """The same unsigned answer as before, often and long enough."""
    SPENT = "spent"
    """No attempt of this call is left."""
    QUIET = "quiet"
    """Other calls fit, and nothing has been doubtful for a while."""


TRANSITIONS = Table(
    "a call to the TPM",
    {
        Trust.RELIABLE: {Event.FITS: Trust.RELIABLE, Event.DOUBTFUL: Trust.REPEATING},
        Trust.REPEATING: {
            Event.FITS: Trust.RELIABLE,
            Event.DOUBTFUL: Trust.REPEATING,
            Event.REPEATED: Trust.CONCLUDED,
            Event.SPENT: Trust.UNRELIABLE,
        },
        Trust.UNRELIABLE: {
            Event.FITS: Trust.RELIABLE,
            Event.DOUBTFUL: Trust.UNRELIABLE,
            Event.REPEATED: Trust.CONCLUDED,
            Event.SPENT: Trust.UNRELIABLE,
            Event.QUIET: Trust.RELIABLE,
        },
        Trust.CONCLUDED: {Event.FITS: Trust.RELIABLE, Event.DOUBTFUL: Trust.REPEATING, Event.REPEATED: Trust.CONCLUDED},
    },
)


@dataclass(frozen=True, slots=True)
class Unsigned(Generic[T]):
    """A result of an attempt that rests on an answer which nobody signs."""

    value: T


class Verdict(Enum):
    """What follows from a doubtful answer."""

    AGAIN = "ask again over a fresh connection"
    BELIEVE = "it is believed"
    STOP = "the TPM is unreliable"


@dataclass(slots=True)
class _Doubt:
    state: Trust = Trust.RELIABLE
    claim: object = None
    since: float = 0.0
    last: float = 0.0
    connections: int = 0


@dataclass(slots=True)
class Doubts:
    """What is doubtful at present, by kind of call. Times are seconds of a clock that never goes back.

    Attributes:
        unfitting: doubtful answers since the start.
    """

    unfitting: int = 0
    _by_call: dict[str, _Doubt] = field(default_factory=dict)

    def fits(self, call: str, now: float) -> None:
        """An answer has come that the TPM authenticates."""
        self._by_call.pop(call, None)
        for name, doubt in list(self._by_call.items()):
            if doubt.state is Trust.UNRELIABLE and now - doubt.last >= QUIET_S:
                doubt.state = TRANSITIONS.step(doubt.state, Event.QUIET)
                del self._by_call[name]

    def doubtful(self, call: str, claim: object, attempt: int, spent_s: float, now: float) -> Verdict:
        """An answer has come that does not fit, or that nobody signs.

        Args:
            call: what was asked.
            claim: what the answer says, to compare it with the next; None for one that says nothing.
            attempt: how many of this call have been made, this one among them.
            spent_s: seconds since the first of them.
            now: when it came.
        """
        self.unfitting += 1
        doubt = self._by_call.setdefault(call, _Doubt(since=now))
        if claim is None or claim != doubt.claim:
            doubt.claim, doubt.since, doubt.connections = claim, now, 0
        doubt.connections += 1
        doubt.last = now
        if claim is not None and doubt.connections >= CONNECTIONS and now - doubt.since >= SPAN_S:
            if doubt.state is Trust.RELIABLE:
                doubt.state = TRANSITIONS.step(doubt.state, Event.DOUBTFUL)
            doubt.state = TRANSITIONS.step(doubt.state, Event.REPEATED)
            return Verdict.BELIEVE
        doubt.state = TRANSITIONS.step(doubt.state, Event.DOUBTFUL)
        if attempt <= len(DELAYS_S) and spent_s < LIMIT_S:
            return Verdict.AGAIN
        doubt.state = TRANSITIONS.step(doubt.state, Event.SPENT)
        return Verdict.STOP

    @property
    def unreliable(self) -> tuple[str, ...]:
        """The calls whose attempts were all used up."""
        return tuple(call for call, doubt in self._by_call.items() if doubt.state is Trust.UNRELIABLE)

    def copy(self) -> "Doubts":
        """For a connection that replaces this one."""
        return Doubts(self.unfitting)


class Repeater:
    """Makes calls to the TPM until an answer fits, or is believed.

    Args:
        reconnect: closes the connection; the next attempt makes a fresh one.
        stopped: whether no further attempt may be made, because another thread has taken over.
        doubts: what earlier calls have left.
        monotonic: seconds of a clock that never goes back.
        sleep: waits so many seconds; on the hardware's own thread.
    """

    def __init__(
        self,
        reconnect: Callable[[], None],
        stopped: Callable[[], bool],
        doubts: Doubts,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._reconnect = reconnect
        self._stopped = stopped
        self.doubts = doubts
        self._monotonic = monotonic
        self._sleep = sleep
        self._nested = False

    def settle(self, call: str, attempt: Callable[[], T | Unsigned[T]]) -> T:
        """Runs `attempt` until it returns or raises something that holds.

        Args:
            call: its kind. One kind's answers say nothing about another's.
            attempt: may be run again after any error: it finds out what an earlier run has done.

        Raises:
            UnreliableHardware: no answer fits.
            HwsecError: what `attempt` has raised, and the TPM authenticates, or has repeated long enough.
        """
        if self._nested:  # the outermost call starts again as a whole
            inner = attempt()
            return inner.value if isinstance(inner, Unsigned) else inner
        began, attempts = self._monotonic(), 0
        while True:
            attempts += 1
            value: Unsigned[T] | None = None
            self._nested = True
            try:
                result = attempt()
            except HwsecError as error:
                if not error.unsigned or self._stopped():
                    raise
                claim, problem = _claim_of(error), error
            else:
                if not isinstance(result, Unsigned):
                    self.doubts.fits(call, self._monotonic())
                    return result
                value, claim, problem = result, ("value", result.value), UnreliableHardware("it refuses something")
            finally:
                self._nested = False
            now = self._monotonic()
            verdict = self.doubts.doubtful(call, claim, attempts, now - began, now)
            self._reconnect()
            if verdict is Verdict.BELIEVE:
                if value is not None:
                    return value.value
                raise problem
            if verdict is Verdict.STOP:
                raise _last_word(problem, attempts) from problem
            if attempts == 1:
                log.warning("the TPM's answer does not fit or is not authenticated; asking again: %s", problem)
            self._sleep(DELAYS_S[attempts - 1])


def _claim_of(error: HwsecError) -> object:
    """What an error says of the TPM; None where nothing was answered, or nothing that could be read."""
    if isinstance(error, UnreliableHardware) or type(error) is BackendUnavailable:
        return None
    return type(error).__name__, str(error)


def _last_word(problem: HwsecError, attempts: int) -> HwsecError:
    if type(problem) is BackendUnavailable:  # it did not answer at all
        return problem
    return UnreliableHardware(
        f"the TPM's answers do not fit, on {attempts} connections in a row (the last: {problem}); the bus to the TPM is "
        "disturbed, or somebody changes what passes on it; try again, and check the TPM's seat, its bus and who may open it"
    )
