"""Someone at the server's Unix socket who is not nginx, or who writes any certificate into the header of the proxy."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from server.registry.models.core import Counter
from tests.server.devices import Device
from tests.support.apiclient import PREFIX
from tests.support.apiserver import ApiServer
from tests.support.clientpki import authority, leaf
from tests.support.waiting import READY_S

MAX_SERIAL = 999_999_999_999_999


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    directory = tmp_path_factory.mktemp("socket")
    with ApiServer.made(directory / "server", unix=directory / "api.sock") as made:
        made.start()
        yield made


def asked(server: ApiServer, certificate: str | None) -> httpx.Response:
    """The answer to a request for a challenge, with a certificate in nginx' header."""
    headers = {} if certificate is None else {"Client-Certificate": quote(certificate)}
    transport = httpx.HTTPTransport(uds=str(server.unix))
    with httpx.Client(transport=transport, base_url="http://server", timeout=READY_S) as client:
        return client.post(f"{PREFIX}/challenge", json={}, headers=headers)


def self_signed(agent_id: str, serial: int) -> str:
    """What anybody can make: the names of an agent's certificate, and a signature of one's own."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = [
        x509.NameAttribute(x509.NameOID.COMMON_NAME, agent_id),
        x509.NameAttribute(x509.NameOID.SERIAL_NUMBER, str(serial)),
    ]
    model = leaf(authority("Issuing CA"), agent_id).certificate
    builder = x509.CertificateBuilder(
        x509.Name(names),
        x509.Name(names),
        key.public_key(),
        x509.random_serial_number(),
        model.not_valid_before_utc,
        model.not_valid_after_utc,
    )
    for extension in model.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def state_of(server: ApiServer) -> tuple[int, int]:
    """The counter of serial numbers, and the number of audit records."""
    with server.server_side() as side, side.database.read() as session:
        return session.get_one(Counter, "serial").value, session.get_one(Counter, "audit").value


def test_the_certificate_of_an_agent_counts(server: ApiServer) -> None:
    with server.server_side() as side:
        pem = Device(1).come(side, now=int(time.time())).certificates[0]
    assert asked(server, pem).status_code == 200


@pytest.mark.parametrize("kind", ["self-signed", "of another CA", "the server's own", "the issuing CA's", "the root's"])
def test_a_certificate_that_none_of_our_cas_has_issued_for_a_client_is_nobodys(server: ApiServer, kind: str) -> None:
    before = state_of(server)
    with server.server_side() as side:
        chain = [
            made.public_bytes(Encoding.PEM).decode()
            for made in x509.load_pem_x509_certificates(side.keys.tls_material()[0].encode())
        ]
    pem = {
        "self-signed": lambda: self_signed("pos-000009", MAX_SERIAL),
        "of another CA": lambda: leaf(authority("Issuing CA"), "pos-000009").pem,
        "the server's own": lambda: chain[0],
        "the issuing CA's": lambda: chain[1],
        "the root's": lambda: chain[2],
    }[kind]()
    response = asked(server, pem)
    assert (response.status_code, response.json()["error"]["code"]) == (401, "unknown_agent")
    assert state_of(server) == before, "a request that nobody has authenticated has written"


def test_a_user_who_is_not_the_proxys_gets_no_answer(server: ApiServer) -> None:
    server.stop()
    server.proxy_user = "daemon"
    server.start()
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(READY_S)
            sock.connect(str(server.unix))
            heard: Any = b""
            try:
                sock.sendall(b"GET /api/v1/key-set HTTP/1.1\r\nHost: h\r\n\r\n")
                heard = sock.recv(1000)
            except ConnectionError:
                pass
            assert heard == b""
        assert "--proxy-user" in server.wait_for("a connection was refused")
    finally:
        server.stop()
        server.proxy_user = ApiServer(server.directory).proxy_user
        server.start()
    assert asked(server, None).status_code == 401


@pytest.mark.parametrize(("user", "said"), [("nobody", "65534"), ("no-such-user", "no user 'no-such-user'")])
def test_a_proxys_user_that_can_be_nobody_is_refused_at_the_start(
    tmp_path: Path, server: ApiServer, user: str, said: str
) -> None:
    assert said in server.fails("serve", "--unix", str(tmp_path / "other.sock"), "--proxy-user", user)


def test_the_counter_of_serial_numbers_can_be_repaired(server: ApiServer) -> None:
    with server.server_side() as side:
        in_use = Device(2).come(side, now=int(time.time())).serial
        with side.database.write() as session:
            session.get_one(Counter, "serial").value = MAX_SERIAL
    assert "1000000000000000" in server.run("agents", "serial")
    assert "below that" in server.fails("agents", "serial", "--set", str(in_use - 1), "--yes")
    assert "--yes answers" in server.fails("agents", "serial", "--set", str(in_use)), "it goes back: that must be confirmed"
    assert state_of(server)[0] == MAX_SERIAL
    assert f"gets serial number {in_use + 1}" in server.run("agents", "serial", "--set", str(in_use), "--yes")
    with server.server_side() as side:
        found = side.audit.tail(1)[0]
        assert found.event == "serial.set" and {"serial": in_use, "was": MAX_SERIAL}.items() <= found.fields.items()
        assert Device(3).come(side, now=int(time.time())).serial == in_use + 1


def test_refused_attempts_of_provisioning_fill_neither_the_audit_nor_hide_who_sent_them(server: ApiServer) -> None:
    begin = {"v": 1, "claim": "x", "hw_id": "ab" * 32, "backend": "software", "attestation": "AAEC"}
    before = state_of(server)[1]
    transport = httpx.HTTPTransport(uds=str(server.unix))
    with httpx.Client(transport=transport, base_url="http://server", timeout=READY_S) as client:
        for number in range(60):
            body = begin | {"request_id": f"{number:032x}", "v": 1 if number % 2 else 2}
            client.post(f"{PREFIX}/provision", json=body, headers={"Client-Address": "192.0.2.77"})
    assert 1 <= state_of(server)[1] - before <= 5
    with server.server_side() as side:
        record = side.audit.tail(1)[0]
        assert (record.actor, record.fields["hardware"]) == ("address 192.0.2.77", "ab" * 8)
    said = [json.loads(line) for line in server.log().splitlines() if "192.0.2.77" in line]
    assert len(said) == 60 and {line["event"] for line in said} == {"refused"}


def test_the_log_says_whose_request_was_refused(server: ApiServer) -> None:
    with server.server_side() as side:
        made = Device(4).come(side, now=int(time.time()))
    headers = {"Client-Certificate": quote(made.certificates[0]), "Client-Address": "192.0.2.78"}
    transport = httpx.HTTPTransport(uds=str(server.unix))
    with httpx.Client(transport=transport, base_url="http://server", timeout=READY_S) as client:
        assert client.post(f"{PREFIX}/secret-status", json={"request": "a.b.c"}, headers=headers).status_code == 400
    line = json.loads(server.wait_for("192.0.2.78"))
    number = f"{x509.load_pem_x509_certificate(made.certificates[0].encode()).serial_number:x}"
    assert (line["agent"], line["certificate"], line["status"]) == (made.agent_id, number, 400)
