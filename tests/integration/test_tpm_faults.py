"""The TPM stops answering, for a while or for good: known licenses go on, the agent recovers by itself, a stop ends in time."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from license_agent_client import LicenseClient

from agentd.daemon import LAST_WORK_S
from tests.support.machine import Machine, furnished_machine
from tests.support.stand import Stand, running_stand
from tests.support.waiting import READY_S, wait_until


@pytest.fixture
def stand() -> Iterator[Stand]:
    with running_stand("tpm") as made:
        yield made


def swtpm_of(stand: Stand) -> int:
    """The process of this stand's TPM."""
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = command.read_bytes().split(b"\0")
            if words[0].endswith(b"swtpm") and any(str(stand.root).encode() in word for word in words):
                return int(command.parent.name)
    raise AssertionError("the stand's swtpm does not run")


def backend_of(stand: Stand) -> str:
    done = stand.run("license-agent-cli", "--json", "status")
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def agent_log(stand: Stand) -> str:
    return Path(stand.info["agent_log"]).read_text()


def test_a_tpm_that_hangs_and_comes_back(stand: Stand) -> None:
    """More calls hang than threads are replaced; then all of them come back at once."""
    pid, agent = swtpm_of(stand), stand.info["agent_pid"]
    with LicenseClient(stand.info["pos_socket"], deadline=READY_S) as client:
        os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(4):
                assert '"hung"' in backend_of(stand)
                assert client.validate(stand.info["tokens"]["valid"]).valid
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: '"available"' in backend_of(stand), lambda: agent_log(stand), pause_s=0.1)
        done = stand.run("license-stand", "rotate", "--dir", str(stand.root))
        assert done.returncode == 0, done.stderr
        assert client.validate(stand.info["tokens"]["valid"]).valid
    assert stand.info["agent_pid"] == agent
    done = stand.run("license-agent-cli", "audit", "verify")
    assert done.stdout.startswith("intact"), done.stdout
    assert "is abandoned; the next call opens a new one" in agent_log(stand)


def test_a_stop_does_not_wait_for_a_tpm_that_hangs(stand: Stand) -> None:
    pid, agent = swtpm_of(stand), stand.info["agent_pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        os.kill(agent, signal.SIGTERM)
        # The TPM hangs all the time: who waited for it would not end.
        wait_until(lambda: has_ended(agent), "the stop takes too long")
        assert "are not sealed: no answer within" in agent_log(stand)
    finally:
        os.kill(pid, signal.SIGCONT)


def has_ended(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return "Z (zombie)" in Path(f"/proc/{pid}/status").read_text()
    return True


def test_what_a_stop_waits_for_ends_before_systemd_does() -> None:
    unit = (Path(__file__).parents[2] / "systemd" / "license-agent.service").read_text()
    limit = int(unit.split("TimeoutStopSec=")[1].split("s")[0])
    # Administrators' requests in flight, then the seal, the views and the end of the log.
    assert limit > 5.0 + 3 * LAST_WORK_S


def state_of(machine: Machine) -> str:
    found: str = machine.status()["backend"]["state"]
    return found


def test_a_tpm_that_is_killed_and_comes_back_empty() -> None:
    """Known and new licenses are validated through all of it; only changes need the TPM."""
    with furnished_machine("tpm") as machine:
        assert machine.tpm is not None
        with machine.running() as running:
            machine.give_secret()
            known, new = machine.issue(), machine.issue()
            with LicenseClient(machine.run_dir / "pos.sock", deadline=READY_S, agent_uid=machine.uid) as client:
                assert client.validate(known).valid
                machine.tpm.stop()
                assert state_of(machine) == "absent"
                assert client.validate(known).valid and client.validate(new).valid
                machine.tpm.clear()
                machine.tpm.restart()
                assert state_of(machine) in ("foreign", "nv_gone")
                assert client.validate(known).valid
                machine.tool("license-server", "rotate", "--agent", "pos-009", "--out", str(machine.root / "d"))
                refused = machine.tool("license-agent-cli", "secrets", "install", str(machine.root / "d"), fine=(4,))
                assert "UNAVAILABLE" in refused
                assert client.validate(known).valid
            running.process.terminate()
            assert running.process.wait(READY_S) == 0
