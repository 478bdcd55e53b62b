"""Programs whose own files only root can read: a checkout below a home directory of mode 0700.

Whoever leaves root has imported all that it needs before, and opens nothing of its own afterwards.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from license_agent_client import LicenseClient

from tests.support.daemon import Bench, furnished
from tests.support.stand import short_directory
from tests.support.waiting import READY_S

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts programs that then leave root")
ROOT = Path(__file__).parents[2]
FOLDERS = ("agentd", "audittrail", "common", "confine", "contracts", "hwsec", "ipc", "settings")


@pytest.fixture
def tree() -> Iterator[Path]:
    """The programs' files in a directory that only root can enter."""
    with short_directory() as directory:
        for folder in FOLDERS:
            shutil.copytree(ROOT / folder, directory / folder, ignore=shutil.ignore_patterns("__pycache__"))
        directory.chmod(0o700)
        yield directory


def program(tree: Path, module: str) -> list[str]:
    """Runs a program of the tree, and nothing of the checkout."""
    path = f"[{str(tree)!r}, *(each for each in sys.path if each not in ('', {str(ROOT)!r}))]"
    start = f"import sys; sys.path = {path}; from {module} import entry; entry()"
    return [sys.executable, "-c", start]


@pytest.fixture
def bench(tree: Path) -> Iterator[Bench]:
    with furnished() as made:
        made.program = program(tree, "agentd.main")
        yield made


def test_the_daemon_serves_reloads_and_stops(bench: Bench) -> None:
    with bench.running() as running:
        status = Path(f"/proc/{running.process.pid}/status").read_text()
        assert f"\nUid:\t{bench.uid}\t" in status
        bench.give_secret()
        with LicenseClient(bench.run_dir / "pos.sock", deadline=READY_S, agent_uid=bench.uid) as client:
            assert client.validate(bench.issue()).valid
        for arguments in (("reload",), ("status",), ("audit", "verify"), ("rotate",), ("metrics",)):
            said = bench.tool("license-agent-cli", *arguments, fine=(0, 4))
            assert "the agent failed" not in said
        bench.write_config(extra="[nonsense]\n")
        bench.tool("license-agent-cli", "reload", fine=(1,))
        assert "Traceback" not in running.log() and "ModuleNotFoundError" not in running.log()
    assert running.process.returncode == 0 and "has stopped" in running.log()


@pytest.mark.parametrize("arguments", [("recover", "show"), ("recover", "repair"), ("hardware-id",), ("check-config",)])
def test_its_other_commands(bench: Bench, arguments: tuple[str, ...]) -> None:
    done = subprocess.run([*bench.program, *arguments], env=bench.env, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 69) and "Traceback" not in done.stderr and "No module" not in done.stderr, done.stderr
