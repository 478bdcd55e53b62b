"""The daemon by itself: start, reload, stop, and every way in which its files can be wrong."""

import codecs
import contextlib
import json
import os
import pwd
import re
import signal
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from license_agent_client import AgentRefused, AgentUnavailable, ErrorCode, LicenseClient
from license_agent_client.clientwire import decode_reply, encode_request
from license_agent_client.errors import RemoteProtocolError
from license_agent_client.frames import FrameDecoder

from installer.upgrade import running_build
from ipc.bounds import IDLE_TIMEOUT_S
from tests.support.daemon import Bench, furnished
from tests.support.stand import BIN, short_directory
from tests.support.waiting import READY_S


@pytest.fixture
def bench() -> Iterator[Bench]:
    with furnished() as made:
        yield made


def _client(bench: Bench, deadline: float = READY_S) -> LicenseClient:
    return LicenseClient(bench.run_dir / "pos.sock", deadline=deadline, agent_uid=bench.uid)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_makes_its_sockets_validates_and_stops_cleanly(bench: Bench) -> None:
    os.umask(0o022)
    with bench.running() as running:
        assert _mode(bench.run_dir / "pos.sock") == 0o666 and _mode(bench.run_dir / "admin.sock") == 0o600
        bench.give_secret()
        token = bench.issue()
        with _client(bench) as client:
            assert client.validate(token).valid
            running.process.send_signal(signal.SIGTERM)
            running.notice("STOPPING=1")
            assert running.process.wait(READY_S) == 0
        assert not (bench.run_dir / "pos.sock").exists()
    events = [record["event"] for record in bench.records()]
    assert events[0] == "agent.started" and "agent.stopped" in events and events[-2:] == ["audit.checkpoint", "audit.certified"]
    # All is there again after the next start.
    with bench.running(), _client(bench) as client:
        assert client.validate(token).valid


def test_a_stop_answers_what_is_in_flight(bench: Bench) -> None:
    with bench.running(inherited=True) as running:
        bench.give_secret()
        token = bench.issue()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(bench.run_dir / "pos.sock"))
            sock.settimeout(READY_S)
            frames = [encode_request("validate_license", n, {"token": token, "nonce": os.urandom(16)}) for n in range(50)]
            running.process.send_signal(signal.SIGTERM)
            sock.sendall(b"".join(frames))
            decoder, bodies = FrameDecoder(), []
            while data := sock.recv(65536):
                bodies += decoder.receive_data(data)
        assert [decode_reply(body, n)["valid"] for n, body in enumerate(bodies)] == [True] * 50
        assert running.process.wait(READY_S) == 0
        # Inherited sockets are not ours to remove: the next run finds its callers there.
        assert (bench.run_dir / "pos.sock").exists()


def test_hangup_reloads_and_a_bad_file_changes_nothing(bench: Bench) -> None:
    with bench.running() as running:
        with _client(bench) as client:
            client.ping()
            bench.write_config(uids=[4242])
            running.process.send_signal(signal.SIGHUP)
            running.notice("RELOADING=1") and running.notice("READY=1")
            # A connection from before is cut off as well.
            with pytest.raises(AgentRefused):
                client.ping()
        with _client(bench) as client, pytest.raises(AgentRefused) as caught:
            client.ping()
        assert caught.value.code is ErrorCode.FORBIDDEN
        me = f"user {pwd.getpwuid(os.geteuid()).pw_name} (uid {os.geteuid()}) may not use this socket: add the user to [pos]"
        assert me in str(caught.value)
        bench.write_config()
        running.process.send_signal(signal.SIGHUP)
        running.notice("READY=1")
        bench.write_config(extra="[nonsense]\n")
        running.process.send_signal(signal.SIGHUP)
        running.notice("READY=1")
        with _client(bench) as client:
            client.ping()
        assert "unknown section [nonsense]" in running.log() and "old one stays" in running.log()
    outcomes = [record["outcome"] for record in bench.records() if record["event"] == "config.reloaded"]
    assert outcomes == ["ok", "ok", "refused"]


