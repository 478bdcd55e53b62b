"""Reads a runbook: its scenarios, the commands of each as they are written, and the results that the page states.

A scenario is a heading of the third level. A block ```sh has commands; ```text behind it has what they print: each line in its
order, other lines may be between them, `…` is for anything, `$NAME` for the value of a variable.
"""

import re
from dataclasses import dataclass

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Step:
    """Commands that are run together.

    Attributes:
        commands: as they are on the page.
        says: lines of the result that the page states; none if it states nothing.
    """

    commands: str
    says: tuple[str, ...] = ()


def scenarios(page: str) -> dict[str, list[Step]]:
    """The steps of each scenario of a page, by its heading, in the page's order.

    Raises:
        ValueError: a block is neither commands nor a result behind commands: it would not be rehearsed.
    """
    found = {}
    for part in re.split(r"^### ", page, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        found[heading] = _steps(heading, re.split(r"^#", body, maxsplit=1, flags=re.MULTILINE)[0] if "\n## " in body else body)
    return found


def settings(page: str) -> str:
    """The lines that the page has the reader run before every scenario."""
    (step,) = _steps("", page.partition("\n### ")[0])
    return step.commands


def _steps(heading: str, body: str) -> list[Step]:
    steps: list[Step] = []
    for language, text in _BLOCK.findall(body):
        if language == "sh":
            steps.append(Step(text))
        elif language == "text" and steps and not steps[-1].says:
            steps[-1] = Step(steps[-1].commands, tuple(text.splitlines()))
        else:
            raise ValueError(f"{heading}: a block that is neither commands nor their result: {text[:50]!r}")
    if re.search(r"^    (?:license-|systemctl )", body, re.MULTILINE):
        raise ValueError(f"{heading}: commands outside of a block would not be rehearsed")
    return steps


def missing(says: tuple[str, ...], printed: str, values: dict[str, str]) -> str | None:
    """The first line of a stated result that what was printed does not have in its place; None if all are there."""
    lines = iter(printed.splitlines())
    for said in says:
        here = re.sub(r"\$([A-Z]+)", lambda found: values[found[1]], said)
        wanted = re.compile(".*".join(map(re.escape, here.split("…"))))
        if not any(wanted.fullmatch(" ".join(line.split())) or wanted.fullmatch(line) for line in lines):
            return said
    return None
