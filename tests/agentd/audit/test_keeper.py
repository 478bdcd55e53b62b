"""Closed segments become archives, archives that are over go behind a signed anchor, and the log is still one log."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agentd.audit.coalesced import CoalescedEvents
from agentd.audit.file import AuditDamaged, AuditFile
from agentd.audit.keeper import AuditKeeper, archive_keys, read_operator_key
from agentd.audit.log import AuditLog
from agentd.base.clock.clock import Clock
from agentd.base.clock.timeanchor import Reading, TimeAnchor
from agentd.base.config.config import AuditConfig
from audittrail import anchor, archive
from audittrail.chain import Chain
from audittrail.check import verify_log
from audittrail.report import Keys
from audittrail.whole import anchors_path, plain_files, read_anchors
from hwsec.vault import Vault
from tests.agentd.world import core_of
from tests.hwsec.memory_backend import MemoryBackend, MemoryDevice

T0 = 1_800_000_000
DAY = 86_400


class Kept:
    """An audit log and its keeper over a backend in memory; time is told."""

    def __init__(self, directory: Path, limits: AuditConfig) -> None:
        self.wall, self.boot = float(T0), 0.0
        self.path = directory / "audit.log"
        self.vault, self.backend = Vault(), MemoryBackend(MemoryDevice())
        self.backend.create()
        self.clock = Clock(lambda: self.wall, lambda: self.boot)
        self.server_says(T0)
        self.file = AuditFile(self.path)
        self.file.open()
        self.repeats = CoalescedEvents(directory / "repeats")
        self.audit = AuditLog(self.file, Chain(), self.repeats, self.clock, limits, lambda: None)
        core = core_of(self.clock, self.audit, self.vault, self.backend)
        self.keeper = AuditKeeper(core, self.path, archive_keys(self.backend, self.vault), limits)

    def server_says(self, time: int) -> None:
        now = Reading(int(self.boot * 1000), 1)
        self.clock.set_anchor(TimeAnchor(time, False, now), now, None)

    async def day(self, records: int = 20) -> None:
        """A day of business, with a checkpoint at its end and the housekeeping after it."""
        for number in range(records):
            self.audit.record("license.validated" if number % 4 else "admin.request", "ok", n=number)
        self.audit.begin_segment_of_the_day()
        await self.audit.checkpoint(self.backend.read_audit())
        self.audit.flush()
        await self.keeper.work(self.audit.seq)
        self.audit.flush()
        self.wall += DAY
        self.boot += DAY

    def close(self) -> None:
        self.audit.close()

    def events(self, name: str) -> list[dict[str, object]]:
        lines = self.keeper.read(-1, 100_000, 1 << 30)
        return [record for record in map(json.loads, lines) if record["event"] == name]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path, AuditConfig(application_days=5, security_days=10))
    yield made
    made.close()


def test_a_month_of_days(kept: Kept) -> None:
    async def month() -> None:
        for _ in range(30):
            await kept.day()

    asyncio.run(month())
    assert kept.keeper.verify().problem is None
    assert len(plain_files(kept.path)) == 2
    kinds = [path.name.split("-")[2] for path in archive.archives(kept.path)]
    assert (kinds.count("application.archive"), kinds.count("security.archive")) == (5, 10)
    anchors = read_anchors(kept.path)
    assert set(anchors) == {"application", "security"}
    assert anchors["application"].records == 15 * (30 - 5 - 1)
    assert kept.events("audit.removed")[-1]["reason"] == "retention"
    assert not kept.events("alert.audit_archive")
    assert kept.keeper.archive_bytes > 0
    # Every record that is left is read once and in order.
    seqs = [json.loads(line)["seq"] for line in kept.keeper.read(-1, 100_000, 1 << 30)]
    assert seqs == sorted(set(seqs))
    assert seqs[-1] == kept.audit.seq


def test_a_clock_that_runs_ahead_removes_nothing(kept: Kept) -> None:
    async def days() -> None:
        for _ in range(4):
            await kept.day()
        kept.wall += 3650 * DAY
        await kept.day()
        kept.wall -= 3650 * DAY
        await kept.day()

    asyncio.run(days())
    assert read_anchors(kept.path) == {}
    assert kept.keeper.verify().found.first_seq == 1


def test_the_next_start_finds_where_a_silent_class_stands(kept: Kept) -> None:
    async def days() -> None:
        kept.audit.record("ota.started")
        for _ in range(12):
            await kept.day(3)

    asyncio.run(days())
    kept.audit.flush()
    heads = kept.audit.heads
    other = AuditFile(kept.path)
    end = other.open()
    other.close()
    assert (end.seq, end.heads) == (kept.audit.seq, heads)
    assert end.checked.last_checkpoint > 0


def test_where_no_plain_file_tells_it_an_archive_does(tmp_path: Path) -> None:
    """The open file lost its first record to a full disk, and what came before it is archived."""
    kept = Kept(tmp_path, AuditConfig())

    async def days() -> None:
        kept.audit.record("ota.started")
        for _ in range(9):
            await kept.day(3)

    asyncio.run(days())
    kept.close()
    heads = kept.audit.heads
    for path in plain_files(kept.path):
        path.write_bytes(b"")
    other = AuditFile(kept.path)
    found = other.open().heads
    other.close()
    assert found[2] == heads[2]
    for path in archive.archives(kept.path):
        path.write_bytes(b"junk")
    with pytest.raises(AuditDamaged, match="not an archive"):
        other.open()


def test_a_segment_that_was_tampered_with_is_kept_and_alerted_once(kept: Kept) -> None:
    async def days() -> None:
        for _ in range(3):
            await kept.day()
        segment = plain_files(kept.path)[0]
        segment.write_bytes(segment.read_bytes() + b"junk\n")
        for _ in range(4):
            await kept.day()

    asyncio.run(days())
    segment = plain_files(kept.path)[0]
    assert segment.read_bytes().endswith(b"junk\n")
    alerts = [
        record
        for path in plain_files(kept.path)[1:]
        for record in map(json.loads, path.read_bytes().splitlines())
        if record["event"] == "alert.audit_archive"
    ]
    assert len(alerts) == 1
    assert kept.keeper.verify().outcome == "tampered"


def test_an_anchor_file_that_cannot_be_read_is_alerted_and_nothing_is_removed(kept: Kept) -> None:
    async def days() -> None:
        for _ in range(4):
            await kept.day()
        anchors_path(kept.path).write_bytes(b"junk")
        before = len(archive.archives(kept.path))
        for _ in range(12):
            await kept.day()
        assert len(archive.archives(kept.path)) > before

    asyncio.run(days())
    assert kept.keeper.verify().outcome == "tampered"


def test_anchors_are_signed_by_the_identity_key(kept: Kept) -> None:
    async def days() -> None:
        for _ in range(10):
            await kept.day()

    asyncio.run(days())
    assert read_anchors(kept.path)
    assert kept.keeper.verify().problem is None
    other = MemoryBackend(MemoryDevice())
    other.create()
    keys = Keys(kept.keeper.unseal, other.identity_public(), kept.backend.attestation_public())
    problem = verify_log(kept.path, keys).problem
    assert problem is not None
    assert "not signed by this machine's identity key" in problem.text


def test_the_agent_signs_for_no_archive_that_it_did_not_write(kept: Kept) -> None:
    """Somebody takes all archives of a class away but one, and puts a header in its place that makes retention remove it."""

    async def days() -> None:
        for _ in range(8):
            await kept.day()
        found = [path for path in archive.archives(kept.path) if "security" in path.name]
        header, _ = archive.read_header(found[-1].read_bytes())
        for path in found:
            path.unlink()
        text = msgspec.json.encode(msgspec.structs.replace(header, last_time=1, machine=None, operator=None))
        found[-1].write_bytes(archive.MAGIC + len(text).to_bytes(4, "big") + text)
        for _ in range(4):
            await kept.day()

    asyncio.run(days())
    assert "security" not in read_anchors(kept.path)
    assert kept.keeper.verify().outcome == "tampered"


def test_an_archive_that_is_missing_before_the_ones_to_be_removed_stops_the_removal(kept: Kept) -> None:
    async def days() -> None:
        for _ in range(8):
            await kept.day()
        next(path for path in archive.archives(kept.path) if "security" in path.name).unlink()
        for _ in range(8):
            await kept.day()

    asyncio.run(days())
    assert "security" not in read_anchors(kept.path)
    assert kept.keeper.verify().outcome == "tampered"


def test_a_forged_anchor_removes_nothing(kept: Kept) -> None:
    async def days() -> None:
        for _ in range(8):
            await kept.day()
        before = archive.archives(kept.path)
        forged = anchor.Removed("security", 10_000, "0" * 64, 1, T0, "retention", bytes(64))
        anchors_path(kept.path).write_bytes(anchor.encode({"security": forged}))
        await kept.day()
        assert set(before) <= set(archive.archives(kept.path))

    asyncio.run(days())
    assert kept.keeper.verify().outcome == "tampered"


def test_operator_keys(tmp_path: Path) -> None:
    assert read_operator_key(None) is None
    path = tmp_path / "key.pem"
    good = ec.generate_private_key(ec.SECP256R1()).public_key()
    path.write_bytes(good.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert read_operator_key(path) == good
    wrong = ec.generate_private_key(ec.SECP384R1()).public_key()
    path.write_bytes(wrong.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(ValueError, match="P-256"):
        read_operator_key(path)
    path.write_bytes(b"junk")
    with pytest.raises(ValueError):
        read_operator_key(path)