def _reload_as_systemd(bench: Bench) -> "subprocess.CompletedProcess[str]":
    """What `systemctl reload` runs, and goes by: the unit's own command."""
    unit = (Path(__file__).parents[2] / "systemd" / "license-agent.service").read_text()
    (command,) = re.findall(r"^ExecReload=\+/usr/bin/(.*)$", unit, re.MULTILINE)
    program, *arguments = command.split()
    command = [str(BIN / program), "--agent-uid", str(bench.uid), *arguments]
    return subprocess.run(command, env=bench.env, capture_output=True, text=True, check=False, timeout=READY_S)


def test_a_reload_of_a_broken_file_fails_and_status_says_so_until_the_file_is_right(bench: Bench) -> None:
    status = ("license-agent-cli", "status")
    with bench.running():
        bench.give_secret()
        assert _reload_as_systemd(bench).returncode == 0
        bench.write_config(extra="[nonsense]\n")
        done = _reload_as_systemd(bench)
        assert done.returncode == 1 and "unknown section [nonsense]" in done.stderr
        refused = "needs attention: the configuration on disk is refused: "
        told = bench.tool(*status, fine=(1,))
        assert told.startswith(refused) and "unknown section [nonsense]" in told.split("\n")[0]
        # Right again and as it was loaded: nothing is left to say, and nothing to load.
        bench.write_config()
        assert bench.tool(*status).startswith("fine")
        # Broken, and nobody has tried to load it: the next start would.
        bench.write_raw_config("[pos\n")
        assert bench.tool(*status, fine=(1,)).startswith(refused)
        bench.write_config(extra="[audit]\nburst = 2000\n")
        assert bench.tool(*status, fine=(1,)).startswith(
            "needs attention: the configuration on disk was changed and not loaded"
        )
        assert _reload_as_systemd(bench).returncode == 0
        assert bench.tool(*status).startswith("fine")
        bench.write_config(extra='[server]\nurl = "https://elsewhere"\ncert_pin = "sha256:' + "0" * 64 + '"\n')
        done = _reload_as_systemd(bench)
        assert done.returncode == 0 and done.stdout == "the configuration was reloaded; for a restart wait: server\n"
        assert "wait for a restart: server" in bench.tool(*status, fine=(1,)).split("\n")[0]


def test_a_reload_of_what_could_not_start_tries_again_and_says_how_that_went(bench: Bench) -> None:
    bench.write_config(extra="[pos2]\n")
    with bench.running(inherited=True):
        done = _reload_as_systemd(bench)
        assert done.returncode == 4 and "unknown section [pos2]" in done.stderr
        bench.write_config()
        assert _reload_as_systemd(bench).returncode == 0
        bench.give_secret()
        assert bench.tool("license-agent-cli", "status").startswith("fine")


def test_a_device_that_waits_to_be_provisioned_can_be_reloaded(bench: Bench) -> None:
    for path in (*bench.keys.iterdir(), *bench.state.iterdir()):
        path.unlink()
    with bench.running():
        bench.write_config(extra="[pos2]\n")
        done = _reload_as_systemd(bench)
        assert done.returncode == 1 and "unknown section [pos2]" in done.stderr
        assert "also: the configuration on disk is refused" in bench.tool("license-agent-cli", "status", fine=(2,))
        bench.write_config(uids=[4242])
        assert _reload_as_systemd(bench).returncode == 0
        assert bench.status()["mode"] == "unprovisioned"


def test_the_watchdog_is_fed(bench: Bench) -> None:
    with bench.running(watchdog=True) as running:
        running.notice("WATCHDOG=1")
        running.notice("WATCHDOG=1")


def test_a_bad_configuration_does_not_start(bench: Bench) -> None:
    bench.write_config(extra="[pos2]\n")
    status, text = bench.run_to_the_end()
    assert status == 78 and "unknown section [pos2]; did you mean [pos]?" in text and "Traceback" not in text
    bench.write_config()
    bench.config.chmod(0o640)
    status, text = bench.run_to_the_end()
    assert status == 78 and "chmod 0600" in text


