"""The client's Debian package is a library of the system's Python and a command, and needs nothing else of ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import license_agent_client
import pytest

from tests.ipc.fakeagent import FakeAgent, answers
from tests.support.waiting import READY_S

pytestmark = pytest.mark.system
ROOT = Path(__file__).resolve().parents[2]
NEEDS = """
import json, sys
import license_agent_client
ours = {"agentd", "cli", "common", "contracts", "ipc"} & set(sys.modules)
print(json.dumps([license_agent_client.__file__, license_agent_client.__version__, sorted(ours)]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("client")
    environment = {**os.environ, "TREE_PYTHON": sys.executable}
    subprocess.run([ROOT / "packaging" / "install-client", directory], cwd=ROOT, env=environment, check=True)
    return directory


def python(installed: Path, *arguments: str) -> str:
    """What the interpreter prints that has the package and msgpack, and no checkout."""
    import msgpack

    paths = [installed / "usr/lib/python3/dist-packages", Path(msgpack.__file__).parents[1]]
    code = f"import sys; sys.path[:0] = {[str(path) for path in paths]}; sys.argv[1:] = sys.argv[2:]\n"
    done = subprocess.run(
        [sys.executable, "-IB", "-c", code + arguments[0], "x", *arguments[1:]],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * READY_S,
    )
    assert done.stderr == ""
    return done.stdout


def test_the_package_has_the_whole_library(installed: Path) -> None:
    file, version, ours = json.loads(python(installed, NEEDS))
    assert Path(file).is_relative_to(installed)
    assert (version, ours) == (license_agent_client.__version__, [])


def test_the_command_asks_the_agent(installed: Path, socket_dir: Path) -> None:
    script = (installed / "usr/bin/license-agent-client").read_text("utf-8")
    assert script.startswith("#!/usr/bin/python3 -I\n")
    with FakeAgent(socket_dir / "s", answers) as agent:
        arguments = ["--socket", agent.path, "--deadline", str(READY_S), "ping"]
        assert python(installed, f"exec({script!r})", *arguments) == "the agent answers\n"


FAKE = """
import importlib.metadata, sys
from license_agent_client.testing import FakeLicenseAgent
found = [entry.value for path in sys.path[:1] for entry in
         next(importlib.metadata.distributions(name="license-agent-client", path=[path])).entry_points
         if entry.group == "pytest11"]
with FakeLicenseAgent() as agent, agent.client(deadline=60) as client:
    print(found, client.validate(agent.token("revoked")).reason, "pytest" in sys.modules)
"""


def test_it_has_the_fake_and_the_plugin_and_needs_no_pytest(installed: Path) -> None:
    code = "import logging; logging.disable()\n" + FAKE
    assert python(installed, code) == "['license_agent_client.testing.plugin'] revoked False\n"


def test_nothing_depends_on_the_machine_that_builds(installed: Path) -> None:
    for path in (path for path in installed.rglob("*") if path.is_file()):
        assert str(ROOT).encode() not in path.read_bytes(), path
        assert path.suffix != ".pyc" and path.name not in ("RECORD", "INSTALLER", "direct_url.json")
