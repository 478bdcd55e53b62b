"""Writes adminauth.json beside itself; the same bytes at each run. It uses none of the project's code."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgpack
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HERE = Path(__file__).parent
BEGINS, ENDS = datetime(2026, 1, 1, tzinfo=UTC), datetime(2046, 1, 1, tzinfo=UTC)
BOOT_ID, CHALLENGE = bytes(range(16)), bytes(range(32, 64))
ACTS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("an act without members", "till-1", "rotate", {}),
    ("a number", "till-1", "secret_invalidate", {"version": 3}),
    ("a number of 53 bits", "till-1", "policy_revoke", {"number": 2**53 - 1}),
    ("texts, a list, and an order of names", "till-1", "policy_bind",
     {"pcrs": [7, 11], "kind": "custom", "key": 'é"\\\n\u0001/'}),
    ("true", "a" * 64, "degraded_switch", {"on": True}),
    ("a device that is not an agent yet", "", "provision",
     {"url": "https://license.example:8443", "root": "sha256:0", "claim": "c" * 16}),
]  # fmt: skip


def key(number: int) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(number, ec.SECP256R1())


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def usage(**allowed: bool) -> x509.KeyUsage:
    names = "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign crl_sign"
    names += " encipher_only decipher_only"
    return x509.KeyUsage(**{each: allowed.get(each, False) for each in names.split()})


def certificate(ca: bool) -> x509.Certificate:
    owner, issuer = key(1 if ca else 2), key(1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name("Admin CA" if ca else "Ann Keeper"))
        .issuer_name(name("Admin CA"))
        .public_key(owner.public_key())
        .serial_number(1 if ca else 2)
        .not_valid_before(BEGINS)
        .not_valid_after(ENDS)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(usage(key_cert_sign=ca, digital_signature=not ca), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)
    )
    if ca:
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(owner.public_key()), critical=False)
    else:
        role = x509.UniformResourceIdentifier("urn:license-agent:role:admin")
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName([role]), critical=False)
    return builder.sign(issuer, hashes.SHA256(), ecdsa_deterministic=True)


def vector(text: str, agent_id: str, op: str, params: dict[str, Any], der: bytes) -> dict[str, Any]:
    act = json.dumps({"op": op, "params": params}, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    digest = hashlib.sha256(act.encode()).digest()
    signed = b"license-agent-admin-v1\0" + bytes([len(agent_id)]) + agent_id.encode() + BOOT_ID + CHALLENGE + digest
    signature = key(2).sign(signed, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    request = msgpack.packb({"v": 1, "id": 7, "op": op, **params})
    order = {"v": 1, "id": 7, "op": "signed", "certificates": [der], "signature": signature, "request": request}
    body = msgpack.packb(order)
    return {
        "description": text,
        "agent_id": agent_id,
        "boot_id_hex": BOOT_ID.hex(),
        "challenge_hex": CHALLENGE.hex(),
        "op": op,
        "params": params,
        "act": act,
        "digest_hex": digest.hex(),
        "signed_hex": signed.hex(),
        "signature_hex": signature.hex(),
        "frame_hex": (len(body).to_bytes(4, "big") + body).hex(),
    }


def main() -> None:
    ca, own = certificate(True), certificate(False)
    der = own.public_bytes(Encoding.DER)
    found = {
        "ca_pem": ca.public_bytes(Encoding.PEM).decode(),
        "certificate_pem": own.public_bytes(Encoding.PEM).decode(),
        "key_pem": key(2).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        "vectors": [vector(*act, der) for act in ACTS],
    }
    (HERE / "adminauth.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
