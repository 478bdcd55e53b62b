"""The whole system, as a POS application and an administrator use it: installed commands, real sockets, both backends."""

import asyncio
import base64
import json
import os
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from license_agent_client import AgentRefused, AsyncLicenseClient, ErrorCode, LicenseClient, Reason
from license_agent_client.clientwire import decode_reply, encode_request
from license_agent_client.errors import RemoteProtocolError

from server.keys.rootkey import read_root_key
from stand.reachable import DEVICE, copy
from stand.setup import LINK_STANDS_IN_UID, ROOT_STANDS_IN_UID
from tests.support.otheruser import commands_for
from tests.support.serversecrets import server_secrets
from tests.support.stand import BIN, Stand, running_stand, short_directory
from tests.support.waiting import READY_S, wait_for_file, wait_until

# A POS application waits for 2 s; a machine under load may need more.
ASK = ("license-agent-client", "--deadline", f"{READY_S:g}")
EXPECTED = {
    "valid": Reason.OK,
    "expired": Reason.EXPIRED,
    "not_yet_valid": Reason.NOT_YET_VALID,
    "tampered": Reason.BAD_SIGNATURE,
    "malformed": Reason.MALFORMED,
    "wrong_audience": Reason.WRONG_AUDIENCE,
    "grace": Reason.OK,
    "invalidated": Reason.SECRET_INVALIDATED,
}


def test_stand_json_has_all_its_keys(stand: Stand) -> None:
    info = stand.info
    for key in ("pos_socket", "admin_socket", "agent_id", "agent_pid", "config", "state_dir", "audit_log", "metrics", "env"):
        assert info[key], key
    assert set(info["tokens"]) == set(EXPECTED)
    assert (info["tpm_tcti"] is not None) == (info["backend"] == "tpm")


@pytest.mark.parametrize("kind", EXPECTED)
def test_each_token_gets_its_verdict_from_both_clients(stand: Stand, kind: str) -> None:
    token = stand.info["tokens"][kind]
    with LicenseClient(stand.info["pos_socket"], deadline=READY_S) as client:
        verdict = client.validate(token)
    assert verdict.reason is EXPECTED[kind]
    assert verdict.valid == (EXPECTED[kind] is Reason.OK)
    assert (verdict.features == ("sales", "fuel")) == verdict.valid
    assert (verdict.metadata == {"shop": "Rue du Lac 7"}) == verdict.valid
    states = {"grace": "GRACE", "invalidated": "INVALIDATED", "wrong_audience": None, "malformed": None}
    assert verdict.secret_state == states.get(kind, "ACTIVE")

    async def ask() -> None:
        async with AsyncLicenseClient(stand.info["pos_socket"], deadline=READY_S) as other:
            assert await other.validate(token) == verdict
            assert (await other.info()).agent_id == "pos-001"
            await other.ping()

    asyncio.run(ask())


def test_the_shell_command_exits_by_the_verdict(stand: Stand) -> None:
    tokens = stand.info["tokens"]
    assert stand.run(*ASK, "validate", tokens["valid"]).returncode == 0
    assert stand.run(*ASK, "validate", "-", stdin=tokens["expired"] + "\n").returncode == 1
    bad = stand.run("license-agent-client", "validate", "é")
    assert bad.returncode == 2 and "ASCII" in bad.stderr


def test_a_repeated_nonce_is_refused(stand: Stand) -> None:
    import socket

    from license_agent_client.frames import FrameDecoder

    fields = {"token": stand.info["tokens"]["valid"], "nonce": os.urandom(16)}
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(stand.info["pos_socket"])
        sock.settimeout(READY_S)
        sock.sendall(encode_request("validate_license", 1, fields) + encode_request("validate_license", 2, fields))
        decoder, bodies = FrameDecoder(), []
        while len(bodies) < 2:
            bodies += decoder.receive_data(sock.recv(65536))
    assert decode_reply(bodies[0], 1)["valid"] is True
    with pytest.raises(RemoteProtocolError) as caught:
        decode_reply(bodies[1], 2)
    assert caught.value.code is ErrorCode.NONCE_REPLAYED and caught.value.request_id == 2


