"""What a scenario has seen: a line for each check as it happens, and a summary. Nothing here knows the guest."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Report:
    """Checks in the order in which they were made.

    Attributes:
        write: receives each line.
    """

    write: Callable[[str], None]
    passed: int = 0
    failed: list[str] = field(default_factory=list)
    times: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A part of the scenario; an exception in it counts as a failed check, and ends the scenario."""
        self.write(f"\n== {name}")
        began = time.monotonic()
        try:
            yield
        except Exception as error:
            self.check(name, False, f"{type(error).__name__}: {error}")
            raise
        finally:
            self.times.append((name, time.monotonic() - began))

    def check(self, what: str, good: bool, found: object = "") -> None:
        """One thing that must be so, with what was found."""
        text = str(found).strip()
        shown = f": {text}" if text else ""
        if good:
            self.passed += 1
            self.write(f"  ok    {what}{shown[:160]}")
        else:
            self.failed.append(what)
            self.write(f"  FAIL  {what}{shown}")

    def same(self, what: str, expected: object, found: object) -> None:
        """`found` must equal `expected`."""
        self.check(what, found == expected, found if found == expected else f"{found!r} instead of {expected!r}")

    def summary(self) -> int:
        """Prints it; the exit status."""
        self.write("")
        for name, seconds in self.times:
            self.write(f"{seconds:6.0f} s  {name}")
        self.write("")
        for what in self.failed:
            self.write(f"failed: {what}")
        self.write(f"e2e: {self.passed} passed, {len(self.failed)} failed in {sum(took for _, took in self.times):.0f} s")
        return 1 if self.failed or not self.passed else 0
