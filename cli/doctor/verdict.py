"""What a check is and what it finds. A check that could not be made is `unknown`, never a pass. Performs no IO.

Each check is two functions: `read` looks at the machine and returns plain values, `judge` decides over them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

from common.files import os_problem
from ipc.posclient.policy import AgentRefused, AgentUnavailable

from .machine import CannotTell, Machine

Seen = TypeVar("Seen")


class State(StrEnum):
    """How a check ended, from good to bad."""

    PASS = "pass"
    UNKNOWN = "unknown"
    WARN = "warn"
    FAIL = "fail"


BADNESS = tuple(State)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check has to say.

    Attributes:
        state: what it makes of the check.
        cause: what is so, in one sentence without a period at its end.
        fix: a command that repairs it, or what to do; empty where nothing is to do.
    """

    state: State
    cause: str
    fix: str = ""


Judgment = list[Finding]
"""Everything that a check has to say; an empty one is a pass."""


def note(cause: str) -> Finding:
    """What is worth saying of a check that passes."""
    return Finding(State.PASS, cause)


def warn(cause: str, fix: str = "") -> Finding:
    """Nothing is broken; somebody should look."""
    return Finding(State.WARN, cause, fix)


def fail(cause: str, fix: str = "") -> Finding:
    """Something is broken, or a protection is missing."""
    return Finding(State.FAIL, cause, fix)


def unknown(cause: str, fix: str = "") -> Finding:
    """It could not be found out."""
    return Finding(State.UNKNOWN, cause, fix)


@dataclass(frozen=True, slots=True)
class Result:
    """What a check found.

    Attributes:
        id: of the check.
        title: of the check.
        findings: the worst first.
    """

    id: str
    title: str
    findings: tuple[Finding, ...]

    @property
    def state(self) -> State:
        """The worst of its findings; a pass without any."""
        return max((finding.state for finding in self.findings), key=BADNESS.index, default=State.PASS)

    def view(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "id": self.id,
            "state": self.state.value,
            "title": self.title,
            "findings": [{"state": each.state.value, "cause": each.cause, "fix": each.fix} for each in self.findings],
        }


@dataclass(frozen=True, slots=True)
class Check(Generic[Seen]):
    """One row of the table.

    Attributes:
        id: its name for programs; it never changes.
        title: what is so if it passes.
        looks_at: which files, sockets or programs it reads, for the documents.
        read: looks; raises CannotTell for what it cannot see.
        judge: decides over what was read.
    """

    id: str
    title: str
    looks_at: str
    read: Callable[[Machine], Seen]
    judge: Callable[[Seen], Judgment]

    def make(self, machine: Machine) -> Result:
        """Makes the check. Whatever goes wrong in it is a finding: one check must not cost the others."""
        try:
            found = self.judge(self.read(machine))
        except CannotTell as error:
            found = [unknown(str(error), error.needs)]
        except OSError as error:
            found = [unknown(f"{os_problem(error)}", machine.ask_for_root())]
        except (AgentRefused, AgentUnavailable) as error:
            found = [unknown(str(error))]
        except Exception as error:  # noqa: BLE001 - what it read was not as expected; the other checks go on, and this is no pass
            found = [unknown(f"what was read is not as expected ({type(error).__name__}: {error})")]
        return Result(self.id, self.title, tuple(sorted(found, key=lambda each: -BADNESS.index(each.state))))


def worst(results: list[Result]) -> State:
    """The worst state among results; `pass` if there is none."""
    return max((result.state for result in results), key=BADNESS.index, default=State.PASS)
