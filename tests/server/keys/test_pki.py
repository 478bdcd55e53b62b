"""Certificates as two strangers judge them: cryptography's verifier and the openssl command."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from server.base.refused import RequestRefused
from server.keys.lifecycle import DAY
from server.keys.pki import make_issuing_ca, make_server_certificate
from server.wiring import Plan, create_server
from tests.server.chains import holds, pems, server_chain
from tests.server.devices import ISSUER, NOW, Device, make_csr
from tests.support.serverside import ServerSide, open_server

pytestmark = pytest.mark.system

NAMES = ("license.example", "192.0.2.7", "2001:db8::7")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerSide]:
    """A server with names; certificates do not depend on the database."""
    create_server(tmp_path / "server", Plan(ISSUER, NAMES, tmp_path / "root.key", b"phrase"), NOW)
    made = open_server(tmp_path / "server")
    yield made
    made.close()


@pytest.mark.parametrize("name", NAMES)
def test_the_servers_chain_holds_for_each_of_its_names(server: ServerSide, name: str) -> None:
    leaf, ca, root = server_chain(server.keys)
    assert holds([leaf, ca], root, NOW, name)
    assert holds([leaf, ca], root, NOW + 397 * DAY, name)


@pytest.mark.parametrize(
    ("when", "name"),
    [
        (NOW, "other.example"),
        (NOW, "192.0.2.8"),
        (NOW + 398 * DAY + 1, "license.example"),
        (NOW - 3601, "license.example"),
    ],
)
def test_the_servers_chain_holds_for_no_other_name_and_time(server: ServerSide, when: int, name: str) -> None:
    leaf, ca, root = server_chain(server.keys)
    assert not holds([leaf, ca], root, when, name)


def test_an_agents_certificate_is_for_clients_only_and_ends_soon(server: ServerSide) -> None:
    activated = Device(1).come(server)
    leaf, ca = (pems(text)[0] for text in activated.certificates)
    root = server_chain(server.keys)[-1]
    assert holds([leaf, ca], root, NOW, None)
    assert holds([leaf, ca], root, NOW + 30 * DAY - 1, None)
    assert not holds([leaf, ca], root, NOW + 30 * DAY + 1, None)
    assert not holds([leaf, ca], root, NOW, "license.example")
    assert not holds(server_chain(server.keys)[:2], root, NOW, None)  # nor is the server's for clients
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["urn:license-agent:agent:pos-000001"]
    (common,) = leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    assert common.value == "pos-000001"


def test_a_certificate_of_another_root_holds_not(server: ServerSide, tmp_path: Path) -> None:
    create_server(tmp_path / "other", Plan(ISSUER, NAMES, tmp_path / "other.key", None), NOW)
    other = open_server(tmp_path / "other")
    foreign = server_chain(other.keys)
    other.close()
    leaf, ca, root = server_chain(server.keys)
    assert not holds(foreign[:2], root, NOW, NAMES[0])
    assert not holds([leaf, foreign[1]], root, NOW, NAMES[0])
    assert not holds([foreign[0], ca], root, NOW, NAMES[0])


def test_an_issuing_ca_makes_no_further_ca(server: ServerSide) -> None:
    """pathlen 0: who steals the issuing CA's key cannot hide behind CAs of his own."""
    with server.database.read() as session:
        ca, ca_key = server.keys.issuing_ca(session)
    key = ec.generate_private_key(ec.SECP256R1())
    below = make_issuing_ca(key.public_key(), ca, ca_key, "thief", NOW, NOW + DAY)
    leaf = make_server_certificate(key.public_key(), below, key, NAMES, NOW, NOW + DAY)
    assert not holds([leaf, below, ca], server_chain(server.keys)[-1], NOW, NAMES[0])


@pytest.mark.parametrize(
    "curve",
    [ec.SECP384R1(), ec.SECP256K1()],
    ids=["P-384", "secp256k1"],
)
def test_requests_for_other_curves_are_declined(server: ServerSide, curve: ec.EllipticCurve) -> None:
    Device(1).come(server)
    with pytest.raises(RequestRefused, match="P-256"):
        server.certificates.renew("pos-000001", make_csr(ec.generate_private_key(curve)), NOW)


def test_a_request_signed_by_another_key_is_declined(server: ServerSide) -> None:
    Device(1).come(server)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    one, two = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    signed = x509.CertificateSigningRequestBuilder().subject_name(name).sign(one, hashes.SHA256())
    der = signed.public_bytes(Encoding.DER)
    points = [_point(key) for key in (one, two)]
    assert der.count(points[0]) == 1
    forged = x509.load_der_x509_csr(der.replace(*points)).public_bytes(Encoding.PEM).decode()
    with pytest.raises(RequestRefused, match="signed by it"):
        server.certificates.renew("pos-000001", forged, NOW)


def _point(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