def test_with_inherited_sockets_it_says_that_it_is_misconfigured_until_it_is_mended(bench: Bench) -> None:
    bench.write_config(extra="[pos2]\n")
    with bench.running(inherited=True) as running:
        with _client(bench) as client, pytest.raises(AgentRefused) as caught:
            client.ping()
        assert caught.value.code is ErrorCode.AGENT_MISCONFIGURED and "cli status' as root" in str(caught.value)
        told = bench.tool("license-agent-cli", "status", fine=(2,))
        reason = f"{bench.config}: unknown section [pos2]; did you mean [pos]?"
        assert told == f"not working: the agent is running but cannot work: its configuration is refused: {reason}\n"
        bench.write_config()
        running.process.send_signal(signal.SIGHUP)
        running.notice("READY=1")
        with _client(bench) as client:
            client.ping()


def test_an_agent_whose_keys_are_gone_says_so(bench: Bench) -> None:
    for path in bench.keys.iterdir():
        path.unlink()
    status, text = bench.run_to_the_end()
    assert (
        status == 69 and "software.key does not exist" in text and "license-agent recover" in text and "Traceback" not in text
    )
    assert "license-agent init" not in text


def test_a_device_that_was_never_an_agent_waits_to_be_provisioned(bench: Bench) -> None:
    for path in (*bench.keys.iterdir(), *bench.state.iterdir()):
        path.unlink()
    with bench.running() as running:
        told = bench.tool("license-agent-cli", "status", fine=(2,))
        assert told.startswith("not working: this device is not a license agent yet. Run 'license-agent-cli provision'.")
        assert "not a license agent yet" in told and "exec forbidden yes" in told
        client = LicenseClient(bench.run_dir / "pos.sock", deadline=3, agent_uid=bench.uid)
        with client, pytest.raises(AgentUnavailable, match="can provision it"):
            client.validate("a.b.c.d.e")
        assert "license-agent-cli provision" in bench.tool("license-agent-cli", "secrets", fine=(4,))
        # One instruction.
        assert running.log().count("license-agent-cli provision") == 1 and "license-agent init" not in running.log()


def test_initializing_twice_is_refused(bench: Bench) -> None:
    said = bench.tool("license-agent", "init", "--trust", str(bench.root / "trust.json"), fine=(69,))
    assert "has been initialized" in said


def test_status_begins_with_a_verdict_and_its_exit_status_follows(bench: Bench) -> None:
    ask = ("license-agent-cli", "status")
    no_secret = "not working: the agent has no secret yet, so it refuses every license. Get a delivery"
    with bench.running():
        assert bench.tool(*ask, fine=(2,)).startswith(no_secret)
        bench.give_secret()
        assert bench.tool(*ask).startswith("fine: the agent validates licenses\n")
        assert bench.tool("license-agent-cli", "healthcheck") == "fine: the agent validates licenses\n"
        assert json.loads(bench.tool("license-agent-cli", "--json", "healthcheck")) == {"verdict": "fine", "findings": []}
        # What an upgrade asks it; this one was started from a source tree.
        assert running_build(str(bench.run_dir / "admin.sock"), bench.uid) == ""
        with _client(bench) as client:
            token = bench.issue()
            bench.tool("license-agent-cli", "secrets", "invalidate", "1", "--yes")
            assert not client.validate(token).valid
        assert bench.tool(*ask, fine=(2,)).startswith("not working: every secret version is invalidated")
    silent = bench.tool(*ask, fine=(3,))
    assert silent.startswith("not working: ") and "does not exist: is the agent running?" in silent


def test_without_a_secret_a_token_is_of_an_unknown_secret(bench: Bench) -> None:
    with bench.running():
        bench.tool("license-server", "rotate", "--agent", "pos-009", "--out", os.devnull)
        with _client(bench) as client:
            verdict = client.validate(bench.issue())
    assert verdict.reason == "unknown_secret" and not verdict.valid