def test_a_client_notices_nothing_of_kill_and_restart(stand: Stand) -> None:
    """With requests under way all the time: not one of them fails."""
    token, stop, failures, count = stand.info["tokens"]["valid"], threading.Event(), [], [0]

    def till() -> None:
        with LicenseClient(stand.info["pos_socket"], deadline=READY_S) as client:
            while not stop.is_set():
                try:
                    if not client.validate(token).valid:
                        failures.append("refused")
                except Exception as error:
                    failures.append(repr(error))
                count[0] += 1
                time.sleep(0.01)

    threads = [threading.Thread(target=till) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        before = stand.info["agent_pid"]
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: stand.info["agent_pid"] != before, "the agent was not started again")
        between = stand.info["agent_pid"]
        restarted = stand.run("license-stand", "restart", "--dir", str(stand.root))
        assert restarted.returncode == 0 and stand.info["agent_pid"] != between
        seen = count[0]
        wait_until(lambda: count[0] > seen + 10, "no answers came")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


def test_administrators_see_states_dates_and_no_secret(stand: Stand) -> None:
    status = json.loads(stand.run("license-agent-cli", "--json", "status").stdout)
    assert status["agent_id"] == "pos-001" and status["backend"]["name"] == stand.info["backend"]
    assert status["backend"]["protects_stolen_disk"] == (stand.info["backend"] == "tpm")
    listed = stand.run("license-agent-cli", "--json", "secrets").stdout
    states = {secret["version"]: secret["state"] for secret in json.loads(listed)["secrets"]}
    assert {1: "INVALIDATED", 2: "GRACE", 3: "ACTIVE"}.items() <= states.items()
    first = json.loads(listed)["secrets"][0]
    # The server dates the beginning back by an hour, in case its clock or the agent's is wrong.
    assert first["valid_until"] - first["valid_from"] == 90_000 and first["grace_until"] - first["valid_until"] == 604_800
    table = stand.run("license-agent-cli", "secrets").stdout
    assert "INVALIDATED" in table and "grace until" in table


def test_license_check_tells_verdict_and_status(stand: Stand) -> None:
    good = stand.run("license-agent-cli", "license", "check", stand.info["tokens"]["valid"])
    assert good.returncode == 0 and "valid (ok)" in good.stdout
    bad = stand.run("license-agent-cli", "--json", "license", "check", "-", stdin=stand.info["tokens"]["tampered"])
    assert bad.returncode == 1 and json.loads(bad.stdout)["reason"] == "bad_signature"


def test_config_check_works_without_the_agent(stand: Stand) -> None:
    assert stand.run("license-agent-cli", "config", "check").returncode == 0
    with short_directory() as directory:
        file = directory / "config.toml"
        file.write_text('[agent]\nid = "x"\ngrace_periode = 7\n')
        file.chmod(0o644)
        found = stand.run("license-agent-cli", "config", "check", "--file", str(file))
    assert found.returncode == 1
    assert "unknown key 'grace_periode'" in found.stdout and "did you mean" in found.stdout and "chmod 0600" in found.stdout


def test_audit_tail_shows_what_happened(stand: Stand) -> None:
    stand.run(*ASK, "validate", stand.info["tokens"]["expired"])
    # Other records may follow before the command asks: on a slow machine, more of them.
    lines = stand.run("license-agent-cli", "--json", "audit", "tail", "-n", "100").stdout.splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["seq"] for record in records] == sorted(record["seq"] for record in records)
    judged = [record for record in records if record["event"] == "license.validated" and record["outcome"] == "expired"]
    assert judged and judged[-1]["actor"]["uid"] == os.geteuid()


