"""Whoever waits sees what for: scripts/slowly at a terminal and without one, and when its command fails."""

import os
import pty
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

SLOWLY = Path(__file__).parents[2] / "scripts" / "slowly"
PIP = """
echo 'Collecting cffi==1.17.1 (from -r requirements/dev.txt (line 9))'; sleep 2
echo '  Building wheel for tpm2-pytss (pyproject.toml): started'; sleep 2
echo 'Installing collected packages: cffi'; sleep 1
"""
APT = """
echo 'Get:3 http://deb.debian.org/debian bookworm/main amd64 swtpm amd64 0.7 [12 kB]'; sleep 2
echo 'Unpacking nginx-light (1.22.1-9) ...'; sleep 2
echo 'Setting up libtss2-dev:amd64 (3.2.1-3) ...'; sleep 1
"""


def _env() -> dict[str, str]:
    return {**os.environ, "SLOWLY_EVERY": "1"}


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (PIP, ("downloading cffi", "compiling tpm2-pytss", "installing")),
        (APT, ("downloading swtpm", "unpacking nginx-light", "setting up libtss2-dev")),
    ],
)
def test_without_a_terminal_lines_come(script: str, words: tuple[str, ...]) -> None:
    done = subprocess.run([SLOWLY, "libraries", "sh", "-c", script], env=_env(), capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "libraries ..." and lines[-1].startswith("libraries: done in ")
    assert all(any(line.startswith(f"libraries: {word}, ") for line in lines) for word in words), lines
    assert "\r" not in done.stdout


def test_at_a_terminal_one_line_is_written_over() -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen([SLOWLY, "libraries", "sh", "-c", PIP], env=_env(), stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    try:
        while data := os.read(ours, 4096):
            said += data
    except OSError:
        pass  # the terminal's other end was closed
    os.close(ours)
    assert process.wait(10) == 0
    assert b"\rlibraries: compiling tpm2-pytss, " in said
    assert said.count(b"\n") == 1 and said.rstrip().split(b"\r")[-1].startswith(b"libraries: done in ")


def test_a_command_that_fails_is_quoted_and_its_status_kept() -> None:
    script = "echo a reason; echo an error >&2; exit 7"
    done = subprocess.run([SLOWLY, "libraries", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 7
    assert done.stderr.startswith("a reason\nan error\nlibraries failed after ") and " is in /" in done.stderr
    log = Path(done.stderr.strip().rpartition(" ")[2])
    assert log.read_text() == "a reason\nan error\n"
    log.unlink()
    assert "done" not in done.stdout
