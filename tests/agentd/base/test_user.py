"""Whether the installed agent's user can read the configuration that root has written."""

import os
import pwd
from pathlib import Path
from types import SimpleNamespace

import pytest

from agentd.base import user as user_module
from agentd.base.user import unreadable
from agentd.commands import check_config, parser

TEXT = '[agent]\nid = "pos-1"\n[tpm]\nenabled = false\n[paths]\nstate_dir = "{state}"\n'
UID = 64990


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration of an agent whose user exists and owns the state directory."""
    if os.geteuid() != 0:
        pytest.skip("only root can write a file that another user cannot read, and is asked whether it can")
    real = pwd.getpwnam
    user = SimpleNamespace(pw_uid=UID, pw_gid=UID)
    monkeypatch.setattr(user_module.pwd, "getpwnam", lambda name: user if name == user_module.AGENT_USER else real(name))
    monkeypatch.setattr(user_module.os, "getgrouplist", lambda _name, gid: [gid])
    state, path = tmp_path / "state", tmp_path / "config.toml"
    state.mkdir(mode=0o700)
    os.chown(state, UID, UID)
    path.write_text(TEXT.format(state=state))
    return path


@pytest.mark.system
@pytest.mark.parametrize(
    ("uid", "gid", "mode", "reads"),
    [
        (0, 0, 0o600, False),
        (0, UID, 0o600, False),
        (0, UID, 0o640, True),
        (0, 0, 0o640, False),
        (UID, UID, 0o600, True),
        (UID, 0, 0o066, False),
        (0, 0, 0o644, True),
    ],
)
def test_a_file_that_the_agent_cannot_read_is_told(
    installed: Path, uid: int, gid: int, mode: int, reads: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    os.chown(installed, uid, gid)
    installed.chmod(mode)
    problem = unreadable(installed, SimpleNamespace(paths=SimpleNamespace(state_dir=installed.parent / "state")))  # type: ignore[arg-type]
    assert (problem is None) is reads
    if not reads:
        assert problem == f"{installed}: the agent's user cannot read it: run 'chown license-agent: {installed}'"
    if mode == 0o600:
        status = check_config(parser().parse_args(["--config", str(installed), "check-config"]))
        assert (status == 0) is reads
        assert ("chown license-agent" in capsys.readouterr().err) is not reads


def test_where_the_agent_is_not_installed_nobody_is_asked_about(installed: Path) -> None:
    os.chown(installed.parent / "state", 12345, 12345)
    config = SimpleNamespace(paths=SimpleNamespace(state_dir=installed.parent / "state"))
    assert unreadable(installed, config) is None  # type: ignore[arg-type]
    assert unreadable(installed.parent / "absent", config) is None  # type: ignore[arg-type]
