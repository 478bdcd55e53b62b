"""The contract of hwsec/backend.py, once more and as plainly as can be: what the other backends are held against."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hwsec.backend import (
    DIGEST_BYTES,
    POINT_BYTES,
    Anchor,
    BackendStatus,
    Certification,
    Endorsement,
    Evidence,
    HardwareClock,
    SoftwareEvidence,
    software_attestation,
    software_evidence,
)
from hwsec.errors import AlreadyEnrolled, AuditEmpty, BackendUnavailable, NoEndorsementKey, NotEnrolled
from hwsec.secretmem import SecretBuffer


@dataclass
class MemoryDevice:
    """The hardware: what stays when the process that used it ends."""

    kek: bytes | None = None
    attestation: ec.EllipticCurvePrivateKey | None = None
    identity: ec.EllipticCurvePrivateKey | None = None
    agreement: ec.EllipticCurvePrivateKey | None = None
    clock: HardwareClock = field(default_factory=lambda: HardwareClock(0, 1, 0, True))
    anchor: bytes | None = None
    counter: int = 0
    audit: bytes = bytes(DIGEST_BYTES)
    answers: bool = True


class MemoryBackend:
    """A process's view of a `MemoryDevice`."""

    name = "memory"

    def __init__(self, device: MemoryDevice) -> None:
        self._device = device
        self._opened = False

    def _ask(self) -> MemoryDevice:
        if not self._device.answers:
            raise BackendUnavailable("the memory device has been told not to answer")
        return self._device

    def _ask_open(self) -> MemoryDevice:
        if not self._opened:
            raise NotEnrolled("the memory backend is not open")
        return self._ask()

    def create(self) -> None:
        device = self._ask()
        if device.kek is not None:
            raise AlreadyEnrolled("the memory device has been initialized")
        device.kek = os.urandom(32)
        device.attestation = ec.generate_private_key(ec.SECP256R1())
        device.identity = ec.generate_private_key(ec.SECP256R1())
        device.agreement = ec.generate_private_key(ec.SECP256R1())
        device.counter = 1
        self._opened = True

    def open(self) -> None:
        if self._ask().kek is None:
            raise NotEnrolled("the memory device has not been initialized")
        self._opened = True

    @contextmanager
    def kek(self) -> Iterator[SecretBuffer]:
        kek = self._ask_open().kek
        assert kek is not None
        with SecretBuffer(32) as buffer:
            buffer.view[:] = kek
            yield buffer

    def read_anchor(self) -> tuple[Anchor | None, int]:
        device = self._ask_open()
        return (None if device.anchor is None else Anchor.decode(device.anchor)), device.counter

    def write_anchor(self, anchor: Anchor) -> None:
        self._ask_open().anchor = anchor.encode()

    def increment(self) -> int:
        device = self._ask_open()
        device.counter += 1
        return device.counter

    def read_audit(self) -> bytes:
        return self._ask_open().audit

    def extend_audit(self, head: bytes) -> bytes:
        device = self._ask_open()
        device.audit = hashlib.sha256(device.audit + head).digest()
        return device.audit

    def certify_audit(self, nonce: bytes) -> Certification:
        device = self._ask_open()
        attested = software_attestation(nonce, device.audit)
        if device.audit == bytes(DIGEST_BYTES):
            raise AuditEmpty("nothing has been extended yet")
        return Certification(attested, _sign(device.attestation, attested))

    def attestation_public(self) -> bytes:
        return _point(self._ask_open().attestation)

    def identity_public(self) -> bytes:
        return _point(self._ask_open().identity)

    def agreement_public(self) -> bytes:
        return _point(self._ask_open().agreement)

    def sign(self, message: bytes) -> bytes:
        return _sign(self._ask_open().identity, message)

    def clock(self) -> HardwareClock:
        device = self._ask()
        device.clock = replace(device.clock, milliseconds=device.clock.milliseconds + 1)
        return device.clock

    def agree(self, peer_point: bytes) -> SecretBuffer:
        private = self._ask_open().agreement
        assert private is not None
        if len(peer_point) != POINT_BYTES or peer_point[0] != 4:
            raise ValueError("not an uncompressed P-256 point")
        peer = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), peer_point)
        buffer = SecretBuffer(32)
        buffer.view[:] = private.exchange(ec.ECDH(), peer)
        return buffer

    def random(self, size: int) -> bytes:
        self._ask()
        return os.urandom(size)

    def measure_hardware_id(self) -> str | None:
        """As `status` tells it."""
        return self.status().hardware_id

    def endorsement(self) -> Endorsement | None:
        return None

    def evidence(self, nonce: bytes) -> Evidence:
        device = self._ask_open()
        identity, agreement = _point(device.identity), _point(device.agreement)
        signature = _sign(device.attestation, software_evidence(nonce, identity, agreement))
        return SoftwareEvidence(_point(device.attestation), identity, agreement, signature)

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        self._ask_open()
        raise NoEndorsementKey("the memory device has no endorsement key")

    def status(self) -> BackendStatus:
        identifier = None
        if self._device.answers and self._opened:
            identifier = hashlib.sha256(self.identity_public()).hexdigest()
        return BackendStatus("memory", self._device.answers, "for tests", False, hardware_id=identifier)

    def close(self) -> None:
        self._opened = False


def _point(private: ec.EllipticCurvePrivateKey | None) -> bytes:
    assert private is not None
    return private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _sign(private: ec.EllipticCurvePrivateKey | None, message: bytes) -> bytes:
    assert private is not None
    r, s = decode_dss_signature(private.sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")
