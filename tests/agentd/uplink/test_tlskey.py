"""The TLS key: made, kept as 32 bytes, given out in PEM for a moment, and never with a certificate of another key."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from agentd.uplink.tlskey import (
    BadCertificate,
    check_certificate,
    client_key,
    key_pem,
    new_key,
)
from hwsec.vault import Vault

CA = ec.generate_private_key(ec.SECP256R1())


def certificate_for(csr: str) -> str:
    request = x509.load_pem_x509_csr(csr.encode())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
    made = (
        x509.CertificateBuilder()
        .subject_name(request.subject)
        .issuer_name(name)
        .public_key(request.public_key())
        .serial_number(77)
        .not_valid_before(datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(datetime.datetime(2026, 2, 1, tzinfo=datetime.UTC))
        .sign(CA, hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM).decode()


def test_the_pem_is_the_key_of_the_request_and_is_wiped_afterwards() -> None:
    vault = Vault()
    scalar, csr = new_key("pos-1", vault)
    with key_pem(vault, scalar) as pem:
        assert max(map(len, bytes(pem).split(b"\n"))) <= 64
        key = load_pem_private_key(bytes(pem), None)
    assert pem == bytes(len(pem))
    request = x509.load_pem_x509_csr(csr.encode())
    assert key.public_key() == request.public_key() and request.is_signature_valid
    assert request.subject.rfc4514_string() == "CN=pos-1"
    vault.close()


def test_each_key_is_another_one() -> None:
    vault = Vault()
    keys = []
    for _ in range(8):
        with key_pem(vault, new_key("pos-1", vault)[0]) as pem:
            keys.append(bytes(pem))
    assert len(set(keys)) == 8
    vault.close()


def test_a_certificate_is_held_against_the_request() -> None:
    vault = Vault()
    scalar, csr = new_key("pos-1", vault)
    pem = certificate_for(csr)
    check_certificate(pem, csr)
    key = client_key((pem,), scalar)
    assert (key.serial, key.not_after - key.not_before) == (77, 31 * 86_400)
    with pytest.raises(BadCertificate, match="another key"):
        check_certificate(certificate_for(new_key("pos-1", vault)[1]), csr)
    for bad in ("", "no certificate", pem[:200]):
        with pytest.raises(BadCertificate):
            check_certificate(bad, csr)
        with pytest.raises(BadCertificate):
            client_key((bad,), scalar)
    with pytest.raises(BadCertificate):
        client_key((), scalar)
    vault.close()
