"""The TPM stops answering, for a while or for good: known licenses go on, the agent recovers by itself, a stop ends in time."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from license_agent_client import LicenseClient

from tests.support.stand import Stand, running_stand


@pytest.fixture
def stand() -> Iterator[Stand]:
    with running_stand("tpm") as made:
        yield made


def swtpm_of(stand: Stand) -> int:
    """The process of this stand's TPM."""
    found = subprocess.run(["pgrep", "-f", f"swtpm.*{stand.root}"], capture_output=True, text=True, check=True)
    return int(found.stdout.split()[0])


def backend_of(stand: Stand) -> str:
    done = stand.run("license-agent-cli", "--json", "status")
    assert done.returncode == 0, done.stderr
    return done.stdout


def agent_log(stand: Stand) -> str:
    return Path(stand.info["agent_log"]).read_text()


def test_a_tpm_that_hangs_and_comes_back(stand: Stand) -> None:
    """More calls hang than threads are replaced; then all of them come back at once."""
    pid, agent = swtpm_of(stand), stand.info["agent_pid"]
    with LicenseClient(stand.info["pos_socket"], deadline=10) as client:
        os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(4):
                assert '"hung"' in backend_of(stand)
                assert client.validate(stand.info["tokens"]["valid"]).valid
        finally:
            os.kill(pid, signal.SIGCONT)
        ends = time.monotonic() + 30
        while '"available"' not in backend_of(stand):
            assert time.monotonic() < ends, agent_log(stand)
            time.sleep(0.1)
        done = stand.run("license-stand", "rotate", "--dir", str(stand.root))
        assert done.returncode == 0, done.stderr
        assert client.validate(stand.info["tokens"]["valid"]).valid
    assert stand.info["agent_pid"] == agent
    done = stand.run("license-agent-cli", "audit", "verify")
    assert done.stdout.startswith("intact"), done.stdout
    assert "is given up; the next call makes a new one" in agent_log(stand)


def test_a_stop_does_not_wait_for_a_tpm_that_hangs(stand: Stand) -> None:
    pid, agent = swtpm_of(stand), stand.info["agent_pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        os.kill(agent, signal.SIGTERM)
        while Path(f"/proc/{agent}/status").exists() and "Z (zombie)" not in Path(f"/proc/{agent}/status").read_text():
            assert time.monotonic() - began < 15, "the stop takes too long"
            time.sleep(0.05)
        assert "are not sealed: the hardware does not answer" in agent_log(stand)
    finally:
        os.kill(pid, signal.SIGCONT)
