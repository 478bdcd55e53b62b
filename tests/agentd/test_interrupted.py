"""`license-agent init` and `recover reinitialize`, broken at each step: the same command, run again, gives the request."""

import argparse
import json
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from agentd import commands
from agentd.base.config.config import Config, parse_config
from agentd.secrets import open as opening
from hwsec.software import PBKDF2_FLOOR, SoftwareBackend
from server.enrollment.by_hand import read_request
from server.wiring import Plan, create_server
from tests.support.faults import Kind, broken_at, each_step
from tests.support.serverside import open_server

pytestmark = pytest.mark.system


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of an agent on the software backend, with the server's trust file; the caller is its user."""
    create_server(tmp_path / "server", Plan("server", ("localhost",), tmp_path / "root.key", None), 1_800_000_000)
    server = open_server(tmp_path / "server")
    (tmp_path / "trust.json").write_bytes(server.keys.trust())
    server.close()
    base = tmp_path / "agent"
    paths = "".join(
        f'{key} = "{base}/{name}"\n' for key, name in (("state_dir", "state"), ("log_dir", "log"), ("key_dir", "keys"))
    )
    text = f'[agent]\nid = "pos-1"\n[tpm]\nenabled = false\nfallback_encrypted_storage = "{base}/state/secret.enc"\n'
    config: Config = parse_config(text + f"[paths]\n{paths}", "test")
    monkeypatch.setattr(commands, "_load", lambda _options: config)
    monkeypatch.setattr(commands, "leave_root", lambda _config: None)
    monkeypatch.setattr(opening, "SoftwareBackend", partial(SoftwareBackend, iterations=PBKDF2_FLOOR))  # a third of the time
    return base


def options(base: Path, action: str) -> argparse.Namespace:
    words = ["init"] if action == "init" else ["recover", "reinitialize"]
    return commands.parser().parse_args(
        [*words, "--trust", str(base.parent / "trust.json"), "--request-out", str(base / "out")]
    )


def command(base: Path, action: str) -> Callable[[], None]:
    def run() -> None:
        given = options(base, action)
        raise SystemExit(commands.COMMANDS[given.command](given))

    return run


@pytest.mark.parametrize(("action", "kind"), [("init", "kill"), ("init", "full"), ("reinitialize", "kill")])
def test_a_request_comes_out_when_the_command_is_run_again(agent: Path, tmp_path: Path, action: str, kind: Kind) -> None:
    scratch, kept = tmp_path / "scratch", tmp_path / "kept"
    scratch.mkdir()
    for name in ("state", "log", "keys"):
        (kept / name).mkdir(parents=True)
    if action == "reinitialize":
        shutil.copytree(kept, agent)
        assert broken_at(10_000, command(agent, "init"), "kill", scratch).code == 0
        (agent / "out").unlink()
        shutil.rmtree(kept)
        agent.rename(kept)

    def prepare() -> None:
        shutil.rmtree(agent, ignore_errors=True)
        shutil.copytree(kept, agent)

    steps = 0
    for broken in each_step(command(agent, action), prepare, kind, scratch):
        steps += 1
        assert broken.code == (-signal.SIGKILL if kind == "kill" else 70), broken
        again = broken_at(10_000, command(agent, action), "kill", scratch)
        assert again.code == 0, (broken, again)
        request = read_request(json.loads((agent / "out").read_text()))
        assert request.agent_id == "pos-1"
    assert steps >= 6
    third = broken_at(10_000, command(agent, "init"), "kill", scratch)
    assert third.code == 70 and "has been initialized" in third.output, third
