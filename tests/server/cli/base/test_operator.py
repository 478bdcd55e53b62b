"""The audit says who has run a command: the user by the kernel, and whom the environment names."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from server.cli.base.operator import operator
from tests.support.serverside import open_server

NOBODY = Path("/nonexistent")


def test_the_kernel_says_who_runs_and_who_logged_in(tmp_path: Path) -> None:
    me = f"{pwd.getpwuid(os.getuid()).pw_name} ({os.getuid()})"
    assert operator({}, NOBODY) == {"os_user": me}
    login = tmp_path / "loginuid"
    login.write_text("1")
    assert operator({}, login) == {"os_user": me, "login_user": "daemon (1)"}
    for nobody in ("4294967295", "", "x"):
        login.write_text(nobody)
        assert operator({}, login) == {"os_user": me}
    login.write_text("3999999999")
    assert operator({}, login)["login_user"] == "? (3999999999)"


def test_the_environment_says_who_used_sudo() -> None:
    assert operator({"SUDO_USER": "alice", "SUDO_UID": "1000"}, NOBODY)["sudo_user"] == "alice (1000)"


@pytest.mark.parametrize(
    "environment",
    [
        {"SUDO_USER": "alice"},
        {"SUDO_UID": "1000"},
        {"SUDO_USER": "", "SUDO_UID": "1000"},
        {"SUDO_USER": "a\nlice", "SUDO_UID": "1000"},
        {"SUDO_USER": "a" * 65, "SUDO_UID": "1000"},
        {"SUDO_USER": "alice", "SUDO_UID": "-1"},
        {"SUDO_USER": "alice", "SUDO_UID": "1" * 11},
    ],
)
def test_what_is_no_name_is_left_out(environment: dict[str, str]) -> None:
    assert "sudo_user" not in operator(environment, NOBODY)


@pytest.mark.system
def test_each_record_of_a_command_has_its_user(directory: Path) -> None:
    command = [str(Path(sys.executable).with_name("license-server")), "enrollment-token", "make", "--dir", str(directory)]
    environment = os.environ | {"SUDO_USER": "alice", "SUDO_UID": "1000"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    server = open_server(directory)
    record = server.audit.tail(1)[0]
    assert (record.actor, record.event, record.fields["sudo_user"]) == ("admin", "claim.made", "alice (1000)")
    assert record.fields["os_user"].endswith(f"({os.getuid()})")
    assert server.audit.verify(server.cipher.audit_key())[1] is None
    server.close()
