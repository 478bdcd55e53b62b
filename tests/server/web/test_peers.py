"""What is read from a client certificate: of our form, and of any other."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from server.keys.pki import AGENT_URI
from server.web.peers import peer_of
from tests.server.devices import NOW, Device, der, fingerprint
from tests.support.serverside import ServerSide

KEY = ec.generate_private_key(ec.SECP256R1())


def made(serials: list[str], names: list[x509.GeneralName] | None) -> bytes:
    """A certificate with these numbers in its subject, and these alternative names; None for none of them."""
    subject = x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, text) for text in serials])
    now = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    builder = x509.CertificateBuilder(subject, subject, KEY.public_key(), 0xABC, now, now + datetime.timedelta(1))
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


def test_an_agents_certificate_names_it(server: ServerSide) -> None:
    pem = Device(1).come(server).certificates[0]
    peer = peer_of(der(pem))
    assert (peer.agent_id, peer.serial, peer.fingerprint) == ("pos-000001", 1, fingerprint(pem))
    assert peer.number == f"{x509.load_pem_x509_certificate(pem.encode()).serial_number:x}"
    assert peer.valid_at(NOW) and not peer.valid_at(NOW - 86_400)


@pytest.mark.parametrize(
    ("names", "agent_id"),
    [
        (None, ""),
        ([x509.DNSName("pos-1")], ""),
        ([uri("urn:other:pos-1")], ""),
        ([uri(AGENT_URI)], ""),
        ([uri(AGENT_URI + "pos-1"), x509.DNSName("a")], "pos-1"),
        ([uri(AGENT_URI + "pos-1"), uri(AGENT_URI + "pos-2")], ""),
    ],
)
def test_it_names_one_agent_or_none(names: list[x509.GeneralName] | None, agent_id: str) -> None:
    assert peer_of(made([], names)).agent_id == agent_id


@pytest.mark.parametrize(
    ("serials", "serial"),
    [
        ([], None),
        (["7"], 7),
        (["7", "8"], None),
        (["-7"], None),
        (["seven"], None),
        (["9" * 15], 10**15 - 1),
        (["9" * 16], None),
    ],
)
def test_a_number_is_one_of_ours_or_none(serials: list[str], serial: int | None) -> None:
    assert peer_of(made(serials, None)).serial == serial
