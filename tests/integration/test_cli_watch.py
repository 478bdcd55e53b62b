"""`status --watch` on the real programs: drawn again at a terminal, a line at each change in a pipe, ended by Ctrl-C."""

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.stand import BIN, Stand, running_stand, short_directory
from tests.support.terminal import at_terminal
from tests.support.waiting import READY_S

pytestmark = pytest.mark.system
WATCH = [str(BIN / "license-agent-cli"), "status", "--watch", "--every", "1"]


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with running_stand("software") as running:
        yield running


def test_a_change_is_a_line_and_ctrl_c_ends_it(stand: Stand) -> None:
    env = {"PATH": os.environ["PATH"], **stand.info["env"], "LC_ALL": "C.UTF-8"}
    with subprocess.Popen(
        WATCH,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that a shell started in the background ignore it, and so would the command.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as watching:
        assert watching.stdout is not None and watching.stderr is not None
        try:
            first = watching.stdout.readline()
            assert "fine: the agent validates licenses; online, secret 3, backend available" in first
            stand.run("license-stand", "agent", "stop", "--dir", str(stand.root))
            second = watching.stdout.readline()
            assert "not working: " in second and "\x1b" not in first + second
            stand.run("license-stand", "agent", "start", "--dir", str(stand.root))
            while "fine: " not in watching.stdout.readline():
                pass
            watching.send_signal(signal.SIGINT)
            rest, errors = watching.communicate(timeout=READY_S)
        finally:
            watching.kill()
    assert watching.returncode in (0, 1) and not errors, errors
    assert "Traceback" not in rest


@pytest.mark.parametrize("plain", [False, True], ids=["colors", "NO_COLOR"])
def test_at_a_terminal_it_is_drawn_again_in_place(stand: Stand, plain: bool) -> None:
    with short_directory() as directory:
        env = {
            "PATH": os.environ["PATH"],
            **stand.info["env"],
            "HOME": str(directory),
            "TERM": "xterm",
            "LC_ALL": "C.UTF-8",
            **({"NO_COLOR": "1"} if plain else {}),
        }
        done = at_terminal(WATCH, env, directory, "Ctrl-C ends", signal.SIGINT)
    assert not done.asked and done.status in (0, 1), done.output
    assert "\x1b[2J" in done.output and done.output.rstrip().endswith("\x1b[?7h")
    assert ("\x1b[1m" in done.output) is not plain
    assert "Traceback" not in done.output and "Aborted" not in done.output
