"""Declares the clock of the updater: seconds that pass, and a pause. Tests have one that no time passes in."""

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds that pass."""

    def monotonic(self) -> float:
        """Seconds of a clock that never goes back."""

    def sleep(self, seconds: float) -> None:
        """Returns after so many seconds."""


class SystemClock:
    """The machine's clock."""

    def monotonic(self) -> float:
        """As time.monotonic."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """As time.sleep."""
        time.sleep(seconds)
