"""What `agents show` says of an agent."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select, update

from server.agents.clones import EXTENSION_S, Halt
from server.agents.registry import AgentRow
from server.licensing.licenses.licenses import Order
from server.licensing.lists.agent_view import DAY_S, SILENT_S, AgentView, CertificateRow, notes
from server.licensing.lists.license_list import LicenseRow
from server.licensing.secrets.secrets import SecretRow
from server.registry.models.core import Agent
from tests.server.devices import NOW, Device
from tests.support.serverside import open_server
from tests.support.servertool import license_server

ROW = AgentRow("pos-1", 1, "ab" * 32, "active", "software", "software", {}, {}, NOW, NOW, NOW)
FINE = AgentView(
    ROW,
    False,
    None,
    (CertificateRow("1", "active", NOW, NOW + 30 * DAY_S, NOW),),
    (SecretRow(1, "ACTIVE", "", NOW, NOW + 9, NOW + 99, NOW),),
    (LicenseRow("a", "pos-1", "active", "x", (), {}, NOW, NOW + 9, 1, None),),
)
HALT = Halt("pos-1", NOW, NOW + EXTENSION_S, "version 3 came back", None, NOW)
DEAD = tuple(replace(FINE.licenses[0], state=state) for state in ("expired", "suspended", "revoked"))


@pytest.mark.parametrize(
    ("found", "after", "words"),
    [
        (FINE, 0, []),
        (FINE, SILENT_S, []),
        (FINE, SILENT_S + 1, ["no contact with the server for 7 days"]),
        (replace(FINE, agent=replace(ROW, status="revoked"), halt=HALT, licenses=DEAD), 0, ["it is revoked"]),
        (
            replace(FINE, halt=HALT),
            2 * DAY_S,
            ["(version 3 came back): its rotations are halted, and its licenses end in 28 days"],
        ),
        (FINE, 30 * DAY_S, ["no client certificate that is valid", "no contact with the server for 30 days"]),
        (replace(FINE, certificates=(replace(FINE.certificates[0], state="revoked"),)), 0, ["no client certificate"]),
        (replace(FINE, certificates=()), 0, ["no client certificate"]),
        (replace(FINE, agent=replace(ROW, serial=None, last_seen=None), certificates=()), 0, []),
        (replace(FINE, agent=replace(ROW, last_seen=None)), 0, ["no contact with the server since it was provisioned"]),
        (replace(FINE, secrets=(replace(FINE.secrets[0], state="PENDING"),)), 0, ["it has no confirmed secret"]),
        (replace(FINE, urgent=True), 0, ["has to rotate its secret at its next contact"]),
        (replace(FINE, licenses=DEAD), 0, ["all of its licenses have expired, or are suspended or revoked"]),
        (replace(FINE, licenses=()), 0, []),
    ],
)
def test_what_needs_attention_is_said(found: AgentView, after: int, words: list[str]) -> None:
    said = notes(found, NOW + after)
    assert len(said) == len(words)
    assert all(word in text for word, text in zip(words, said, strict=True)), said


@pytest.mark.system
def test_everything_of_an_agent_is_shown_and_no_secret(directory: Path) -> None:
    server = open_server(directory)
    Device(1).come(server, now=NOW)
    server.secrets.rotate_by_hand("pos-000001", NOW)
    for number in range(12):
        server.licenses.issue("pos-000001", Order(f"l{number:02}", "x", ("sales",), {}, 1, NOW + 10**9), NOW)
    server.licenses.revoke("l00", NOW)
    with server.database.write() as session:
        session.execute(update(Agent).values(halted_at=NOW, halt_reason="version 3 came back", last_seen=NOW))
        sealed = session.scalar(select(Agent.agreement_key))
    server.close()
    env = {"LICENSE_SERVER_DIR": str(directory)}
    shown = license_server("agents", "show", "pos-000001", env=env).stdout
    for text in (
        "status:       active\n",
        "last contact: 20",
        " ago)\n",
        "halted:       since 20",
        "version 3 came back",
        "secrets:      1 ACTIVE\n",
        "license:      l00, revoked, until 20",
        "license:      l01, active, until 20",
        "licenses:     12 in all; 'license-server licenses list --agent pos-000001' lists them",
        "NOTICE: two machines have its identity",
    ):
        assert text in shown, shown
    assert shown.count("license:") == 10
    found = json.loads(license_server("agents", "show", "pos-000001", "--json", env=env).stdout)
    assert found["agent_id"] == "pos-000001" and found["secrets"][0]["version"] == 1, "as before"
    assert found["halted"]["evidence"] == "version 3 came back" and len(found["licenses"]) == 12
    assert found["certificates"][0]["state"] == "active" and found["urgent"] is False
    assert any("two machines" in note for note in found["notes"])
    assert sealed is not None and "sealed" not in json.dumps(found)
    assert "no agent 'x' is enrolled" in license_server("agents", "show", "x", env=env).stderr
