"""A device that gives up its keys, and is made an agent of its server again by one more claim."""

import os
import signal

import pytest

from tests.support.chain import running_chain
from tests.support.outputs import assert_fits
from tests.support.waiting import READY_S


@pytest.mark.parametrize("tpm", [pytest.param(False, marks=pytest.mark.thorough), True], ids=["software", "tpm"])
def test_recover_reinitialize_leads_back_to_provision(tpm: bool) -> None:
    with running_chain(tpm=tpm, hostile=False) as chain:
        old_id, old_serial = chain.agent_id, chain.admin("status")["server"]["serial"]
        token = chain.issue("license-of-before")
        process = chain.running.process
        os.kill(process.pid, signal.SIGTERM)
        process.wait(READY_S)
        told = chain.agent.tool("license-agent", "recover", "reinitialize")
        assert "license-agent-cli provision" in told
        chain.running.kill_and_restart()
        assert chain.mode() == "unprovisioned"
        assert_fits("status", chain.admin("status"))
        chain.provision()
        server = chain.admin("status")["server"]
        # A TPM stays who it is. Keys in files are another device, whose hardware id comes with them.
        assert (chain.agent_id == old_id and server["serial"] == old_serial) is tpm
        verdict = chain.admin("license_check", token=token)
        assert verdict["valid"] is False, "no secret of before is here any more"
        assert chain.admin("license_check", token=chain.issue("license-of-after"))["valid"] is True
        assert chain.admin("audit_verify")["ok"] is True
