"""An agent whose server goes away and comes back, as administrators and tills see it: real programs, short dates."""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from license_agent_client import LicenseClient

from tests.support.stand import Stand, running_stand
from tests.support.waiting import READY_S, wait_until


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with running_stand("software") as running:
        yield running


def cli(stand: Stand, *arguments: str, fine: int | None = 0) -> Any:
    """What a command prints. `status` has a status for each verdict: None takes any."""
    done = stand.run("license-agent-cli", "--json", *arguments)
    assert fine is None or done.returncode == fine, done.stderr
    return json.loads(done.stdout) if not fine else done.stderr


def records(stand: Stand, event: str) -> list[dict[str, Any]]:
    lines = Path(stand.info["audit_log"]).read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]


def metric(stand: Stand, name: str) -> float:
    found = re.search(rf"^license_agent_{name} (\S+)$", cli(stand, "metrics")["text"], re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def test_a_contact_is_made_by_command_and_shown(stand: Stand) -> None:
    before = metric(stand, "contacts_total")
    server = cli(stand, "contact")
    assert server["url"] == stand.info["server_url"] and server["failures"] == 0 and server["problem"] is None
    assert metric(stand, "contacts_total") == before + 1
    shown = stand.run("license-agent-cli", "status").stdout
    assert "contacts failed in a row  0" in shown and stand.info["server_url"] in shown


def test_a_certificate_is_renewed_by_command_and_used(stand: Stand) -> None:
    before = cli(stand, "status", fine=None)["server"]["certificate_ends"]
    time.sleep(1.1)
    assert cli(stand, "certificate", "renew")["certificate_ends"] > before
    assert [record["outcome"] for record in records(stand, "tls.renewed")] == ["begun", "ok"]
    assert cli(stand, "contact")["failures"] == 0


def test_degraded_mode_cannot_be_switched_on_where_the_configuration_forbids_it(stand: Stand) -> None:
    assert 'degraded_switch = "allowed"' in cli(stand, "degraded", "on", fine=4)
    assert cli(stand, "degraded", "show") == {"mode": "online", "since": None, "held": False}


def test_degraded_mode_can_be_switched_where_the_configuration_allows_it(stand: Stand) -> None:
    config = Path(stand.info["config"])
    text = config.read_text()
    try:
        config.write_text(text.replace("[agent]\n", '[agent]\ndegraded_switch = "allowed"\n'))
        os.kill(stand.info["agent_pid"], signal.SIGHUP)
        wait_until(lambda: len(records(stand, "config.reloaded")) > 0, "no reload")
        assert cli(stand, "degraded", "on") == {"mode": "degraded", "held": True}
        with LicenseClient(stand.info["pos_socket"], deadline=READY_S) as client:
            verdict = client.validate(stand.info["tokens"]["valid"])
        assert verdict.valid and verdict.degraded
        # It is kept over a restart, and no date has changed by it.
        assert stand.run("license-stand", "restart", "--dir", str(stand.root)).returncode == 0
        assert cli(stand, "degraded", "show")["held"] is True
        assert cli(stand, "degraded", "off") == {"mode": "online", "held": False}
    finally:
        config.write_text(text)
        os.kill(stand.info["agent_pid"], signal.SIGHUP)


def test_the_server_goes_and_licenses_pass_until_grace_ends_and_again_when_it_is_back(stand: Stand, tmp_path: Path) -> None:
    root = ("--dir", str(stand.root))
    began = time.monotonic()
    cli(stand, "status", fine=None)
    # What is to be seen in grace takes a few commands: on a slow machine, more seconds of it.
    grace = max(15, int(40 * (time.monotonic() - began)))
    assert stand.run("license-server", "periods", "--interval", "4", "--grace", str(grace)).returncode == 0
    cli(stand, "rotate")
    file = tmp_path / "till"
    file.write_text(stand.info["tokens"]["valid"])
    with LicenseClient(stand.info["pos_socket"], deadline=READY_S) as client:
        assert client.validate_file(file).valid
        assert stand.run("license-stand", "server", "stop", *root).returncode == 0
        wait_until(lambda: cli(stand, "degraded", "show")["mode"] == "degraded", "it was not degraded")
        verdict = client.validate_file(file)
        assert verdict.valid and verdict.degraded
        assert metric(stand, "degraded_mode") == 1
        told = cli(stand, "contact", fine=4)
        assert "UNAVAILABLE" in told and "server" in told
        wait_until(lambda: cli(stand, "degraded", "show")["mode"] == "expired", "grace did not end")
        verdict = client.validate_file(file)
        assert (verdict.valid, verdict.reason) == (False, "degraded_expired")
        assert stand.run("license-server", "periods", "--interval", "86400", "--grace", "604800").returncode == 0
        assert stand.run("license-stand", "server", "start", *root).returncode == 0
        assert cli(stand, "contact")["failures"] == 0
        wait_until(lambda: cli(stand, "degraded", "show")["mode"] == "online", "it stayed degraded")
        verdict = client.validate_file(file)
        assert verdict.valid and not verdict.degraded, "the till got a new token for the one that had died"
    assert metric(stand, "degraded_mode") == 0 and metric(stand, "degraded_seconds_total") > 5
    assert len(records(stand, "degraded.expired")) == 1
    assert [record for record in records(stand, "degraded.left") if record["seconds"] >= 5]
    outcomes = [record["outcome"] for record in records(stand, "alert.secret_expired")]
    assert outcomes == ["raised", "cleared"]
    contacts = [record["outcome"] for record in records(stand, "server.contact")]
    assert "failed" in contacts
    assert "ok" in contacts[len(contacts) - contacts[::-1].index("failed") :], "the contact that succeeded is not in the log"
