"""A TPM on paper: public areas, attestations and signatures made by this module's own code, right or wrong in one thing."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from contracts.jose import b64encode

Key = ec.EllipticCurvePrivateKey
NONCE = bytes(range(32))

# Written once more, by hand, from Part 2, 12.2.4.
AK = bytes.fromhex("0023 000b 00050472 0000 0010 0018000b 0003 0010")
IDENTITY = bytes.fromhex("0023 000b 00040472 0000 0010 0018000b 0003 0010")
AGREEMENT = bytes.fromhex("0023 000b 00020472 0000 0010 0019000b 0003 0010")
POLICY_A = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
EK_ECC = bytes.fromhex("0023 000b 000300b2 0020") + POLICY_A + bytes.fromhex("0006 0080 0043 0010 0003 0010")
EK_RSA = bytes.fromhex("0001 000b 000300b2 0020") + POLICY_A + bytes.fromhex("0006 0080 0043 0010 0800 00000000")


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def point(key: Key) -> bytes:
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def area(head: bytes, key: Key) -> bytes:
    return head + sized(point(key)[1:33]) + sized(point(key)[33:])


def rsa_area(key: rsa.RSAPrivateKey, head: bytes = EK_RSA) -> bytes:
    return head + sized(key.public_key().public_numbers().n.to_bytes(256, "big"))


def name(public: bytes) -> bytes:
    return b"\x00\x0b" + hashlib.sha256(public).digest()


def sign(key: Key, message: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def attest(
    certified: bytes,
    nonce: bytes = NONCE,
    *,
    magic: bytes = b"\xffTCG",
    kind: bytes = b"\x80\x17",
    signer: bytes = b"\x00\x0b" + bytes(32),
    safe: bytes = b"\x01",
    qualified: bytes = b"\x00\x0b" + bytes(32),
) -> bytes:
    """A TPMS_ATTEST about the key of that Name."""
    clock = bytes(16) + safe
    return magic + kind + sized(signer) + sized(nonce) + clock + bytes(8) + sized(certified) + sized(qualified)


@dataclass
class PaperTpm:
    """Keys, and what says that they belong together."""

    attestation: Key = field(default_factory=new_key)
    identity: Key = field(default_factory=new_key)
    agreement: Key = field(default_factory=new_key)
    heads: dict[str, bytes] = field(default_factory=lambda: {"attestation": AK, "identity": IDENTITY, "agreement": AGREEMENT})

    def area(self, which: str) -> bytes:
        return area(self.heads[which], getattr(self, which))

    def evidence(self, nonce: bytes = NONCE) -> dict[str, Any]:
        return {"attestation": b64encode(self.area("attestation"))} | {
            which: self.certified(self.area(which), attest(name(self.area(which)), nonce))
            for which in ("identity", "agreement")
        }

    def certified(self, public: bytes, attested: bytes, signer: Key | None = None) -> dict[str, str]:
        signature = sign(self.attestation if signer is None else signer, attested)
        return {"public": b64encode(public), "attest": b64encode(attested), "signature": b64encode(signature)}

    def software_evidence(self, nonce: bytes = NONCE) -> dict[str, str]:
        points = {which: point(getattr(self, which)) for which in ("attestation", "identity", "agreement")}
        signed = b"LASE" + bytes([len(nonce)]) + nonce + points["identity"] + points["agreement"]
        evidence = {which: b64encode(value) for which, value in points.items()}
        return evidence | {"signature": b64encode(sign(self.attestation, signed))}


def flipped(data: bytes, place: int, bit: int = 1) -> bytes:
    changed = bytearray(data)
    changed[place] ^= bit
    return bytes(changed)
