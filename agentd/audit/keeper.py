"""Keeps the audit log's directory: archives closed segments and removes what is past its retention."""

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from agentd.base.alerts import AUDIT_ARCHIVE, AUDIT_DAMAGED, Alert
from agentd.base.config.config import AuditConfig
from agentd.base.hardware import COMMIT_DEADLINE_S
from audittrail import anchor, archive
from audittrail.archive import ArchiveDamaged, Header, WrongKey
from audittrail.check import verify_log
from audittrail.report import Keys, Report
from audittrail.whole import lines_after
from common.files import os_problem
from hwsec.backend import Backend
from hwsec.errors import HwsecError
from hwsec.secretmem import SecretBuffer
from hwsec.vault import SECRET_BYTES, Vault, WrappedSecret

from . import archiver
from .archiver import Removal, SegmentDamaged, Stock
from .core import Core
from .log import AuditUnavailable

log = logging.getLogger(__name__)

_PURPOSE = b"license-agent audit archive v1"


def derive_archive_key(backend: Backend, vault: Vault) -> WrappedSecret:
    """The machine's key for archives, from the KEK; HKDF-SHA256 (RFC 5869)."""
    with backend.kek() as kek, SecretBuffer(SECRET_BYTES) as key:
        HKDF(hashes.SHA256(), SECRET_BYTES, salt=None, info=_PURPOSE).derive_into(kek.view, key.view)
        return vault.wrap(key)


def read_operator_key(path: Path | None) -> ec.EllipticCurvePublicKey | None:
    """The operator's public key for archives.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no P-256 public key.
    """
    if path is None:
        return None
    key = load_pem_public_key(path.read_bytes())
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("not a P-256 public key")
    return key


def _pem(point: bytes) -> str:
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


@dataclass(frozen=True, slots=True)
class ArchiveKeys:
    """The keys by which the log is archived and verified.

    Attributes:
        archive: encrypts archives on this machine.
        identity: public point of the machine's identity key, which signs anchors.
        attestation: public point of its attestation key, which certifies checkpoints.
    """

    archive: WrappedSecret
    identity: bytes
    attestation: bytes


def archive_keys(backend: Backend, vault: Vault) -> ArchiveKeys:
    """The keys of an open backend."""
    return ArchiveKeys(derive_archive_key(backend, vault), backend.identity_public(), backend.attestation_public())


