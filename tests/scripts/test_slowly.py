"""Whoever waits sees what for: scripts/slowly at a terminal and without one, and when its command fails."""

import os
import pty
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

SLOWLY = Path(__file__).parents[2] / "scripts" / "slowly"
PIP = """
echo 'Collecting cffi==1.17.1 (from -r requirements/dev.txt (line 9))'; read -r _ <"$STEP"
echo '  Building wheel for tpm2-pytss (pyproject.toml): started'; read -r _ <"$STEP"
echo 'Installing collected packages: cffi'; read -r _ <"$STEP"
"""
APT = """
echo 'Get:3 http://deb.debian.org/debian bookworm/main amd64 swtpm amd64 0.7 [12 kB]'; read -r _ <"$STEP"
echo 'Unpacking nginx-light (1.22.1-9) ...'; read -r _ <"$STEP"
echo 'Setting up libtss2-dev:amd64 (3.2.1-3) ...'; read -r _ <"$STEP"
"""


@dataclass(frozen=True)
class Step:
    """A pipe that the command waits at after each line, until the test has seen what is said of it.

    Attributes:
        end: open for both directions all the time, so that no end of the pipe is ever the last one.
    """

    path: Path
    end: int


@pytest.fixture
def step(tmp_path: Path) -> Iterator[Step]:
    path = tmp_path / "step"
    os.mkfifo(path)
    end = os.open(path, os.O_RDWR)
    yield Step(path, end)
    os.close(end)


def started(script: str, step: Step, **streams: int) -> "subprocess.Popen[bytes]":
    env = {**os.environ, "SLOWLY_EVERY": "1", "SLOWLY_LOOK": "0.05", "STEP": str(step.path)}
    return subprocess.Popen([SLOWLY, "libraries", "sh", "-c", script], env=env, **streams)


def all_said(output: int, words: tuple[str, ...], step: Step) -> str:
    """What is said until the end; the command goes on as soon as each of the words was said."""
    said, waiting = b"", [f"libraries: {word}, ".encode() for word in words]
    try:
        while data := os.read(output, 4096):
            said += data
            while waiting and waiting[0] in said:
                waiting.pop(0)
                os.write(step.end, b"go on\n")
    except OSError:
        pass  # the terminal's other end was closed
    assert not waiting, said
    return said.decode()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (PIP, ("downloading cffi", "compiling tpm2-pytss", "installing")),
        (APT, ("downloading swtpm", "unpacking nginx-light", "setting up libtss2-dev")),
    ],
)
def test_without_a_terminal_lines_come(script: str, words: tuple[str, ...], step: Step) -> None:
    with started(script, step, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = all_said(process.stdout.fileno(), words, step)
    assert process.returncode == 0
    lines = said.splitlines()
    assert lines[0] == "libraries ..." and lines[-1].startswith("libraries: done in ")
    assert "\r" not in said


def test_at_a_terminal_one_line_is_written_over(step: Step) -> None:
    ours, theirs = pty.openpty()
    process = started(PIP, step, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = all_said(ours, ("downloading cffi", "compiling tpm2-pytss", "installing"), step)
    os.close(ours)
    assert process.wait(10) == 0
    assert "\rlibraries: compiling tpm2-pytss, " in said
    assert said.count("\n") == 1 and said.rstrip().split("\r")[-1].startswith("libraries: done in ")


def test_a_command_that_fails_is_quoted_and_its_status_kept() -> None:
    script = "echo a reason; echo an error >&2; exit 7"
    done = subprocess.run([SLOWLY, "libraries", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 7
    assert done.stderr.startswith("a reason\nan error\nlibraries failed after ") and " is in /" in done.stderr
    log = Path(done.stderr.strip().rpartition(" ")[2])
    assert log.read_text() == "a reason\nan error\n"
    log.unlink()
    assert "done" not in done.stdout
