"""A command of a program that was loaded before does what the same command does by itself."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from stand.commands import KEPT, Commands, Warm
from stand.programs import StandError
from stand.warm import asked
from tests.support.waiting import READY_S, wait_until

pytestmark = pytest.mark.system


@pytest.fixture
def warm(socket_dir: Path) -> Iterator[Warm]:
    with Warm(socket_dir) as programs:
        yield programs


@pytest.fixture
def elsewhere(warm: Warm, socket_dir: Path) -> Commands:
    """What another process has, while a stand keeps its programs loaded."""
    for name in KEPT:
        warm.run(name, "--version")
    return Commands(socket_dir)


@pytest.fixture(params=["each by itself", "warm", "elsewhere"])
def commands(request: pytest.FixtureRequest) -> Commands:
    if request.param == "each by itself":
        return Commands()
    found: Commands = request.getfixturevalue(request.param)
    return found


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


def test_what_a_command_imports_while_it_runs_stays_for_the_next(warm: Warm, tmp_path: Path) -> None:
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


def test_a_command_finds_others_beside_its_own(elsewhere: Commands) -> None:
    with pytest.raises(StandError, match="nowhere does not exist"):
        elsewhere.run("license-agent-cli", "config", "check", env={"LICENSE_AGENT_CONFIG": "nowhere", "PATH": "/nonexistent"})


def test_a_command_is_a_process_of_its_own(warm: Warm, tmp_path: Path) -> None:
    """It leaves nothing behind in the program that was loaded."""
    (tmp_path / "secret").touch(mode=0o600)
    before = warm.run("license-server", "--help")
    with pytest.raises(StandError):
        warm.run("license-server", "init", "--dir", str(tmp_path / "secret"))
    assert warm.run("license-server", "--help") == before


def test_the_caller_decides_about_directory_environment_and_mask(
    elsewhere: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = elsewhere
    commands.run("license-server", "init", "--dir", str(tmp_path / "server"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LICENSE_SERVER_DIR", "server")
    commands.run("license-server", "trust", "--out", "trust.json")
    assert (tmp_path / "trust.json").exists()
    monkeypatch.delenv("LICENSE_SERVER_DIR")
    with pytest.raises(StandError, match="Missing option '--dir'"):
        commands.run("license-server", "trust")
    for mask, mode in ((0o022, 0o644), (0o027, 0o640)):
        before = os.umask(mask)
        try:
            commands.run("license-server", "root-certificate", "--dir", "server", "--out", f"root-{mask}.pem")
        finally:
            os.umask(before)
        assert (tmp_path / f"root-{mask}.pem").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("kept", [False, True])
def test_a_command_may_have_the_callers_output(kept: bool, elsewhere: Commands, capfd: pytest.CaptureFixture[str]) -> None:
    commands = elsewhere if kept else Commands()
    assert commands.pass_on("license-server", "--version", env={}) == 0
    assert commands.pass_on("license-server", "isue", env={}) == 2
    out, errors = capfd.readouterr()
    assert out.startswith("license-server ")
    assert "No such command 'isue'" in errors


def test_only_its_owner_is_served(elsewhere: Commands, socket_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {path.name: path.stat().st_mode & 0o777 for path in socket_dir.iterdir()} == dict.fromkeys(KEPT.values(), 0o600)
    with open(os.devnull, "r+b") as nothing:
        ask = partial(asked, socket_dir / KEPT["license-server"], ["--version"], {}, [nothing.fileno()] * 3)
        assert ask() == 0
        monkeypatch.setattr(os, "geteuid", lambda: 4711)
        assert ask() is None


def test_what_says_nothing_or_nonsense_hinders_nobody(elsewhere: Commands, socket_dir: Path) -> None:
    for words in (b"", b"\0\0\0\1{", b"\xff\xff\xff\xff", b"\0\0\0\2{}"):
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(str(socket_dir / KEPT["license-server"]))
            other.sendall(words)
        assert elsewhere.run("license-server", "--version")


def test_a_command_ends_when_who_asked_for_it_has_gone(elsewhere: Commands, tmp_path: Path, socket_dir: Path) -> None:
    """It would wait for an agent that says nothing, and nobody waits for it any more."""
    script = "import sys; from pathlib import Path; from stand.commands import Commands\n"
    script += "Commands(Path(sys.argv[1])).run('license-agent-cli', '--socket', sys.argv[2], 'rotate')"
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(socket_dir / "silent"))
        agent.listen()
        with subprocess.Popen([sys.executable, "-c", script, str(socket_dir), str(socket_dir / "silent")]) as asking:
            connection, _ = agent.accept()
            asking.kill()
        with connection:
            connection.settimeout(READY_S)
            while connection.recv(4096):
                pass
    assert elsewhere.run("license-agent-cli", "--version")


def test_where_the_program_has_ended_a_command_is_started_by_itself(warm: Warm, elsewhere: Commands) -> None:
    for process in warm._programs.values():
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    for commands in (warm, elsewhere):
        assert commands.run("license-server", "--version") and commands.run("license-agent-cli", "--version")


def test_programs_end_when_the_stand_has_been_killed(socket_dir: Path) -> None:
    script = "import sys, time; from pathlib import Path; from stand.commands import Warm\n"
    script += "w = Warm(Path(sys.argv[1])); w.run('license-agent-cli', '--version')\n"
    script += "print(w._programs['license-agent-cli'].pid, flush=True); time.sleep(1000)"
    with subprocess.Popen([sys.executable, "-c", script, str(socket_dir)], stdout=subprocess.PIPE, text=True) as stand:
        assert stand.stdout is not None
        program = int(stand.stdout.readline())
        stand.kill()
    wait_until(lambda: not Path(f"/proc/{program}").exists(), "the program stays")


def test_a_stand_that_could_not_begin_does_not_say_that_it_has_ended() -> None:
    command = [sys.executable, "-c", "from stand.main import main; main()", "up", "--dir", "/proc/x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0 and "/proc/x" in done.stdout + done.stderr
    assert "has ended" not in done.stdout + done.stderr