@pytest.mark.parametrize("damage", ["truncated", "garbage", "edited"])
def test_a_corrupt_state_file_is_restored(bench: Bench, damage: str) -> None:
    with bench.running():
        bench.give_secret()
    path = bench.state / "state.json"
    good = path.read_text()
    path.write_text({"truncated": good[:40], "garbage": "\x00\xff", "edited": good.replace('"ACTIVE"', '"GRACE"')}[damage])
    with bench.running() as running:
        assert "state.json was corrupt" in running.log()
    restored = path.read_text()
    assert '"ACTIVE"' in restored
    assert any(record["event"] == "state.restored" and record["origin"] == "backup" for record in bench.records())


def test_a_damaged_store_is_repaired_from_its_twin(bench: Bench) -> None:
    with bench.running():
        bench.give_secret()
        token = bench.issue()
    store = bench.state / "secret.enc"
    whole = store.read_bytes()
    store.write_bytes(whole[: len(whole) // 2])
    with bench.running(), _client(bench) as client:
        assert client.validate(token).valid
    assert store.read_bytes() == whole
    assert any(record["event"] == "store.repaired" for record in bench.records())


def test_an_older_store_is_refused_as_a_rollback(bench: Bench) -> None:
    with bench.running():
        bench.give_secret()
    old = {path: path.read_bytes() for path in bench.state.glob("secret.enc*")}
    with bench.running():
        bench.give_secret()
    for path, data in old.items():
        path.write_bytes(data)
    status, text = bench.run_to_the_end()
    assert status == 69 and "older" in text and "Traceback" not in text


def test_a_changed_audit_log_stops_the_start_and_says_where(bench: Bench) -> None:
    with bench.running():
        bench.give_secret()
    log = bench.log / "audit.log"
    data = log.read_bytes()
    log.write_bytes(data.replace(b'"agent.started"', b'"agent.startled"', 1))
    status, text = bench.run_to_the_end()
    assert status == 69 and "line 1" in text and "evidence" in text


def test_an_audit_log_that_was_cut_back_is_alerted_at_the_next_start(bench: Bench) -> None:
    with bench.running():
        bench.give_secret()
        bench.give_secret()
    log = bench.log / "audit.log"
    lines = log.read_bytes().splitlines(keepends=True)
    first_checkpoint = next(n for n, line in enumerate(lines) if b'"audit.checkpoint"' in line)
    log.write_bytes(b"".join(lines[: first_checkpoint + 1]))
    with bench.running() as running:
        assert "ALERT the audit log does not match its sealed value" in running.log()
        said = bench.tool("license-agent-cli", "audit", "verify")
        assert "intact" in said and "a new seal begins" in said
    assert any(record["event"] == "alert.audit_seal" for record in bench.records())
    # It goes on from there: the next start has nothing to complain about.
    with bench.running() as running:
        assert "ALERT" not in running.log()


def test_a_cut_between_log_and_seal_is_no_tampering(bench: Bench) -> None:
    """The record of a checkpoint is durable before the seal is: a cut in between leaves the seal one behind."""
    with bench.running() as running:
        bench.give_secret()
        anchor = (bench.keys / "software.anchor").read_bytes()
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(READY_S)
    # The stop has sealed once more; put back what was sealed before it. The store is of the same generation.
    (bench.keys / "software.anchor").write_bytes(anchor)
    for _start in range(2):
        with bench.running() as running:
            assert "ALERT" not in running.log()
            said = bench.tool("license-agent-cli", "audit", "verify")
            assert "intact" in said and "a new seal begins" not in said


def test_a_torn_last_line_is_set_aside(bench: Bench) -> None:
    with bench.running():
        pass
    log = bench.log / "audit.log"
    with log.open("ab") as file:
        file.write(b'{"seq":99,"time"')
    with bench.running():
        bench.tool("license-agent-cli", "audit", "verify")
    assert (bench.log / "audit.log.torn").read_bytes() == b'{"seq":99,"time"\n'


def test_counted_repeats_survive_kill_9(bench: Bench) -> None:
    bench.write_config(extra="[audit]\nrecords_per_s = 1\nburst = 3\n")
    with bench.running() as running:
        bench.give_secret()
        token = bench.issue()
        with _client(bench) as client:
            for _ in range(40):
                assert client.validate(token).valid
        running.process.kill()
        running.process.wait()
    full = [record for record in bench.records() if record["event"] == "license.validated"]
    assert len(full) < 10
    with bench.running():
        bench_key = bench.root / "attestation.pem"
        bench_key.write_text(bench.tool("license-agent-cli", "keys", "attestation"))
    records = [record for record in bench.records() if record["event"] == "license.validated"]
    assert sum(record.get("count", 1) for record in records) == 40
    counted = [record for record in records if "count" in record]
    assert counted and counted[0]["first"] <= counted[0]["last"]
    bench_log = bench.log / "audit.log"
    said = bench.tool(
        *("license-agent-cli", "audit", "verify", "--file", str(bench_log), "--attestation-key", str(bench_key), "--open-end")
    )
    assert said.startswith("intact from 1 to ") and ", end open: " in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_stops_no_validation_and_is_told_afterwards(bench: Bench) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size=64k,mode=0755,uid={bench.uid}", "none", bench.log], check=True)
    ballast = bench.log / "ballast"
    try:
        with bench.running() as running:
            bench.give_secret()
            tokens = [bench.issue() for _ in range(3)]
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(512))
            with _client(bench) as client:
                # The page that is begun still takes a few records.
                for _ in range(60):
                    assert client.validate(tokens[0]).valid
                assert [client.validate(token).valid for token in tokens] == [True] * 3
                refused = bench.tool("license-agent-cli", "secrets", "invalidate", "1", "--yes", fine=(4,))
                assert "audit log cannot be written" in refused
                told = bench.tool("license-agent-cli", "healthcheck", fine=(1,))
                assert told.startswith("needs attention: the audit log cannot be written") and len(told.splitlines()) == 1
                assert "records are lost" in running.log()
                ballast.unlink()
                assert client.validate(tokens[0]).valid and client.validate(bench.issue()).valid
            assert "intact" in bench.tool("license-agent-cli", "audit", "verify")
        gaps = [record for record in bench.records() if record["event"] == "audit.gap"]
        assert sum(record["lost_records"] for record in gaps) >= 2
    finally:
        subprocess.run(["umount", bench.log], check=True)


def test_the_metrics_file_says_when_it_was_written_and_that_the_agent_was_stopped(bench: Bench) -> None:
    def metrics() -> dict[str, float]:
        lines = (bench.state / "metrics.prom").read_text().splitlines()
        pairs = [line.rpartition(" ") for line in lines if not line.startswith("#")]
        return {name.removeprefix("license_agent_"): float(value) for name, _, value in pairs}

    before = time.time()
    with bench.running():
        first = metrics()
    last = metrics()
    assert (first["up"], last["up"]) == (1, 0)
    assert before <= first["start_time_seconds"] <= first["metrics_written_timestamp_seconds"] <= time.time()
    assert last["start_time_seconds"] == first["start_time_seconds"]
    assert first["metrics_written_timestamp_seconds"] < last["metrics_written_timestamp_seconds"] <= time.time()
    with bench.running() as running:
        assert metrics()["up"] == 1
        running.process.kill()
        running.process.wait()
    killed = metrics()
    assert killed["up"] == 1 and killed["metrics_written_timestamp_seconds"] <= time.time()


def test_slow_and_broken_peers_do_not_delay_others(bench: Bench) -> None:
    with bench.running():
        bench.give_secret()
        token = bench.issue()
        path = str(bench.run_dir / "pos.sock")
        idlers = []
        for opening in (b"", b"\x00", b"\x00\x00\x10\x00", b"\x00\x00\x10\x00" + bytes(100)) * 5:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(path)
            sock.sendall(opening)
            idlers.append(sock)
        # One asks and never reads.
        glutton = socket.socket(socket.AF_UNIX)
        glutton.connect(path)
        glutton.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                glutton.send(encode_request("ping", 1, {}) * 50)
        time.sleep(1.1)  # the rate limit's bucket of this user was emptied by the one who never reads
        # Long before the agent ends a connection that says nothing: each of those would hold it up for so long.
        with _client(bench, deadline=IDLE_TIMEOUT_S / 2) as client:
            assert client.validate(token).valid
        for sock in (*idlers, glutton):
            sock.close()


@pytest.mark.parametrize(
    ("bytes_sent", "code"),
    [
        (struct.pack(">I", 0), ErrorCode.FRAME_TOO_LARGE),
        (struct.pack(">I", 65537), ErrorCode.FRAME_TOO_LARGE),
        (struct.pack(">I", 1) + b"\xc0", ErrorCode.BAD_MESSAGE),
        (struct.pack(">I", 4) + b"GET ", ErrorCode.BAD_MESSAGE),
        (b"GET / HTTP/1.1\r\n\r\n", ErrorCode.FRAME_TOO_LARGE),
    ],
)
def test_what_is_not_our_protocol_gets_a_typed_error_and_the_end(bench: Bench, bytes_sent: bytes, code: ErrorCode) -> None:
    with bench.running(), socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(bench.run_dir / "pos.sock"))
        sock.settimeout(READY_S)
        sock.sendall(bytes_sent)
        data = b""
        while chunk := sock.recv(65536):
            data += chunk
        (body,) = FrameDecoder().receive_data(data)
        with pytest.raises(RemoteProtocolError) as caught:
            decode_reply(body, 1)
        assert caught.value.code is code


