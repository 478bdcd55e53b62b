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
from tests.support.otheruser import commands_for
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


def cli(bench: Bench, *arguments: str, holder: Holder | None = None, fine: tuple[int, ...] = (0,)) -> str:
    """`license-agent-cli`, with a certificate whose key is in the same file."""
    options: list[str] = []
    if holder is not None:
        path = bench.root / f"{holder.digest[:8]}.pem"
        path.touch(0o600)
        path.write_bytes(holder.pem + holder.key_pem)
        options = ["--auth-cert", str(path)]
    return bench.tool("license-agent-cli", *options, *arguments, fine=fine)


def test_every_command_signs_when_the_agent_demands_it(bench: Bench) -> None:
    viewer, operator, admin = issued("viewer"), issued("operator"), issued("admin")
    with bench.running():
        # Nothing is demanded yet: the same command line works, and needs no certificate that counts.
        assert "no secrets yet" in cli(bench, "secrets", holder=viewer)
        install(bench, CA.pem)
        cli(bench, "reload")
        assert "need a certificate; the admin CA ends" in cli(bench, "status", fine=(1, 2))
        said = cli(bench, "secrets", fine=(4,))
        assert said.startswith(
            "license-agent-cli: UNAUTHENTICATED: this agent asks for an administrator's certificate: --auth-cert"
        )
        assert "no secrets yet" in cli(bench, "secrets", holder=viewer)
        bench.tool("license-server", "rotate", "--agent", "pos-009", "--out", str(bench.root / "delivery"))
        delivery = str(bench.root / "delivery")
        refused = cli(bench, "secrets", "install", delivery, holder=viewer, fine=(4,))
        assert "REFUSED: this needs the role operator; the certificate of the viewer has the role viewer" in refused
        assert "is ACTIVE" in cli(bench, "secrets", "install", delivery, holder=operator)
        refused = cli(bench, "secrets", "invalidate", "1", "--yes", holder=operator, fine=(4,))
        assert "this needs the role admin" in refused
        assert "is INVALIDATED" in cli(bench, "secrets", "invalidate", "1", "--yes", holder=admin)
        refused = cli(bench, "secrets", holder=Ca("Another").issue("stranger", start=START, days=7200), fine=(4,))
        assert "UNAUTHENTICATED: the admin CA of this agent has not issued this certificate" in refused
    actors = {each["op"]: each["actor"] for each in bench.records() if each["event"] == "admin.request" and "op" in each}
    assert actors["secret_install"]["name"] == "the operator" and actors["secret_invalidate"]["name"] == "the admin"
    assert "name" not in actors["status"] and actors["status"]["uid"] == os.geteuid()


def test_a_command_that_asks_again_and_again_signs_once(bench: Bench) -> None:
    install(bench, CA.pem)
    with bench.running():
        exported = cli(bench, "audit", "export", holder=issued("viewer"))
        assert '"agent.started"' in exported
    sessions = [each for each in bench.records() if each["event"] == "admin.session"]
    assert len(sessions) == 1 and sessions[0]["actor"]["role"] == "viewer"
    assert not [each for each in bench.records() if each["event"] == "admin.refused"]


def test_monitoring_needs_no_certificate_and_learns_the_verdict_only(bench: Bench) -> None:
    uid = 64992
    bench.write_raw_config(
        bench.config.read_text().replace(
            f"[management]\nallowed_uids = [{os.geteuid()}]", f"[management]\nallowed_uids = [{uid}]"
        )
    )
    install(bench, CA.pem)
    with bench.running():
        (bench.run_dir / "admin.sock").chmod(0o666)
        program = [str(commands_for(uid) / "license-agent-cli"), "--agent-uid", str(bench.uid)]

        def run(*words: str) -> "subprocess.CompletedProcess[str]":
            command = [*program, *words]
            return subprocess.run(
                command, env=bench.env, user=uid, group=uid, capture_output=True, text=True, check=False, timeout=READY_S
            )

        done = run("healthcheck")
        assert done.returncode == 2 and done.stdout.startswith("not working: the agent gives its reasons only to root"), done
        assert run("status").returncode == 2
        assert run("secrets").returncode == 4
    refusals = [each for each in bench.records() if each["event"] == "admin.refused"]
    assert sum(each["count"] for each in refusals) == 1 and refusals[0]["op"] == "secrets"


def test_the_whole_life_of_a_certificate_by_the_commands_of_the_guide(bench: Bench) -> None:
    ca, secret, ann = bench.root / "ca", bench.root / "passphrase", bench.root / "ann.pem"
    secret.write_text("correct horse\n")
    options = ("--dir", str(ca), "--passphrase-file", str(secret))
    with bench.running():
        bench.tool("license-agent", "admin-ca", "new", *options)
        bench.tool("license-agent", "admin-ca", "issue", *options, "--name", "Ann", "--role", "admin", "--out", str(ann))
        said = cli(bench, "admin-ca", "install", str(ann), "--yes", fine=(2,))
        assert "is not the certificate of a CA" in said
        said = cli(bench, "admin-ca", "install", str(ca / "admin-ca.pem"), "--yes")
        assert "certificates                 required" in said
        cli(bench, "secrets", fine=(4,))
        assert "no secrets yet" in bench.tool("license-agent-cli", "--auth-cert", str(ann), "secrets")
        lines = bench.root / "lines"
        lines.write_text(bench.tool("license-agent", "admin-ca", "revoke", "--dir", str(ca), "Ann").splitlines()[0] + "\n")
        assert "1 revoked now, 1 in all" in cli(bench, "admin-ca", "revoke", str(lines))
        assert "the certificate is revoked" in bench.tool("license-agent-cli", "--auth-cert", str(ann), "secrets", fine=(4,))
        assert "not required" in cli(bench, "admin-ca", "end", "--yes")
        assert "no secrets yet" in cli(bench, "secrets")
        assert not bench.config.with_name("admin-ca.pem").exists()


def test_the_break_glass_of_the_guide_opens_an_agent_once(bench: Bench) -> None:
    ca, secret, envelope = bench.root / "ca", bench.root / "passphrase", bench.root / "till.pem"
    secret.write_text("correct horse\n")
    options = ("--dir", str(ca), "--passphrase-file", str(secret))
    with_envelope = ("license-agent-cli", "--auth-cert", str(envelope))
    bench.tool("license-agent", "admin-ca", "new", *options)
    bench.tool(
        "license-agent", "admin-ca", "break-glass", *options, "--agent", "pos-009", "--name", "safe 3", "--out", str(envelope)
    )
    install(bench, (ca / "admin-ca.pem").read_bytes())
    with bench.running():
        assert "is not in use: 'license-agent-cli break-glass begin'" in bench.tool(*with_envelope, "secrets", fine=(4,))
        assert "counts for 4 h" in bench.tool(*with_envelope, "break-glass", "begin", "--why", "Ann on leave")
        assert "no secrets yet" in bench.tool(*with_envelope, "secrets")
    with bench.running():  # the agent's restart is no reboot
        assert "no secrets yet" in bench.tool(*with_envelope, "secrets")
        found = bench.status()
        assert "access.break_glass" in [each["code"] for each in found["health"]["findings"]]
        assert "1 ended" in cli(bench, "break-glass", "end")
        bench.tool(*with_envelope, "secrets", fine=(4,))
        assert "was used before" in bench.tool(*with_envelope, "break-glass", "begin", "--why", "again", fine=(4,))
    used = [each for each in bench.records() if each["event"] == "admin.break_glass"]
    assert [each["outcome"] for each in used] == ["begun", "ok"] and used[0]["why"] == "Ann on leave"
