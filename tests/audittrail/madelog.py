"""A log as a machine makes it over six days: archives, an anchor, two plain files, a certificate for each checkpoint."""

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agentd.audit import archiver
from audittrail import anchor, archive
from audittrail.chain import (
    CERTIFIED,
    CHECKPOINT,
    SEGMENT_CLOSED,
    Chain,
    fold_checkpoint,
    heads_digest,
    heads_fields,
)
from audittrail.report import Head, Keys

DAY = 86_400
NOON = 1_800_000_000
DAYS = {"application": 2, "security": 90, "ota": 366}
EVENTS = ("license.validated", "admin.request", "license.validated", "ota.started")


def point_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def software_certificate(value: bytes) -> bytes:
    return b"LASW" + b"\x04none" + value


@dataclass
class Machine:
    """A machine's keys, and how it writes a log.

    Attributes:
        number: makes its keys and its records differ from another machine's.
    """

    number: int
    chain: Chain = field(default_factory=Chain)
    value: bytes = bytes(32)
    head: tuple[int, str] = (0, "")

    def __post_init__(self) -> None:
        self.machine_key = memoryview(bytearray(bytes([self.number]) * 32))
        self.operator, self.identity, self.attestation = (
            ec.derive_private_key(1000 * self.number + each, ec.SECP256R1()) for each in (1, 2, 3)
        )

    def add(self, at: float, event: str, **fields: Any) -> bytes:
        return self.chain.append(at, 1.0, event, "ok", fields)

    def checkpoint(self, at: float, *, certified: bool = True) -> list[bytes]:
        before, digest = self.value, heads_digest(self.chain.heads)
        self.value = fold_checkpoint(before, digest)
        fields = {"heads": heads_fields(self.chain.heads), "before": before.hex(), "value": self.value.hex()}
        lines = [self.add(at, CHECKPOINT, **fields)]
        self.head = (self.chain.seq, digest.hex())
        return [*lines, self.certificate(at)] if certified else lines

    def certificate(self, at: float) -> bytes:
        attested = software_certificate(self.value)
        texts = [base64.b64encode(part).decode() for part in (attested, sign(self.attestation, attested))]
        return self.add(at, CERTIFIED, attested=texts[0], signature=texts[1])

    def keys(self) -> Keys:
        """All that an auditor can have."""
        return Keys(
            lambda data: archive.unseal_for_operator(data, self.operator), point_of(self.identity), point_of(self.attestation)
        )

    def server_head(self) -> Head:
        """The newest checkpoint, as the server has it."""
        return Head(*self.head, "license server")

    def write(self, directory: Path) -> Path:
        """Six days: three in archives, of which retention has removed two of `application`, and three in plain files."""
        log = directory / "audit.log"
        for day in range(6):
            now, first, heads = NOON + day * DAY, self.chain.seq + 1, self.chain.heads
            lines = [self.add(now, SEGMENT_CLOSED, heads=heads_fields(heads))] if day else []
            lines += [self.add(now + n, EVENTS[n % 4], n=n, machine=self.number) for n in range(1, 9)]
            lines += self.checkpoint(now + 10)
            if day == 5:
                lines += [self.add(now + 20 + n, EVENTS[n % 4], n=n) for n in range(4)]
            path = log if day == 5 else directory / f"audit-{first:012d}.log"
            path.write_bytes(b"".join(lines))
            if day < 3:
                archiver.archive_segment(path, "audit", now, self.machine_key, self.operator.public_key(), lambda: None)
        stock = archiver.take_stock(log, DAYS, 1 << 30, NOON + 3 * DAY + 100)
        for plan in stock.plans:
            stock.anchors[plan.anchor.kind] = anchor.sign(plan.anchor, lambda message: sign(self.identity, message))
            archiver.write_anchors(log, stock.anchors)
            archiver.remove(plan)
        return log