def test_a_second_daemon_does_not_take_the_first_ones_sockets(bench: Bench) -> None:
    with bench.running(), _client(bench) as client:
        status, text = bench.run_to_the_end()
        assert status == 69 and "another license-agent works on" in text
        client.ping()
    # The second asks nobody: the first one would take it for an unauthorized user.
    assert not [record for record in bench.records() if record["event"] == "access.denied"]


def test_a_configuration_with_a_byte_order_mark_is_read(bench: Bench) -> None:
    text = bench.config.read_bytes()
    for mark in (codecs.BOM_UTF8, codecs.BOM_UTF16_LE):
        bench.config.write_bytes(mark + text)
        said = bench.tool("license-agent", "check-config", fine=(0, 78))
        assert ("no problems found" in said) is (mark == codecs.BOM_UTF8)
        assert "is UTF-16, not UTF-8" in said or "no problems" in said


def test_a_run_directory_that_is_too_long_for_a_socket_is_refused_before_the_start(bench: Bench) -> None:
    text = bench.config.read_text()
    for length in (97, 96):
        path = f"{bench.root}/{'x' * length}"[:length]
        bench.write_raw_config(text.replace(f'run_dir = "{bench.run_dir}"', f'run_dir = "{path}"'))
        said = bench.tool("license-agent", "check-config", fine=(0, 78))
        assert ("must have at most 96 bytes, so that the socket admin.sock fits; it has 97" in said) is (length == 97)
    # What passes the check can be used.
    with short_directory() as directory:
        place = directory / ("y" * (96 - len(str(directory)) - 1))
        bench.write_raw_config(text.replace(f'run_dir = "{bench.run_dir}"', f'run_dir = "{place}"'))
        os.chown(directory, bench.uid, bench.uid)
        bench.run_dir = place
        with bench.running(), _client(bench) as client:
            client.ping()


def test_a_policy_key_that_cannot_be_used_is_named(bench: Bench) -> None:
    pcrs = bench.root / "pcrs.json"
    pcrs.write_text('{"pcrs": {"7": "' + "0" * 64 + '"}}')
    key = ec.generate_private_key(ec.SECP256R1())
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    for content, expected in ((b"nonsense", "holds no private key in PEM"), (locked, "is encrypted; write the key without")):
        path = bench.root / "policy.key"
        path.write_bytes(content)
        command = ("sign-policy", "--key", str(path), "--pcrs", str(pcrs), "--number", "1")
        said = bench.tool("license-agent", *command, fine=(1,))
        assert said.startswith(f"license-agent: the policy cannot be signed: {path} {expected}"), said


def test_no_daemon_is_a_typed_error_within_the_deadline(bench: Bench) -> None:
    # Without the deadline, nothing would end this.
    with _client(bench, deadline=0.3) as client, pytest.raises(AgentUnavailable, match=r"within 0\.3 s") as caught:
        client.ping()
    assert "pos.sock" in str(caught.value)
