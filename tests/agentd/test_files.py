"""Each file of the agent has the form in which it was frozen (ADR 75), and today's code reads that form as it was meant."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agentd.audit.coalesced import CoalescedEvents
from agentd.base.identity import identified
from agentd.licenses.inventory import LicenseInventory
from agentd.licenses.usage import Usage
from agentd.ota.journal import Journal, read_journal
from agentd.ota.register import Entry, Register
from agentd.rotation.table import Rotation
from agentd.secrets.record import SECTIONS, read_record
from agentd.sync.fleetsettings import KeptDocument
from agentd.sync.mode import Kept
from agentd.telemetry.alertqueue import decode_kept
from agentd.telemetry.backups import read_record as read_backup
from agentd.telemetry.statefile import Origin, StateFile
from audittrail import anchor
from audittrail.verify import verify_lines
from hwsec.objectfile import ObjectFile
from hwsec.vault import Vault
from installer.state import StateFile as InstallerStateFile
from tests.support.pair import config_of

from . import file_examples as examples
from .file_examples import EXAMPLES, FROZEN, STORE, T0, bytes_of, text_of

CHANGED = """this file has another form than the version before writes and reads. Until an update is committed that version may
run again, and it must lose nothing (docs/adr/0075-files-are-read-by-the-version-before.md). What is new belongs into a section,
a file or, in journals that ignore unknown members, a member of its own; then correct this example's frozen form by hand."""
SECTION = f"{STORE}, section "


def frozen(name: str) -> bytes:
    return bytes_of(FROZEN[name])


def frozen_sections() -> dict[str, bytes]:
    return {name.removeprefix(SECTION): frozen(name) for name in FROZEN if name.startswith(SECTION)}


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str], Path]:
    def put(name: str) -> Path:
        path = tmp_path / name
        path.write_bytes(frozen(name))
        return path

    return put


def test_each_file_has_an_example() -> None:
    assert set(FROZEN) == set(EXAMPLES)
    assert {name.removeprefix(f"{STORE}, section ") for name in FROZEN if name.startswith(STORE)} - {
        "a later release"
    } == SECTIONS


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_file_is_written_as_it_was_frozen(name: str) -> None:
    made = EXAMPLES[name]()
    assert bytes_of(text_of(made)) == made
    assert text_of(made) == FROZEN[name], CHANGED


def test_the_store_is_read() -> None:
    assert read_record(frozen_sections()) == examples.RECORD


def test_journals_are_read(put: Callable[[str], Path]) -> None:
    assert msgspec.json.decode(frozen("rotation.json"), type=Rotation) == examples.ROTATION
    assert read_journal(put("ota.json")) == examples.JOURNAL
    assert msgspec.json.decode(frozen("ota-register.json"), type=tuple[Entry, ...]) == examples.REGISTER


def test_views_and_queues_are_read(put: Callable[[str], Path]) -> None:
    assert StateFile(put("state.json")).read() == (Kept(T0, T0 - 1, True), Origin.MAIN, False)
    assert decode_kept(frozen("webhook.json")) == examples.ALERTS
    assert read_backup(put("backup.json")) == examples.BACKUP
    assert msgspec.json.decode(frozen("fleet-configuration.json"), type=KeptDocument) == examples.FLEET


def test_the_inventory_is_read(put: Callable[[str], Path]) -> None:
    read, made = LicenseInventory(put("licenses.json")), LicenseInventory()
    examples.fill_inventory(made)
    assert read.load()
    assert (read._page.newest, read._page.seen, read.synced) == (made._page.newest, made._page.seen, 9)
    assert read.seats.page == made.seats.page


def test_the_identity_is_read(tmp_path: Path) -> None:
    config = config_of(tmp_path, examples.AGENT)
    config.paths.state_dir.mkdir()
    (config.paths.state_dir / "agent.json").write_bytes(frozen("agent.json"))
    assert identified(config).agent.id == examples.AGENT


def test_the_log_is_read() -> None:
    checked = verify_lines(frozen("audit.log").splitlines(keepends=True))
    assert checked.problem is None and checked.records == 5 and set(checked.chains) == {"security", "application", "ota"}
    assert anchor.decode(frozen("audit.anchors")) == examples.ANCHORS


def test_counts_are_read(put: Callable[[str], Path]) -> None:
    table = CoalescedEvents(put("audit.repeats"))
    assert [(each.fields["event"], each.count, each.first, each.last) for each in table.recover()] == [
        ("license.validated", 2 + 1, 1.0, 5.0),
        ("license.listed", 1, 2.0, 2.0),
    ]
    table.close()
    usage = Usage(put("usage.counts"), examples.AGENT, lambda length: b"\x08" * length, lambda: 0.0)
    assert [(each.license_id, each.meter, each.epoch) for each in usage.totals()] == [(examples.LICENSE, "sales", b"\x07" * 16)]
    assert usage.known("sales", 3, b"\x05" * 16) is not None
    usage.close()


def test_the_tpms_objects_are_read(put: Callable[[str], Path]) -> None:
    with contextlib.closing(Vault()) as vault:
        found = ObjectFile(put("tpm.objects"), vault).read()
        parts = {"kek": found.kek.blob, **{name: getattr(found, name) for name in ("attestation", "identity", "agreement")}}
        assert parts == examples.TPM_PARTS and found.kek.binding == examples.BINDING
        assert (found.srk_name, found.hardware_id) == (b"\x00srk", "ab" * 32)
        for wrapped, value in ((found.kek.auth, 10), (found.keys_auth, 11)):
            with vault.open(wrapped) as auth:
                assert bytes(auth.view) == bytes([value]) * 32


def test_the_installers_state_is_read(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    path = tmp_path / "state.json"
    path.write_bytes(frozen("the installer's state.json"))
    path.chmod(0o600)
    assert InstallerStateFile(tmp_path, os.geteuid()).load() == examples.INSTALLER


@pytest.mark.parametrize("head", [b'{"x":', b'[{"x":', b'{"update":{"x":', b'{"newest":{"x":{"x":', b'{"waiting":[{"x":'])
def test_a_file_that_is_nested_without_end_is_one_that_cannot_be_read(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(head + b"[" * 100_000)
    assert read_journal(path) == Journal()
    assert Register(path, None).entries == ()  # type: ignore[arg-type]
    assert not LicenseInventory(path).load()
    assert decode_kept(path.read_bytes()) is None
    path.write_bytes(head + b"[" * 4000)
    assert read_backup(path).problem
