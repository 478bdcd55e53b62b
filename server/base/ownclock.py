"""Decides whether the server may sign by its own clock. A list of rules; performs no IO.

What a wrong clock signs, agents must undo one by one. A process therefore compares its clock with CLOCK_BOOTTIME, which nobody
sets: a step stops its signing. After a restart there is the time of the last heartbeat to compare with. That the server was off
says nothing against its clock: then the kernel's word that it is synchronized is enough, or the database's clock on another
machine, or an operator's.
"""

from dataclasses import dataclass
from enum import StrEnum

STEP_S = 300
"""A clock that jumps by more has stepped."""
GAP_S = 7 * 86_400
"""How long an unsynchronized clock is believed without a heartbeat."""
SETTLE_S = 2400
"""How long the kernel must say that a clock is synchronized after it has stepped. A time daemon looks at its servers at least
every 2048 s (systemd-timesyncd) or 1024 s (chrony, ntpd), and would have set a wrong clock right by then."""


class Remote(StrEnum):
    """What the database's clock says, if it is the clock of another machine."""

    ABSENT = "absent"
    AGREES = "agrees"
    CONTRADICTS = "contradicts"


class Finding(StrEnum):
    """Whether the clock is trusted, and why."""

    ACCEPTED = "accepted"
    """An operator has accepted it."""
    DATABASE = "database"
    """The clock of the database's machine agrees."""
    NO_STEP = "no_step"
    """It has gone on since it was last trusted, in this boot of the machine."""
    SYNCHRONIZED = "synchronized"
    """The kernel says that it is synchronized."""
    FIRST = "first"
    """Nothing is known to compare it with: a new server, or one of an earlier release."""
    CONTINUES = "continues"
    """It is not synchronized, and the last heartbeat is not long ago."""
    DATABASE_CONTRADICTS = "database_contradicts"
    STEPPED = "stepped"
    """It has jumped against CLOCK_BOOTTIME since it was last trusted."""
    BEHIND = "behind"
    """It is before the last heartbeat, and not synchronized."""
    LONG_OFF = "long_off"
    """The last heartbeat is long ago, and it is not synchronized."""

    @property
    def trusted(self) -> bool:
        """Whether the server may sign."""
        return self not in REFUSALS


REFUSALS = frozenset({Finding.DATABASE_CONTRADICTS, Finding.STEPPED, Finding.BEHIND, Finding.LONG_OFF})


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of the clock.

    Attributes:
        step_s: seconds by which it has jumped against CLOCK_BOOTTIME since it was last trusted; None after another boot.
        gap_s: seconds since the last heartbeat of any process, by this clock; negative if that is later; None without one.
        synchronized_s: seconds for which the kernel has said without a break that it is synchronized; None if it does not.
        was_synchronized: the kernel said so when the clock was last trusted. After a step it may still say so by mistake.
        remote: what the database's clock says.
        accepted: an operator has accepted it as it is.
    """

    step_s: float | None = None
    gap_s: float | None = None
    synchronized_s: float | None = None
    was_synchronized: bool = True
    remote: Remote = Remote.ABSENT
    accepted: bool = False


def find(evidence: Evidence) -> Finding:
    """Whether the clock is trusted. The first rule that fits decides."""
    step, gap, synchronized = evidence.step_s, evidence.gap_s, evidence.synchronized_s
    settled = synchronized is not None and synchronized >= (SETTLE_S if evidence.was_synchronized else 0)
    rules = (
        (evidence.accepted, Finding.ACCEPTED),
        (step is not None and abs(step) <= STEP_S, Finding.NO_STEP),
        (evidence.remote is Remote.CONTRADICTS, Finding.DATABASE_CONTRADICTS),
        (evidence.remote is Remote.AGREES, Finding.DATABASE),
        (step is not None and settled, Finding.SYNCHRONIZED),
        (step is not None, Finding.STEPPED),
        (gap is None, Finding.FIRST),
        (synchronized is not None, Finding.SYNCHRONIZED),
        (gap is not None and gap < -STEP_S, Finding.BEHIND),
        (gap is not None and gap > GAP_S, Finding.LONG_OFF),
    )
    return next((finding for holds, finding in rules if holds), Finding.CONTINUES)


ACCEPT = "check it (date -u, timedatectl), then run 'license-server clock accept'"


def describe(finding: Finding, evidence: Evidence) -> str:
    """The finding in words, for an operator."""
    step, gap = evidence.step_s or 0.0, evidence.gap_s or 0.0
    texts = {
        Finding.ACCEPTED: "an operator has accepted the clock",
        Finding.DATABASE: "the clock agrees with that of the database's machine",
        Finding.NO_STEP: "the clock has gone on without a step",
        Finding.SYNCHRONIZED: "the kernel says that the clock is synchronized",
        Finding.FIRST: "there is no heartbeat yet to compare the clock with",
        Finding.CONTINUES: "the clock is not synchronized, and the last heartbeat is not long ago",
        Finding.DATABASE_CONTRADICTS: f"the clock of the database's machine is another; {ACCEPT}",
        Finding.STEPPED: f"the server's clock has jumped by {_in_words(step)}; {ACCEPT}. Setting it right, or "
        f"{SETTLE_S // 60} minutes of synchronization, ends this too",
        Finding.BEHIND: f"the server's clock is {_in_words(-gap)} before the last heartbeat and is not synchronized; {ACCEPT}. "
        "Synchronization ends this too",
        Finding.LONG_OFF: f"the last heartbeat was {_in_words(gap)} ago by the server's clock, which is not synchronized; "
        f"{ACCEPT}. Synchronization ends this too",
    }
    return texts[finding]


def _in_words(seconds: float) -> str:
    sign, rest = "-" if seconds < 0 else "", abs(round(seconds))
    for name, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if rest >= 2 * size:
            return f"{sign}{rest // size} {name}"
    return f"{sign}{rest} seconds"
