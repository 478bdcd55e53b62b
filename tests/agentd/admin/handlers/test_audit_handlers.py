"""The agent's own check of its log says what it covered; what it could not check never counts as passed."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.admin.handlers.audit_handlers import AuditHandlers
from agentd.audit.checkpoint import Checkpoint
from agentd.base.config.config import AuditConfig
from ipc.messages import AuditVerify, PublicKeys
from ipc.peer import Peer
from tests.agentd.audit.test_keeper import Kept

ROOT = Peer(0, 0, 0)


class Checked(Kept):
    """A log with its handlers."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, AuditConfig())
        core = self.keeper._core
        self.checkpoint = Checkpoint(core, (bytes(32),))
        self.handlers = AuditHandlers(self.audit, self.keeper, self.checkpoint).table()

    def ask(self, request: Any) -> dict[str, Any]:
        reply: dict[str, Any] = asyncio.run(self.handlers[type(request)](request, ROOT))
        return reply

    def verify(self) -> dict[str, Any]:
        return self.ask(AuditVerify(v=1, id=1))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Checked]:
    made = Checked(tmp_path)
    made.audit.record("agent.started", "ok")
    yield made
    made.close()


def test_a_sealed_and_certified_log_is_intact_to_its_end(log: Checked) -> None:
    asyncio.run(log.checkpoint.make())
    found = log.verify()
    assert (found["outcome"], found["ok"], found["problem"], found["unchecked"]) == ("intact", True, None, [])
    assert (found["first_seq"], found["last_seq"], found["end_open"]) == (1, log.audit.seq, False)
    told = " ".join(found["checked"])
    assert "the attestation key's 1 certificate" in told
    assert f"the agent has written up to record {log.audit.seq}" in told
    assert "the sealed value, of the checkpoint at record 2" in told


def test_a_log_without_a_checkpoint_is_incomplete_for_old_clients_too(log: Checked) -> None:
    found = log.verify()
    assert (found["outcome"], found["ok"]) == ("incomplete", False)
    needs = [gap["needs"] for gap in found["unchecked"]]
    assert any("checkpoint" in text for text in needs)
    # A client of the release before shows only this, as its reason.
    assert found["problem"].startswith("not everything was checked: ")


def test_hardware_that_does_not_answer_leaves_the_seal_unchecked(log: Checked) -> None:
    asyncio.run(log.checkpoint.make())
    log.backend._device.answers = False
    found = log.verify()
    assert (found["outcome"], found["ok"]) == ("incomplete", False)
    assert any(gap["what"].startswith("the sealed value (") for gap in found["unchecked"])


def test_a_cut_end_is_found_and_outranks_what_was_not_checked(log: Checked) -> None:
    asyncio.run(log.checkpoint.make())
    log.audit.record("admin.request", "ok")
    log.audit.flush()
    lines = log.path.read_bytes().splitlines(keepends=True)
    os.truncate(log.path, len(b"".join(lines[:-1])))
    log.backend._device.answers = False
    found = log.verify()
    assert found["outcome"] == "tampered"
    assert "its end was cut off" in found["problem"]


def test_another_seal_is_found(log: Checked) -> None:
    asyncio.run(log.checkpoint.make())
    log.backend.extend_audit(bytes(32))
    found = log.verify()
    assert found["outcome"] == "tampered"
    assert "sealed value" in found["problem"]


def test_the_public_keys_are_those_that_verify(log: Checked) -> None:
    keys = log.ask(PublicKeys(v=1, id=1))
    assert all(text.startswith("-----BEGIN PUBLIC KEY-----") for text in keys.values())
    assert set(keys) == {"identity", "attestation"} and len(set(keys.values())) == 2
