"""Says what the check of a whole log found, and what could not be checked: that never counts as passed. Performs no IO.

Three outcomes: a log is `tampered` if something contradicts it; else `incomplete` if a check could not be made; else `intact`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .chain import heads_fields
from .verify import Problem, Verification
from .whole import Unseal

INTACT, INCOMPLETE, TAMPERED = "intact", "incomplete", "tampered"


@dataclass(frozen=True, slots=True)
class Keys:
    """What the caller can check with. Points are public, uncompressed, 65 bytes.

    Attributes:
        unseal: opens archives; None without a key.
        identity: of the machine's identity key, which signs anchors; None if it is not known.
        attestation: of its attestation key, which certifies checkpoints; None if it is not known.
    """

    unseal: Unseal | None = None
    identity: bytes | None = None
    attestation: bytes | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """Where the log stood once, on the word of somebody who is not on the machine.

    Attributes:
        seq: number of a checkpoint's record.
        digest: SHA-256 over the heads that it states, 64 hex characters.
        source: who says so, and when; for texts.
    """

    seq: int
    digest: str
    source: str


@dataclass(frozen=True, slots=True)
class Gap:
    """A check that could not be made.

    Attributes:
        what: what was not checked.
        needs: what would allow it.
    """

    what: str
    needs: str

    def __str__(self) -> str:
        return f"{self.what}; needs {self.needs}"


@dataclass(slots=True)
class Report:
    """What the check of a whole log found.

    Attributes:
        found: of the records.
        checked: what was checked, one text each.
        gaps: what could not be.
        acknowledged: number of the record up to which somebody else vouches for the log; 0 if nobody does.
        end_open: whether nothing says that the log did not go on after its last record.
    """

    found: Verification
    checked: list[str] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    acknowledged: int = 0
    end_open: bool = True

    @property
    def problem(self) -> Problem | None:
        """The first place where the log is not intact."""
        return self.found.problem

    @property
    def outcome(self) -> str:
        """`tampered`, `incomplete` or `intact`."""
        return TAMPERED if self.problem is not None else INCOMPLETE if self.gaps else INTACT

    def audit_fields(self) -> dict[str, Any]:
        """The report as plain values by name."""
        found = self.found
        return {
            "outcome": self.outcome,
            "ok": self.outcome == INTACT,
            "problem": None if found.problem is None else str(found.problem),
            "checked": self.checked,
            "unchecked": [{"what": gap.what, "needs": gap.needs} for gap in self.gaps],
            "records": found.records,
            "first_seq": found.first_seq,
            "last_seq": found.last_seq,
            "heads": heads_fields(found.heads),
            "last_checkpoint": found.last_checkpoint,
            "resealed": found.resealed,
            "certified": found.certified,
            "certified_through": found.covered,
            "acknowledged_through": self.acknowledged,
            "end_open": self.end_open,
        }

    def fail(self, text: str, path: Path | None = None, seq: int | None = None) -> None:
        """Notes a contradiction, if none was found before."""
        if self.found.problem is None:
            place = self.found.last_seq + 1 if seq is None else seq
            self.found.problem = Problem(0, place, text, "" if path is None else str(path))
