"""Tells the time for verdicts: the wall clock, clamped between what has certainly passed and what can have passed.

The floor is the last server-signed time plus what the machine has counted since (`timeanchor`), and never before the date of
this release. A wall clock behind the floor is not trusted: expiry is judged by the floor, and nothing valid is refused for it.
While the machine runs on from a time that was fresh when it came, a wall clock that is ahead is not trusted either. Beyond the
tolerance both raise the flag `suspect`.

A server-signed time that is not confirmed (`signedtime`) changes none of this. It says how late it may be (`latest`): a
license or a certificate that begins before that is not refused for its beginning.
"""

import time
from collections.abc import Callable
from functools import partial

from agentd import RELEASED
from hwsec.bootclock import read_boot_clock

from .signedtime import Witnesses
from .timeanchor import TOLERANCE_S, Reading, Since, TimeAnchor, since, tolerance

_boottime = partial(time.clock_gettime, time.CLOCK_BOOTTIME)


def _boot_reading() -> Reading:
    found = read_boot_clock()
    return Reading(found.milliseconds, found.reset_count)


class Clock:
    """Wall and monotonic time for the whole daemon.

    Args:
        wall: seconds since 1970 UTC.
        monotonic: seconds that never go back.
        boottime: seconds that never go back, and go on while the machine sleeps.
        boot: CLOCK_BOOTTIME with the boot that it belongs to; raises BackendUnavailable.

    Attributes:
        boot: as given.
        anchor: the last server-signed time that was taken; None before the first.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        boottime: Callable[[], float] | None = None,
        boot: Callable[[], Reading] | None = None,
    ) -> None:
        self.wall = wall
        self.boot = boot or _boot_reading
        self.monotonic = monotonic
        self._boottime = boottime or (_boottime if monotonic is time.monotonic else monotonic)
        self._asleep = self._boottime() - monotonic()
        self.anchor: TimeAnchor | None = None
        # The floor is this plus the monotonic time; the ceiling is that far above it.
        self._offset = RELEASED - monotonic()
        self._bounded_since: float | None = None
        self._latest_offset: float | None = None

    def set_anchor(self, anchor: TimeAnchor, boot: Reading, tpm: Reading | None) -> None:
        """Goes by a server-signed time from now on, even if that lowers the floor.

        Args:
            anchor: the time.
            boot: CLOCK_BOOTTIME now.
            tpm: the TPM's clock now, if it answers.
        """
        self.anchor = anchor
        mono = self.monotonic()
        passed: Since = since(anchor, boot, tpm)
        floor = anchor.signed + passed.least_ms / 1000
        bounded = anchor.fresh and passed.running and floor >= RELEASED
        self._offset = max(floor, RELEASED) - mono
        self._bounded_since = mono - passed.least_ms / 1000 if bounded else None

    def set_unconfirmed(self, anchor: TimeAnchor | None, boot: Reading | None = None) -> None:
        """Notes a signed time that is not confirmed, as the latest time that it may be; None ends that.

        Args:
            anchor: the time, with what the counters showed when it came.
            boot: CLOCK_BOOTTIME now; needed with an anchor.
        """
        if anchor is None or boot is None:
            self._latest_offset = None
        else:
            self._latest_offset = anchor.signed + since(anchor, boot, None).least_ms / 1000 - self.monotonic()

    def notice_sleep(self) -> None:
        """Adds the time for which the machine has slept since the last call; called every second.

        The monotonic clock, which every request reads because it is cheaper, stops while the machine sleeps.
        """
        asleep = self._boottime() - self.monotonic()
        slept = asleep - self._asleep
        if slept > 1.0:
            self._asleep = asleep
            self._offset += slept
            if self._latest_offset is not None:
                self._latest_offset += slept

    @property
    def floor(self) -> int:
        """A time that has certainly passed, whole seconds."""
        return int(self._offset + self.monotonic())

    def look(self, mono: float, wall: float) -> tuple[int, bool]:
        """Whole seconds for verdicts, and whether the wall clock is suspect.

        Args:
            mono: from `monotonic`.
            wall: from `wall`.
        """
        floor = self._offset + mono
        if wall < floor:
            return int(floor), wall + TOLERANCE_S < floor
        if self._bounded_since is not None and wall > floor + TOLERANCE_S:
            ceiling = floor + tolerance(mono - self._bounded_since)
            if wall > ceiling:
                return int(ceiling), True
        return int(wall), False

    def now(self) -> int:
        """Whole seconds for verdicts."""
        return self.look(self.monotonic(), self.wall())[0]

    def suspect(self) -> bool:
        """Whether the wall clock is behind the floor, or ahead of what can have passed, by more than the tolerance."""
        return self.look(self.monotonic(), self.wall())[1]

    def latest(self) -> int:
        """The latest time that it may be, whole seconds.

        It is later than `now` only while a signed time is not confirmed and nothing on this machine bounds the time from above.
        """
        now = self.now()
        if self._latest_offset is None or self._bounded_since is not None:
            return now
        return max(now, int(self._latest_offset + self.monotonic()))

    def ceiling(self) -> int | None:
        """The latest time at which a certificate may begin; None where nothing on this machine bounds the time from above."""
        if self._bounded_since is None:
            return None
        mono = self.monotonic()
        return int(self._offset + mono + tolerance(mono - self._bounded_since))

    def witnesses(self) -> Witnesses:
        """What the machine knows of the time now."""
        self.notice_sleep()
        mono = self.monotonic()
        exact = None if self._bounded_since is None else tolerance(mono - self._bounded_since)
        return Witnesses(self._offset + mono, exact, self.wall())

    def certain(self) -> int:
        """Whole seconds that have certainly passed. For what cannot be undone."""
        return self.floor
