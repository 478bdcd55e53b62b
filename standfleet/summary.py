"""Counts what a fleet did, and says it. Pure."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SLOT_S = 60
"""How long a slot is in which machines come back after an outage."""


def quantile(values: Sequence[float], part: float) -> float:
    """The value that `part` of the values do not exceed; 0 without values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * part) - 1)] if ordered else 0.0


@dataclass(slots=True)
class Summary:
    """What happened.

    Attributes:
        machines: how many, with clones.
        profiles: machines by profile.
        enrolled: machines that were enrolled over the wire.
        contacts: that worked.
        unreachable: contacts that found no network, which asked the server nothing.
        failed: contacts that the server did not answer, by reason.
        refused: contacts that the server refused, by code.
        ordered: directives that machines were given.
        ended: what became of them, by what the machine says.
        waits: seconds that each request of a contact that worked took.
        returns: seconds from the end of an outage to the first contact that worked, of each machine that was in it.
        seconds: of a real clock, for the whole run.
        virtual_s: of the machines' time.
    """

    machines: int = 0
    profiles: Counter[str] = field(default_factory=Counter)
    enrolled: int = 0
    contacts: int = 0
    unreachable: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    ordered: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    seconds: float = 0.0
    virtual_s: float = 0.0

    @property
    def busiest(self) -> int:
        """The most machines that came back in one slot after an outage."""
        return max(Counter(int(each // SLOT_S) for each in self.returns).values(), default=0)

    def told(self) -> dict[str, Any]:
        """The figures, as JSON has them."""
        return {
            "machines": self.machines,
            "profiles": dict(sorted(self.profiles.items())),
            "enrolled": self.enrolled,
            "contacts": self.contacts,
            "unreachable": self.unreachable,
            "failed": dict(sorted(self.failed.items())),
            "refused": dict(sorted(self.refused.items())),
            "ordered": self.ordered,
            "ended": dict(sorted(self.ended.items())),
            "seconds": round(self.seconds, 3),
            "virtual_seconds": round(self.virtual_s, 3),
            "wait_p50_ms": round(quantile(self.waits, 0.5) * 1000, 1),
            "wait_p99_ms": round(quantile(self.waits, 0.99) * 1000, 1),
            "returned": len(self.returns),
            "returned_within_s": round(max(self.returns, default=0.0)),
            "returned_busiest_minute": self.busiest,
        }

    def lines(self) -> list[str]:
        """The figures, for people."""
        by_profile = ", ".join(f"{count} {name}" for name, count in sorted(self.profiles.items()))
        rate = self.contacts / self.seconds if self.seconds else 0.0
        hours, middle, p99 = self.virtual_s / 3600, quantile(self.waits, 0.5) * 1000, quantile(self.waits, 0.99) * 1000
        found = [
            f"{self.machines} machines ({by_profile}), {self.enrolled} of them enrolled over the wire",
            f"{self.contacts} contacts in {self.seconds:.1f} s ({rate:.0f}/s), {hours:.1f} h of the machines' time",
            f"a request took {middle:.0f} ms (median), {p99:.0f} ms (p99)",
            f"{self.ordered} updates ordered; machines say: {_listed(self.ended) or 'nothing yet'}",
        ]
        if self.unreachable:
            found.append(f"{self.unreachable} contacts found no network")
        if self.returns:
            found.append(
                f"{len(self.returns)} machines came back within {max(self.returns) / 60:.0f} min after an outage, at most "
                f"{self.busiest} in one minute"
            )
        for what, counts in (("the server did not answer", self.failed), ("the server refused", self.refused)):
            if counts:
                found.append(f"{what}: {_listed(counts)}")
        return found


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common(8))
