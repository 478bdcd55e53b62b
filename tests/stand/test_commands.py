"""A command of a program that was loaded before does what the same command does by itself."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stand.commands import Commands, Warm
from stand.programs import StandError
from tests.support.waiting import wait_until

pytestmark = pytest.mark.system


@pytest.fixture(params=[Commands, Warm])
def commands(request: pytest.FixtureRequest) -> Iterator[Commands]:
    if request.param is Commands:
        yield Commands()
    else:
        with Warm() as warm:
            yield warm


def test_commands_follow_one_another(commands: Commands, tmp_path: Path) -> None:
    server = str(tmp_path / "server")
    assert commands.run("license-server", "init", "--dir", server) == ""
    pin = commands.run("license-server", "root-pin", "--dir", server)
    assert re.fullmatch("sha256:[0-9a-f]{64}", pin)
    # The environment is that of one command only.
    assert commands.run("license-server", "root-pin", env={"LICENSE_SERVER_DIR": server}) == pin
    with pytest.raises(StandError, match=r"(?s)license-server root-pin failed: .*Missing option '--dir'"):
        commands.run("license-server", "root-pin")
    assert commands.run("license-server", "agents", "list", "--dir", server).startswith("agent")


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("license-server", ("root-pin", "--dir", "nowhere"), "nowhere/settings.toml does not exist"),
        ("license-server", ("isue",), "No such command 'isue'"),
        ("license-agent-cli", ("--socket", "nowhere", "status"), "nowhere does not exist"),
        ("license-agent", ("--config", "nowhere", "check-config"), "nowhere does not exist"),
    ],
)
def test_what_fails_says_why(commands: Commands, name: str, arguments: tuple[str, ...], text: str) -> None:
    for _ in range(2):
        with pytest.raises(StandError, match=f"(?s){name} {arguments[0]} failed: .*{text}"):
            commands.run(name, *arguments)


def test_what_a_command_imports_while_it_runs_stays_for_the_next(tmp_path: Path) -> None:
    with Warm() as warm:
        server = str(tmp_path / "server")
        warm.run("license-server", "init", "--dir", server)
        loaded = Path(f"/proc/{warm._programs['license-server'].pid}/maps")
        assert "pydantic_core" not in loaded.read_text()
        for _ in range(2):
            warm.run("license-server", "claim", "make", "--dir", server, "--out", str(tmp_path / "claim"))
            (tmp_path / "claim").unlink()
            wait_until(lambda: "pydantic_core" in loaded.read_text(), "the next command will import it again")


def test_an_administrators_certificate_is_passed_on(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LICENSE_AGENT_AUTH_KEY", "key.pem")
    with pytest.raises(StandError, match=r"(?s)--auth-key needs --auth-cert.*set LICENSE_AGENT_AUTH_CERT and"):
        commands.run("license-agent-cli", "status")


def test_a_command_is_a_process_of_its_own(tmp_path: Path) -> None:
    """It leaves nothing behind in the program that was loaded."""
    with Warm() as warm:
        (tmp_path / "secret").touch(mode=0o600)
        before = warm.run("license-server", "--help")
        with pytest.raises(StandError):
            warm.run("license-server", "init", "--dir", str(tmp_path / "secret"))
        assert warm.run("license-server", "--help") == before
        (process,) = warm._programs.values()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with pytest.raises(StandError, match="its program ended with status -9"):
            warm.run("license-server", "--help")


def test_a_stand_that_could_not_begin_does_not_say_that_it_has_ended() -> None:
    command = [sys.executable, "-c", "from stand.main import main; main()", "up", "--dir", "/proc/x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0 and "/proc/x" in done.stdout + done.stderr
    assert "has ended" not in done.stdout + done.stderr