class AuditKeeper:
    """Archives, removes and verifies.

    Args:
        path: the open file of the log.
        keys: from `archive_keys`.
        limits: from the configuration.
    """

    def __init__(self, core: Core, path: Path, keys: ArchiveKeys, limits: AuditConfig) -> None:
        self._core = core
        self._audit = core.audit
        self._keys = keys
        self._alerted: set[str] = set()
        self._turn = asyncio.Lock()
        self.path = path
        self.limits = limits
        self.archive_bytes = 0

    def unseal(self, data: bytes) -> tuple[Header, bytes]:
        """Header and zlib stream of one of our archives; raises ArchiveDamaged."""
        try:
            with self._core.vault.open(self._keys.archive) as key:
                return archive.unseal_for_machine(data, key.view)
        except WrongKey as error:
            # The machine's key is no guess: what it does not open is not an archive of this machine.
            raise ArchiveDamaged(str(error)) from None

    def verify(self) -> Report:
        """Checks all of the log; for a worker thread. Its end is the caller's to check: the agent knows it."""
        keys = Keys(self.unseal, self._keys.identity, self._keys.attestation)
        return verify_log(self.path, keys, open_end=True)

    def public_keys(self) -> dict[str, str]:
        """The machine's public keys that an auditor needs, in PEM: `identity` and `attestation`."""
        return {"identity": _pem(self._keys.identity), "attestation": _pem(self._keys.attestation)}

    async def verify_in_turn(self) -> Report:
        """Checks all of the log while nothing is archived or removed. Raises OSError."""
        async with self._turn:
            return await asyncio.to_thread(self.verify)

    def read(self, after_seq: int, limit: int, room: int) -> list[bytes]:
        """The oldest records above `after_seq`, at most `limit` of them and `room` bytes; for a worker thread.

        Raises:
            ArchiveDamaged, OSError, ValueError: the log cannot be read.
        """
        found: list[bytes] = []
        for line in lines_after(self.path, after_seq, self.unseal):
            room -= len(line) + 8
            if len(found) >= limit or room < 0:
                break
            found.append(line)
        return found

    async def check_all(self) -> None:
        """Verifies the whole log, and alerts if that fails."""
        try:
            found = await self.verify_in_turn()
        except OSError as error:
            text = f"the audit log cannot be checked: {os_problem(error)}"
        else:
            for gap in found.gaps:
                log.warning("the audit log was not checked completely: %s", gap)
            if found.problem is None:
                return
            text = f"the audit log does not verify: {found.problem}"
        self._alert_once(text, text, AUDIT_DAMAGED)

    async def work(self, last_checkpoint: int) -> None:
        """Archives what is closed and removes what is over. Logs what it cannot do; never raises for it.

        Args:
            last_checkpoint: number of the newest checkpoint's record.
        """
        try:
            async with self._turn:
                await self._archive(last_checkpoint)
                stock = await asyncio.to_thread(self._take_stock)
                self.archive_bytes = stock.size
                for plan in stock.plans:
                    await self._remove(stock, plan)
            if "work" in self._alerted:
                self._alerted.discard("work")
                if not self._alerted:
                    self._audit.clear_alert(AUDIT_ARCHIVE, "the audit log's archives can be kept again")
        except OSError as error:
            self._alert_once("work", f"the audit log's archives cannot be kept: {os_problem(error)}")
        except (ValueError, ArchiveDamaged, HwsecError, AuditUnavailable) as error:
            self._alert_once("work", f"the audit log's archives cannot be kept: {error}")

    async def _archive(self, last_checkpoint: int) -> None:
        operator = await asyncio.to_thread(read_operator_key, self.limits.archive_key)
        for segment in await asyncio.to_thread(archiver.archivable, self.path, last_checkpoint):
            try:
                written = await asyncio.to_thread(self._archive_one, segment, operator)
            except SegmentDamaged as error:
                self._alert_once(segment.name, str(error))
                return
            self._audit.record("audit.archived", "ok", segment=segment.name, archives=[path.name for path in written])

    def _archive_one(self, segment: Path, operator: ec.EllipticCurvePublicKey | None) -> list[Path]:
        with self._core.vault.open(self._keys.archive) as key:
            return archiver.archive_segment(segment, self.path.stem, self._core.clock.now(), key.view, operator)

    def _take_stock(self) -> Stock:
        limits = self.limits
        days, now = limits.retention_days(), self._core.clock.certain()
        return archiver.take_stock(self.path, days, limits.archive_bytes, now, self._keys.identity)

    async def _remove(self, stock: Stock, plan: Removal) -> None:
        await asyncio.to_thread(archiver.check_removal, plan, stock.anchors.get(plan.anchor.kind), self.unseal)
        signed = await self._core.hardware.run(
            lambda connection: anchor.sign(plan.anchor, connection.backend.sign), COMMIT_DEADLINE_S
        )
        await self._audit.record_durably(
            "audit.removed",
            "ok",
            kind=signed.kind,
            reason=signed.reason,
            last_seq=signed.last_seq,
            head=signed.head,
            archives=[path.name for path in plan.paths[:20]],
            files=len(plan.paths),
        )
        stock.anchors[signed.kind] = signed
        await asyncio.to_thread(archiver.write_anchors, self.path, stock.anchors)
        await asyncio.to_thread(archiver.remove, plan)
        if signed.reason == archiver.SPACE:
            self._alert_once("space", "audit archives were removed before their time: they take more than archive_bytes")

    def _alert_once(self, what: str, text: str, alert: Alert = AUDIT_ARCHIVE) -> None:
        if what not in self._alerted:
            self._alerted.add(what)
            self._audit.raise_alert(alert, text, text=text[:500])
