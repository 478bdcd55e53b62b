"""In a user namespace that maps few users, a client says what hides the agent's user, and accepts it if asked to."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipc.bounds import DEFAULT_DEADLINE_S
from ipc.peer import OVERFLOW_ID, UntrustedDaemon, check_daemon, hides_users
from ipc.posclient.trust import trusted_uids
from tests.ipc.fakeagent import FakeAgent, answers
from tests.support.otheruser import commands_for
from tests.support.waiting import READY_S

USER = 54321
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
ASKS = f"""
import sys
from ipc.posclient.client import LicenseClient
from ipc.errors import LicenseAgentError
uid = int(sys.argv[2])
try:
    client = LicenseClient(sys.argv[1], deadline={max(READY_S, DEFAULT_DEADLINE_S)}, agent_uid=uid or None)
    print("valid" if client.validate("good").valid else "invalid")
except LicenseAgentError as error:
    print(f"{{type(error).__name__}}: {{error}}")
"""


@pytest.mark.parametrize(
    ("uid_map", "hides"),
    [
        ("         0          0 4294967295\n", False),
        ("0 0 1\n1 1 4294967294\n", False),
        ("0 1000 1\n", True),
        ("0 1000 1\n1 100000 65536\n", True),
        ("", True),
    ],
)
def test_a_namespace_without_all_users_hides_some(uid_map: str, hides: bool) -> None:
    assert hides_users(uid_map) is hides


@pytest.fixture
def agent(socket_dir: Path) -> Iterator[FakeAgent]:
    """Served by root, in a directory of root, as systemd does it."""
    socket_dir.chmod(0o755)
    with FakeAgent(socket_dir / "pos.sock", answers) as agent:
        (socket_dir / "pos.sock").chmod(0o666)
        yield agent


def ask(agent: FakeAgent, namespace: list[str], agent_uid: int = 0) -> str:
    """What a client of an unprivileged user gets in a namespace."""
    assert shutil.which("setpriv") and shutil.which("unshare"), "install the Debian package util-linux"
    as_user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    python = commands_for(USER) / "python"
    done = subprocess.run(
        [*as_user, *namespace, python, "-c", ASKS, agent.path, str(agent_uid)],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=3 * READY_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


ONE_USER = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
AS_ROOT = ["unshare", "--user", "--map-root-user"]
NO_USER = ["unshare", "--user"]


@pytest.mark.system
@pytest.mark.parametrize("namespace", [ONE_USER, NO_USER], ids=["one user", "no user"])
def test_the_error_names_the_user_namespace(agent: FakeAgent, namespace: list[str]) -> None:
    said = ask(agent, namespace)
    assert said.startswith("UntrustedDaemon: the directory ") and "belongs to uid 65534" in said
    assert "user namespace" in said and "agent_uid=65534" in said and "POS applications in containers" in said
    assert agent.requests == []


@pytest.mark.system
def test_root_of_a_container_is_not_the_root_outside(agent: FakeAgent) -> None:
    assert "belongs to uid 65534" in ask(agent, AS_ROOT)


@pytest.mark.system
@pytest.mark.parametrize("namespace", [ONE_USER, AS_ROOT, NO_USER], ids=["one user", "as root", "no user"])
def test_the_users_outside_are_accepted_if_asked_for(agent: FakeAgent, namespace: list[str]) -> None:
    assert ask(agent, namespace, OVERFLOW_ID) == "valid"


@pytest.mark.system
def test_without_a_user_namespace_nothing_is_needed(agent: FakeAgent) -> None:
    assert ask(agent, []) == "valid"


@pytest.mark.system
def test_outside_of_a_container_65534_is_an_ordinary_user(socket_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        path = str(socket_dir / "s")
        listener.bind(path)
        listener.listen()
        client.connect(path)
        os.chown(socket_dir, OVERFLOW_ID, OVERFLOW_ID)
        with pytest.raises(UntrustedDaemon, match=r"belongs to uid 65534, not to root or the agent$"):
            check_daemon(client, path, trusted_uids(OVERFLOW_ID))