def test_files_have_their_modes_and_contents(stand: Stand) -> None:
    info = stand.info
    state_dir = Path(info["state_dir"])
    assert _mode(info["audit_log"]) == 0o640 and _mode(info["metrics"]) == 0o644
    assert _mode(state_dir / "state.json") == 0o600 and _mode(state_dir) == 0o711
    for path in state_dir.iterdir():
        if path.name != "metrics.prom":
            assert _mode(path) == 0o600, path
    metrics = Path(info["metrics"]).read_text()
    for name in (
        "secrets_active",
        "secrets_grace",
        "rotations_total",
        "rotations_failed",
        "validations_total",
        "validations_failed",
        "degraded_mode",
        "tpm_available",
        "last_rotation",
    ):
        assert f"\nlicense_agent_{name} " in metrics
    assert f"license_agent_tpm_available {float(info['backend'] == 'tpm')}" in metrics
    state = json.loads((state_dir / "state.json").read_text())
    assert [secret["version"] for secret in state["secrets"]][:3] == [1, 2, 3]
    assert state["last_server_contact"] is not None and state["degraded"] is False


def _mode(path: str | Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def _secrets(stand: Stand) -> list[bytes]:
    return list(server_secrets(stand.root / "server", "pos-001").values())


def test_no_secret_stands_in_any_file_of_the_agent(stand: Stand) -> None:
    secrets = _secrets(stand)
    assert len(secrets) >= 3
    haystack = b""
    for folder in ("state", "log", "keys", "etc"):
        for path in (stand.root / folder).rglob("*"):
            haystack += path.read_bytes() if path.is_file() else b""
    haystack += (stand.root / "agent.log").read_bytes()
    assert b"pos-001" in haystack
    for secret in secrets:
        for form in (secret, secret.hex().encode(), base64.b64encode(secret), base64.urlsafe_b64encode(secret).rstrip(b"=")):
            assert form not in haystack
            # The search finds what is there.
            assert form in haystack + form


def test_the_agents_process_tells_nothing(stand: Stand) -> None:
    pid = stand.info["agent_pid"]
    limits = Path(f"/proc/{pid}/limits").read_text()
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    assert "0" not in status["Uid"].split()
    # Not dumpable: what is in /proc belongs to root, whoever the process runs as.
    assert os.stat(f"/proc/{pid}/environ").st_uid == 0
    shown = Path(f"/proc/{pid}/cmdline").read_bytes()
    if os.geteuid() == 0:
        shown += Path(f"/proc/{pid}/environ").read_bytes()
    for secret in _secrets(stand):
        assert secret not in shown and secret.hex().encode() not in shown


def test_rotation_refreshes_a_token_file(stand: Stand, tmp_path: Path) -> None:
    issued = stand.run("license-stand", "issue", "--dir", str(stand.root), "--license-id", "till-7").stdout.strip()
    file = tmp_path / "license.token"
    file.write_text(issued + "\n")
    file.chmod(0o640)
    with LicenseClient(stand.info["pos_socket"], deadline=READY_S) as client:
        assert client.validate_file(file).valid and file.read_text().strip() == issued
        rotated = stand.run("license-stand", "rotate", "--dir", str(stand.root))
        assert rotated.returncode == 0, rotated.stderr
        old = client.validate(issued)
        assert old.valid and old.secret_state == "GRACE" and old.refreshed and old.reissue_due and old.refresh_by is not None
        new = client.validate_file(file)
    assert new.valid and new.secret_state == "ACTIVE" and not new.reissue_due
    assert file.read_text().strip() != issued and _mode(file) == 0o640


def test_an_invalidated_secret_refuses_its_licenses_and_they_can_be_refreshed(stand: Stand) -> None:
    token = stand.run("license-stand", "issue", "--dir", str(stand.root), "--license-id", "till-8").stdout.strip()
    with LicenseClient(stand.info["pos_socket"], deadline=READY_S) as client:
        assert client.validate(token).valid
        version = max(s["version"] for s in json.loads(stand.run("license-agent-cli", "--json", "secrets").stdout)["secrets"])
        assert stand.run("license-stand", "rotate", "--dir", str(stand.root)).returncode == 0
        assert stand.run("license-stand", "invalidate", "--dir", str(stand.root), str(version)).returncode == 0
        refused = client.validate(token)
        assert refused.reason is Reason.SECRET_INVALIDATED and refused.refreshed
        newer = client.refresh(token)
        assert newer is not None and client.validate(newer).valid
    again = stand.run("license-stand", "invalidate", "--dir", str(stand.root), str(version))
    assert again.returncode == 4 and "before" in again.stderr
    unknown = stand.run("license-stand", "invalidate", "--dir", str(stand.root), "999")
    assert unknown.returncode == 4 and "no secret version 999" in unknown.stderr


def test_a_replayed_or_foreign_delivery_is_refused(stand: Stand, tmp_path: Path) -> None:
    delivery = tmp_path / "delivery"
    assert stand.run("license-server", "rotate", "--agent", "pos-001", "--out", str(delivery)).returncode == 0
    assert stand.run("license-agent-cli", "secrets", "install", str(delivery)).returncode == 0
    replayed = stand.run("license-agent-cli", "secrets", "install", str(delivery))
    assert replayed.returncode == 4 and "not newer" in replayed.stderr
    stand.run("license-server", "rotate", "--agent", "pos-002", "--out", str(delivery))
    foreign = stand.run("license-agent-cli", "secrets", "install", str(delivery))
    assert foreign.returncode == 4 and "another agent" in foreign.stderr
    garbage = stand.run("license-agent-cli", "secrets", "install", "-", stdin="a.b.c")
    assert garbage.returncode == 4


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can play another user")
def test_a_stranger_is_refused_counted_audited_and_alerted(stand: Stand) -> None:
    code = (
        "import os, sys, encodings.idna, license_agent_client.posclient.shell as shell\n"
        "os.setgroups([]); os.setgid(54321); os.setuid(54321)\n"
        "sys.exit(shell.main(['validate', sys.argv[1]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, stand.info["tokens"]["valid"]],
        env=stand.env,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert done.returncode == 4 and "FORBIDDEN" in done.stderr and done.stdout == ""
    tail = stand.run("license-agent-cli", "--json", "audit", "tail", "-n", "5").stdout
    assert any(json.loads(line)["event"] == "access.denied" and '"uid":54321' in line for line in tail.splitlines())
    assert "license_agent_unauthorized_total 0.0" not in stand.run("license-agent-cli", "metrics").stdout
    assert "<2>ALERT unauthorized access: uid 54321" in (stand.root / "agent.log").read_text()
    # The admin socket refuses as well: by its mode, before anything else.
    admin = subprocess.run(
        [
            sys.executable,
            "-c",
            code.replace("['validate', sys.argv[1]]", "['--socket', sys.argv[1], 'ping']"),
            stand.info["admin_socket"],
        ],
        env=stand.env,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert admin.returncode == 3 and "Permission denied" in admin.stderr


def test_the_audit_log_holds_and_a_cut_end_is_found(stand: Stand) -> None:
    whole = stand.run("license-agent-cli", "--json", "audit", "verify")
    assert whole.returncode == 0 and json.loads(whole.stdout)["ok"] is True
    log = Path(stand.info["audit_log"])
    data = log.read_bytes()
    lines = data.splitlines(keepends=True)
    with log.open("r+b") as file:
        file.truncate(len(data) - len(lines[-1]))
    cut = stand.run("license-agent-cli", "audit", "verify")
    assert cut.returncode == 1 and "TAMPERED" in cut.stdout


def test_a_directory_in_use_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    done = subprocess.run(
        [str(BIN / "license-stand"), "up", "--dir", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "not empty" in done.stderr and (tmp_path / "precious").read_text() == "x"


def test_a_stand_that_was_killed_on_its_way_up_is_started_by_the_same_command() -> None:
    with short_directory() as directory:
        root = directory / "stand"
        command = [str(BIN / "license-stand"), "up", "--dir", str(root), "--backend", "software", "--by-hand"]
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_file(root / "server" / "settings.toml", first, "the stand did not begin")
        first.kill()
        first.wait()
        assert not (root / "stand.json").exists()
        again = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wait_for_file(root / "stand.json", again, "the stand did not come up")
        running = subprocess.run(command, capture_output=True, text=True, check=False)
        assert running.returncode == 1 and "not empty" in running.stderr
        again.terminate()
        said = again.communicate(timeout=READY_S)[1]
        assert "of a stand that failed or was killed" in said and list(root.iterdir()) == []


def test_at_a_terminal_a_stand_asks_nothing() -> None:
    with short_directory() as directory:
        root = directory / "stand"
        terminal, side = os.openpty()
        up = [str(BIN / "license-stand"), "up", "--dir", str(root), "--backend", "software"]
        # The terminal controls the process, so that one that opens /dev/tty finds it too.
        process = subprocess.Popen(["setsid", "--ctty", "--wait", *up], stdin=side, stdout=side, stderr=side)
        os.close(side)
        shown = b""
        try:
            ends = time.monotonic() + READY_S
            while b"the stand is up" not in shown:
                assert time.monotonic() < ends and process.poll() is None, shown.decode()
                if select.select([terminal], [], [], 0.1)[0]:
                    shown += os.read(terminal, 4096)
            assert b"passphrase" not in shown, shown.decode()
            info = json.loads((root / "stand.json").read_text())
            # A key that the command asked for would be encrypted by what it was given.
            assert read_root_key(Path(info["env"]["LICENSE_SERVER_DIR"]) / "offline" / "root.key", None)
        finally:
            os.write(terminal, b"\x03")
            process.wait(READY_S)
            os.close(terminal)
        assert not root.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the agent as another user")
def test_a_stand_runs_from_a_place_that_only_root_can_reach() -> None:
    with short_directory() as home:
        home.chmod(0o700)
        place = copy(home / "programs", (*DEVICE, "server"))
        with running_stand("software", commands=place) as stand:
            info = stand.info
            assert {uid_of(info["agent_pid"]), uid_of(info["link_pid"])} == {ROOT_STANDS_IN_UID, LINK_STANDS_IN_UID}
            # What they run is out of that place: a module that they load later must be there for their user.
            for name in ("agent_pid", "link_pid"):
                assert str(home) not in Path(f"/proc/{info[name]}/maps").read_text()
            assert stand.run("license-agent-cli", "rotate").returncode == 0
            with LicenseClient(info["pos_socket"], deadline=10) as client:
                assert client.validate(info["tokens"]["valid"]).valid


def uid_of(pid: int) -> int:
    """Whom a process runs as; its files in /proc belong to root where it cannot be dumped."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Uid:")).split()[1])


def test_a_stand_needs_no_root_and_down_leaves_nothing() -> None:
    user: dict[str, Any] = {"user": 54321, "group": 54321, "extra_groups": []} if os.geteuid() == 0 else {}
    uid = 54321 if user else os.geteuid()
    commands = commands_for(uid) if user else BIN
    with short_directory() as directory:
        directory.chmod(0o777)
        root = directory / "stand"
        process = subprocess.Popen(
            [str(commands / "license-stand"), "up", "--dir", str(root), "--backend", "tpm"],
            **user,
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"},
        )
        try:
            wait_for_file(root / "stand.json", process, "the stand did not come up")
            info = json.loads((root / "stand.json").read_text())
            assert info["agent_uid"] == uid
            assert os.stat(f"/proc/{info['agent_pid']}").st_uid in (0, uid)
            if user:  # root is not on this stand's allow-list
                with (
                    LicenseClient(info["pos_socket"], deadline=READY_S, agent_uid=uid) as client,
                    pytest.raises(AgentRefused) as caught,
                ):
                    client.ping()
                assert caught.value.code is ErrorCode.FORBIDDEN
            down = [str(commands / "license-stand"), "down", "--dir", str(root)]
            subprocess.run(down, check=True, capture_output=True, timeout=READY_S, cwd="/", **user)
            assert process.wait(READY_S) == 0
            with pytest.raises(ProcessLookupError):
                os.kill(info["agent_pid"], 0)
        finally:
            process.terminate()
            process.communicate(timeout=READY_S)
        assert not root.exists()
