"""Runs a text file that reads like a terminal session, and compares what the commands print.

    # A comment, up to the end of the line.
    $ license-agent-client validate "$EXPIRED"
    {"valid": false, "reason": "expired", [..]
    ? 1

    $ COMMAND      is run by bash; "> " continues it on the next line
    text           what it prints, standard output and standard error together, in the order of their coming
    [..]           within a line: any text, also none
    ...            alone on a line: any lines, also none
    ? STATUS       its exit status, where that is not 0

`pytest tests/sessions --rewrite` writes what the commands print now into the files, where it does not fit; what fits, with its
patterns, stays. Times, ids, tokens and paths become `[..]`. Read the difference before you commit it.
"""

import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.waiting import READY_S

ANY_TEXT, ANY_LINES = "[..]", "..."
VOLATILE = re.compile(
    r"(?:/tmp|/dev/shm)/(?:la\.\w+/)?la-[a-z0-9_]+"  # directories of the run
    r"|/[^ ]*/tests/sessions"
    r"|[A-Za-z0-9_-]*\.[A-Za-z0-9_.-]{80,}"  # tokens
    r"|(?<![A-Za-z0-9])[A-Za-z0-9_-]{40,}(?![A-Za-z0-9])|(?<![A-Za-z0-9])[0-9a-f]{12,}(?![A-Za-z0-9])"  # keys, hashes, ids
    r"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?( ?UTC|Z)?|(?<!\d)1[6-9]\d{8}(?!\d)"  # times
)
"""What is another one in each run."""
PRELUDE = f'license-agent-client() {{ command license-agent-client --deadline {READY_S:g} "$@"; }}; '
"""A POS application waits for 2 s; a machine under load may need more. Where a session names a deadline, that counts."""


@dataclass
class Step:
    """One command and what is expected of it.

    Attributes:
        before: comments and empty lines above it.
        command: as bash gets it.
        expected: lines of output, with patterns.
        status: exit status.
    """

    before: list[str]
    command: str
    expected: list[str] = field(default_factory=list)
    status: int = 0

    def text(self) -> Iterator[str]:
        """Its lines in the file."""
        yield from self.before
        first, *rest = self.command.split("\n")
        yield f"$ {first}"
        yield from (f"> {line}" for line in rest)
        yield from self.expected
        if self.status:
            yield f"? {self.status}"


def parse(text: str) -> list[Step]:
    """The steps of a session.

    Raises:
        ValueError: output or a status stands before the first command.
    """
    steps: list[Step] = []
    before: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("$ "):
            steps.append(Step(before, line[2:]))
            before = []
        elif line.startswith("#") or not line.strip():
            before.append(line)
        elif not steps or (before and any(line.startswith("#") for line in before)):
            raise ValueError(f"line {number}: a command must come first")
        elif line.startswith("> ") and not steps[-1].expected:
            steps[-1].command += "\n" + line[2:]
        elif re.fullmatch(r"\? \d+", line):
            steps[-1].status = int(line[2:])
        else:
            # Empty lines between two lines of output belong to it.
            steps[-1].expected += [*before, line]
            before = []
    return steps


def fits(expected: list[str], found: list[str]) -> bool:
    """Whether the output is as expected."""
    pieces = []
    for line in expected:
        if line == ANY_LINES:
            pieces.append(r"(?:[^\n]*\n)*?")
        else:
            pieces.append(r"[^\n]*?".join(map(re.escape, line.split(ANY_TEXT))) + r"\n")
    return re.fullmatch("".join(pieces), "".join(f"{line}\n" for line in found)) is not None


def run(step: Step, env: Mapping[str, str], directory: Path) -> tuple[list[str], int]:
    """Runs a command; the lines of its output, and its exit status. Lines without text at the end are left out."""
    done = subprocess.run(
        ["bash", "-c", PRELUDE + step.command],
        env=dict(env),
        cwd=directory,
        umask=0o022,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=READY_S,
        check=False,
    )
    return [line.rstrip() for line in done.stdout.rstrip().splitlines()], done.returncode


def play(file: Path, env: Mapping[str, str], directory: Path, *, rewrite: bool = False) -> None:
    """Runs all commands of a session.

    Args:
        file: the session.
        env: the whole environment of the commands.
        directory: where they run.
        rewrite: write what does not fit into the file, instead of failing.

    Raises:
        AssertionError: a command prints something else, or ends with another status; with both.
    """
    steps = parse(file.read_text("utf-8"))
    assert steps, f"{file.name} has no command"
    for step in steps:
        found, status = run(step, env, directory)
        if fits(step.expected, found) and status == step.status:
            continue
        shown = "\n".join([*found, f"? {status}"])
        assert rewrite, (
            f"{file.name}: $ {step.command}\n--- expected\n"
            + "\n".join([*step.expected, f"? {step.status}"])
            + f"\n--- found\n{shown}"
        )
        step.expected = [VOLATILE.sub(ANY_TEXT, line) for line in found]
        step.status = status
    if rewrite:
        file.write_text("".join(f"{line}\n" for step in steps for line in step.text()), encoding="utf-8")
