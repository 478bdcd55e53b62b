"""Turns results into text and JSON. Performs no IO."""

from typing import Any

import click

from ..agent import EXIT_INCOMPLETE, EXIT_NEGATIVE
from ..render import hanging
from .verdict import BADNESS, Result, State, worst

WORDS = {State.PASS: "pass", State.UNKNOWN: "not checked", State.WARN: "warning", State.FAIL: "FAIL"}
_COLORS = {State.PASS: "green", State.UNKNOWN: "cyan", State.WARN: "yellow", State.FAIL: "red"}
_WIDTH = max(map(len, WORDS.values()))


def exit_status(results: list[Result]) -> int:
    """0 if all checks pass, 1 if one fails, 5 if none fails but one warns or could not be made."""
    state = worst(results)
    return {State.PASS: 0, State.FAIL: EXIT_NEGATIVE}.get(state, EXIT_INCOMPLETE)


def view(results: list[Result]) -> dict[str, Any]:
    """As `--json` prints it."""
    return {
        "verdict": worst(results).value,
        "counts": {state.value: sum(result.state is state for result in results) for state in State},
        "checks": [result.view() for result in results],
    }


def text(results: list[Result], columns: int | None = None) -> str:
    """A line for each finding, the worst first, then what to do about it, and one line that counts.

    Args:
        results: of all checks.
        columns: of the terminal, into which the lines are broken; None leaves each finding on one line.
    """
    ordered = sorted(results, key=lambda result: -BADNESS.index(result.state))
    width = max((len(result.id) for result in results), default=0)
    lines = [line for result in ordered for line in _lines(result, width, columns)]
    counts = [(sum(result.state is state for result in results), state) for state in reversed(BADNESS)]
    total = ", ".join(click.style(f"{count} {_counted(state, count)}", fg=_COLORS[state]) for count, state in counts if count)
    return "\n".join([*lines, "", total])


def _counted(state: State, count: int) -> str:
    one = {State.FAIL: "fails", State.WARN: "warning", State.UNKNOWN: "not checked", State.PASS: "passes"}
    many = {State.FAIL: "fail", State.WARN: "warnings", State.UNKNOWN: "not checked", State.PASS: "pass"}
    return (one if count == 1 else many)[state]


def _lines(result: Result, width: int, columns: int | None) -> list[str]:
    if result.state is State.PASS:
        notes = "; ".join(finding.cause for finding in result.findings)
        what = f"{result.title}{f': {notes}' if notes else ''}"
        return [_line(State.PASS, result.id, width, columns, what)]
    found = []
    for finding in result.findings:
        if finding.state is not State.PASS:
            found.append(_line(finding.state, result.id, width, columns, finding.cause))
            if finding.fix:
                # A command to copy, as a rule: the terminal itself breaks it, and gives it back whole.
                found.append(f"{'':{_margin(width, columns)}}-> {finding.fix}")
    return found


def _margin(width: int, columns: int | None) -> int:
    """Where the texts begin: behind the ids; on a narrow terminal below them, since the ids would leave little of a line."""
    full = _WIDTH + width + 4
    return full if columns is None or full * 2 <= columns else 4


def _line(state: State, name: str, width: int, columns: int | None, what: str) -> str:
    word, margin = click.style(f"{WORDS[state]:{_WIDTH}}", fg=_COLORS[state]), _margin(width, columns)
    if margin == _WIDTH + width + 4:
        return f"{word}  {name:{width}}  {hanging(what, margin, columns)}"
    return f"{word}  {name}\n{'':{margin}}{hanging(what, margin, columns)}"
