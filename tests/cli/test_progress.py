"""Long work shows at a terminal that it goes on, and leaves nothing behind; elsewhere it shows nothing."""

import io
import sys

import pytest

from cli import progress
from tests.support.waiting import wait_until


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def stderr_of(monkeypatch: pytest.MonkeyPatch, first_after_s: float) -> Terminal:
    """Standard error as a terminal. In the test itself: pytest puts its own in place between a fixture and the test."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "FIRST_AFTER_S", first_after_s)
    return terminal


def test_what_takes_long_counts_its_seconds_and_erases_them(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = stderr_of(monkeypatch, 0.01)
    with pytest.raises(KeyboardInterrupt), progress.waiting("rotating"):
        wait_until(lambda: "rotating ... " in stderr.getvalue(), "it shows nothing")
        raise KeyboardInterrupt
    assert stderr.getvalue().endswith("\r\x1b[K")


def test_what_ends_soon_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = stderr_of(monkeypatch, 3600.0)
    with progress.waiting("rotating"):
        pass
    assert stderr.getvalue() == ""


def test_without_a_terminal_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress.waiting("rotating"):
        pass
    steps = progress.Steps("records")
    steps.at(1, 2)
    steps.end()
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


def test_steps_are_shown_where_the_records_themselves_go_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = stderr_of(monkeypatch, 0.0)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    steps = progress.Steps("searched records")
    steps.at(1000, 5000)
    assert "searched records: 1000 of 5000" in stderr.getvalue()
    steps.end()
    assert stderr.getvalue().endswith("\r\x1b[K")
    monkeypatch.setattr(sys, "stdout", Terminal())
    quiet = progress.Steps("searched records")
    quiet.at(1000, 5000)
    assert stderr.getvalue().count("searched") == 1
