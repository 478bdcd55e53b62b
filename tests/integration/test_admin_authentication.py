"""The real agent: once root has installed an admin CA, nobody gets past it, whatever happens to the file."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipc.adminclient import AdminClient
from ipc.errors import ErrorCode
from ipc.posclient.policy import AgentRefused
from tests.support import foreignadmin
from tests.support.adminpki import Ca, Holder
from tests.support.daemon import Bench, furnished
from tests.support.waiting import READY_S

# The admin CA's file must belong to root.
pytestmark = [pytest.mark.system, pytest.mark.root]
START = 1_700_000_000
CA = Ca(start=START, days=7300)


def issued(role: str) -> Holder:
    return CA.issue(f"the {role}", role=role, start=START, days=7200)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with furnished() as made:
        yield made


def install(bench: Bench, pem: bytes, mode: int = 0o644, owner: int = 0) -> Path:
    path = bench.config.with_name("admin-ca.pem")
    path.write_bytes(pem)
    path.chmod(mode)
    os.chown(path, owner, owner)
    return path


def ask(bench: Bench, op: str, **fields: Any) -> dict[str, Any]:
    with AdminClient(bench.run_dir / "admin.sock", deadline=READY_S, agent_uid=bench.uid) as client:
        return client.call(op, **fields)


def sign(bench: Bench, holder: Holder, op: str, **params: Any) -> dict[str, Any]:
    with AdminClient(bench.run_dir / "admin.sock", deadline=READY_S, agent_uid=bench.uid) as client:
        given = client.challenge()
        assert given is not None
        return client.call_signed(given, holder.proof, op, **params)


def refusal(bench: Bench, op: str, **fields: Any) -> ErrorCode:
    with pytest.raises(AgentRefused) as refused:
        ask(bench, op, **fields)
    return refused.value.code


def test_a_client_of_somebody_else_administers_the_agent(bench: Bench, tmp_path: Path) -> None:
    install(bench, CA.pem)
    holder = issued("admin")
    (tmp_path / "key.pem").write_bytes(holder.key_pem)
    (tmp_path / "own.pem").write_bytes(holder.pem)
    program = [sys.executable, "-I", foreignadmin.__file__, str(bench.run_dir / "admin.sock")]
    with bench.running():
        bench.tool("license-server", "rotate", "--agent", "pos-009", "--out", str(bench.root / "delivery"))
        delivery = (bench.root / "delivery").read_text().strip()
        assert refusal(bench, "secret_install", delivery=delivery) is ErrorCode.UNAUTHENTICATED
        for op, word, wanted in (
            ("secret_install", f"delivery={delivery}", "secret_version=1"),
            ("secret_invalidate", "version=1", "secret_version=1"),
        ):
            command = [*program, str(tmp_path / "key.pem"), str(tmp_path / "own.pem"), op, word]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=READY_S)
            assert wanted in done.stdout.splitlines() and "challenge=" in done.stdout, done.stdout
    performed = [each for each in bench.records() if each["event"] == "secret.invalidate"]
    assert performed[0]["actor"]["name"] == "the admin" and performed[0]["actor"]["certificate"] == holder.digest


def test_certificates_stay_required_until_root_ends_it(bench: Bench) -> None:
    with bench.running():
        assert ask(bench, "status")["authentication"]["mode"] == "uid-only"
        assert "secrets" in ask(bench, "secrets")
        path = install(bench, CA.pem)
        ask(bench, "reload")
        assert refusal(bench, "secrets") is ErrorCode.UNAUTHENTICATED
        found = ask(bench, "status")["authentication"]
        assert (found["mode"], found["latched"], found["configured"]) == ("required", True, None)
        with pytest.raises(AgentRefused, match="because the admin CA is installed"):
            ask(bench, "admin_access_end")
        path.unlink()
        ask(bench, "reload")
        assert refusal(bench, "secrets") is ErrorCode.UNAUTHENTICATED
    with bench.running():  # a restart changes nothing: it is sealed
        assert ask(bench, "status")["authentication"]["mode"] == "required"
        assert refusal(bench, "secrets") is ErrorCode.UNAUTHENTICATED
        assert ask(bench, "admin_access_end")["mode"] == "uid-only"
        assert "secrets" in ask(bench, "secrets")
    events = [each["event"] for each in bench.records()]
    for event in ("admin.ca_changed", "admin.authentication_required", "admin.authentication_ended", "alert.admin_ca_unusable"):
        assert event in events, event


@pytest.mark.parametrize(
    ("mode", "owner", "pem"),
    [(0o666, 0, CA.pem), (0o664, 0, CA.pem), (0o644, 64991, CA.pem), (0o644, 0, b"nonsense"), (0o644, 0, issued("admin").pem)],
    ids=["for everyone to write", "for the group to write", "of the agent's user", "no certificate", "no CA"],
)
def test_a_file_that_somebody_else_could_have_written_opens_nothing(bench: Bench, mode: int, owner: int, pem: bytes) -> None:
    install(bench, pem, mode, owner)
    with bench.running():
        found = ask(bench, "status")["authentication"]
        assert found["mode"] == "required" and found["ca_problem"] and found["ca_ends"] is None
        assert refusal(bench, "secrets") is ErrorCode.UNAUTHENTICATED
        with pytest.raises(AgentRefused) as refused:
            sign(bench, issued("admin"), "secrets")
        assert refused.value.code is ErrorCode.UNAUTHENTICATED


def test_a_revoked_certificate_stays_revoked_after_a_restart(bench: Bench) -> None:
    install(bench, CA.pem)
    lost, kept = issued("admin"), issued("viewer")
    with bench.running():
        assert "secrets" in sign(bench, lost, "secrets")
        assert ask(bench, "admin_revoke", digests=[lost.digest])["revoked"] == 1
        with pytest.raises(AgentRefused, match="revoked"):
            sign(bench, lost, "secrets")
        assert "secrets" in sign(bench, kept, "secrets")
    with bench.running():
        with pytest.raises(AgentRefused, match="revoked"):
            sign(bench, lost, "secrets")
        assert ask(bench, "admin_access")["revoked_certificates"] == [lost.digest]
