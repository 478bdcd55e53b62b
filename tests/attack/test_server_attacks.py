"""Someone stands where the server should be, or holds a part of what makes a server or an agent. What each of them gets.

The agent and its link are real, and so is the server that is attacked. Who signs with the real rotation key has it from the
registry: that is a server gone wrong, not a stranger.
"""

import json
import os
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from joserfc import jws
from joserfc.jwk import ECKey

from contracts.exchange import (
    REPLY_TYPE,
    REQUEST_TYPE,
    RevocationReply,
    RotateReply,
    SecretStatus,
    StatusReply,
)
from contracts.jose import b64decode
from contracts.keyset import KEY_SET_TYPE, verify_key_set
from server.keys.jose import issue_delivery, new_signing_key, public_jwk
from server.registry.models.core import Agent
from server.wiring import Plan, create_server
from tests.support.apiclient import PREFIX, Device, sign
from tests.support.background import in_background
from tests.support.chain import Chain, Till, running_chain
from tests.support.hostilelink import Asked, Reply, Said, always, with_payload
from tests.support.pki import SERVER, Entity, make
from tests.support.serverside import ServerSide, open_server
from tests.support.tlspeer import Behavior, Exchange, TlsPeer, answer, raw

pytestmark = pytest.mark.slow

DAY = 86_400
FAR = 253_402_300_000
"""The year 9999."""


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    with running_chain() as made:
        made.first_token = made.issue("till-1")
        made.admin("rotate")
        yield made


@pytest.fixture
def till(chain: Chain, tmp_path: Path) -> Iterator[Till]:
    """Validates for the length of the test, and is never refused."""
    chain.let_old_versions_end()
    till = Till(chain, chain.first_token, tmp_path / "token")
    with till.working():
        chain.wait_until(lambda: till.rounds > 0)
        yield till
    chain.first_token = till.kept


# Who is not the server


def _entity(chain_pem: str, key_pem: bytes) -> Entity:
    certificate, *above = x509.load_pem_x509_certificates(chain_pem.encode())
    key = load_pem_private_key(key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return Entity(certificate, key, tuple(above))


def real(chain: Chain, _directory: Path) -> Entity:
    """The server's own TLS key: whoever has it stands where the server stands, and can still sign nothing."""
    with chain.server_side() as server_side:
        return _entity(*server_side.keys.tls_material())


def other_office(directory: Path) -> ServerSide:
    create_server(directory / "other", Plan("license-server", ("127.0.0.1",), directory / "root", None), int(time.time()))
    return open_server(directory / "other")


def another_root(_chain: Chain, directory: Path) -> Entity:
    server_side = other_office(directory)
    try:
        return _entity(*server_side.keys.tls_material())
    finally:
        server_side.close()


def another_ca(chain: Chain, _directory: Path) -> Entity:
    """A CA of its own that calls itself as the server's, the server's real root behind it for show."""
    now = int(time.time())
    dates = {"begins": now - DAY, "ends": now + DAY}
    ca = make("license-server issuing CA", authority=True, **dates)
    made = make("127.0.0.1", ca, hosts=("127.0.0.1",), usage=SERVER, **dates)
    root = x509.load_pem_x509_certificate(chain.server.root.encode())
    return Entity(made.certificate, made.key, (ca.certificate, root))


def self_signed(_chain: Chain, _directory: Path) -> Entity:
    now = int(time.time())
    return make("127.0.0.1", hosts=("127.0.0.1",), usage=SERVER, begins=now - DAY, ends=now + DAY)


IMPOSTORS: dict[str, tuple[Callable[[Chain, Path], Entity], ssl.TLSVersion]] = {
    "another root": (another_root, ssl.TLSVersion.TLSv1_3),
    "another CA with our root behind it": (another_ca, ssl.TLSVersion.TLSv1_3),
    "self-signed": (self_signed, ssl.TLSVersion.TLSv1_3),
    "TLS 1.2 with the real key": (real, ssl.TLSVersion.TLSv1_2),
}


@pytest.mark.parametrize("name", IMPOSTORS)
def test_nobody_else_learns_who_asks(chain: Chain, till: Till, tmp_path: Path, name: str) -> None:
    entity, version = IMPOSTORS[name]
    before = chain.snapshot()
    with TlsPeer(tmp_path, entity(chain, tmp_path), answer(b"{}"), version=version) as peer, standing_in(chain, peer):
        chain.rotate_fails()
        assert chain.snapshot() == before
        record = peer.last()
        assert record.received == b"" and record.client is None
    chain.settle()


class standing_in:
    """The relay leads to somebody else for the length of a block."""

    def __init__(self, chain: Chain, peer: TlsPeer) -> None:
        self._chain = chain
        self._real, chain.relay.target = chain.relay.target, peer.port
        chain.relay.cut()

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        self._chain.relay.target = self._real
        self._chain.relay.cut()


def endless(exchange: Exchange) -> None:
    exchange.request()
    exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(80):
        exchange.send(b"10000\r\n" + b" " * 65536 + b"\r\n")


HOLDERS: dict[str, Behavior] = {
    "a redirect": raw(b"HTTP/1.1 307 Over there\r\nLocation: https://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"),
    "a body announced as huge": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"),
    "a body without end": endless,
    "garbage": answer(os.urandom(2000)),
    "not even HTTP": raw(os.urandom(500)),
    "JSON of another form": answer(b'{"challenge": {"reply": []}}'),
    "an empty answer": answer(b""),
    "a challenge for everything": answer(json.dumps({"challenge": "a" * 40, "reply": "a.b.c"}).encode()),
    "an error": answer(b'{"error": {"code": "agent_revoked", "text": "go"}}', "403 Forbidden"),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_the_tls_key_alone_changes_nothing(chain: Chain, till: Till, tmp_path: Path, name: str) -> None:
    before, alerts = chain.snapshot(), chain.records("alert.server_refuses")
    with TlsPeer(tmp_path, real(chain, tmp_path), HOLDERS[name]) as peer, standing_in(chain, peer):
        chain.rotate_fails()
        assert chain.snapshot() == before
        assert peer.records[-1].handshake
    chain.settle()
    assert chain.records("alert.server_refuses") == alerts


def test_a_dripping_server_holds_up_nobody_but_itself(chain: Chain, till: Till, tmp_path: Path) -> None:
    def drip(exchange: Exchange) -> None:
        exchange.request()
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while exchange.pause(0.05):
            exchange.send(b" ")

    before = chain.snapshot()
    with (
        TlsPeer(tmp_path, real(chain, tmp_path), drip) as peer,
        standing_in(chain, peer),
        in_background(chain.rotate_fails),
    ):
        peer.wait_for_a_connection()
        rounds = till.rounds
        chain.wait_until(lambda: till.rounds > rounds + 20)
        assert chain.snapshot() == before
        chain.relay.cut()
    chain.settle()


# The server has gone wrong: all of this is signed by its own rotation key


@dataclass(frozen=True)
class Wrong:
    """What a server gone wrong works with."""

    chain: Chain
    server_side: ServerSide
    asked: Asked

    @property
    def head(self) -> dict[str, Any]:
        request = self.asked.request
        return {"agent_id": request["agent_id"], "request_id": request["request_id"], "issued_at": int(time.time())}

    def delivery(self, agent_id: str | None = None, version: int | None = None, **dates: int) -> str:
        """A delivery with a secret of its own."""
        now = int(time.time())
        given = {"valid_from": now, "valid_until": now + DAY, "grace_until": now + 8 * DAY, "issued_at": now} | dates
        with self.server_side.database.read() as session:
            row = session.get(Agent, self.chain.agent_id)
            assert row is not None
            key = json.loads(row.agreement_key)
        newest = self.asked.request["current_secret_version"]
        number = newest + 1 if version is None else version
        return issue_delivery(
            agent_id or self.chain.agent_id, number, given, bytes(range(32)), key, self.server_side.keys.rotation_key()
        )

    def deliver(self, delivery: str, **changes: Any) -> Reply:
        return self.reply(RotateReply(**{"delivery": delivery, **self.head, **changes}))

    def status(self, **changes: Any) -> Reply:
        fields = {"secret_version": self.asked.request["current_secret_version"], "rotate_now": False, "revocations": 0}
        return self.reply(StatusReply(**{**fields, "key_set": 1, "next_contact_s": 60, **self.head, **changes}))

    def reply(self, content: Any, key: dict[str, str] | None = None) -> Reply:
        jwk = key or self.server_side.keys.rotation_key()
        header = {"alg": "ES256", "typ": REPLY_TYPE, "kid": public_jwk(jwk)["kid"]}
        data = content if isinstance(content, bytes) else msgspec.json.encode(content)
        text = jws.serialize_compact(header, data, ECKey.import_key({**jwk}), algorithms=["ES256"])
        return Reply(json.dumps({"reply": text}).encode())


def _future(wrong: Wrong) -> Said:
    content: dict[str, Any] = msgspec.to_builtins(RotateReply(delivery=wrong.delivery(), **wrong.head))
    return wrong.reply(json.dumps(content | {"v": 2, "more": 1}).encode())


def _foreign_key(wrong: Wrong) -> Said:
    """To a key of somebody else: it is signed well, and does not open."""
    now = int(time.time())
    dates = {"valid_from": now, "valid_until": now + DAY, "grace_until": now + 8 * DAY, "issued_at": now}
    version = wrong.asked.request["current_secret_version"] + 1
    key = public_jwk(new_signing_key())
    return wrong.deliver(
        issue_delivery(wrong.chain.agent_id, version, dates, bytes(32), key, wrong.server_side.keys.rotation_key())
    )


def _again(wrong: Wrong) -> Said:
    """The delivery of the version before, in a fresh reply."""
    said = [
        each.said for each in wrong.chain.bad.of("rotate-secret") if isinstance(each.said, Reply) and each.said.status == 200
    ]
    content = json.loads(b64decode(said[0].content["reply"].split(".")[1]))
    return wrong.deliver(content["delivery"])


NOW = time.time
WRONG_ROTATIONS: dict[str, Callable[[Wrong], Said]] = {
    "the present version again": lambda w: w.deliver(w.delivery(version=w.asked.request["current_secret_version"])),
    "a lower version": lambda w: w.deliver(w.delivery(version=1)),
    "a delivery of before": _again,
    "a delivery for another agent": lambda w: w.deliver(w.delivery(agent_id="pos-666")),
    "a reply for another agent": lambda w: w.deliver(w.delivery(), agent_id="pos-666"),
    "a reply to another request": lambda w: w.deliver(w.delivery(), request_id="0" * 32),
    "a secret for another key": _foreign_key,
    "a future version of the protocol": _future,
    "a reply by the license key": lambda w: w.reply(
        RotateReply(delivery=w.delivery(), **w.head), w.server_side.keys.license_key()
    ),
    "a reply by a new key": lambda w: w.reply(RotateReply(delivery=w.delivery(), **w.head), new_signing_key()),
    "an end before the begin": lambda w: w.deliver(w.delivery(valid_until=int(NOW()) - 10)),
    "grace before the end": lambda w: w.deliver(w.delivery(grace_until=int(NOW()) + 10)),
    "1970": lambda w: w.deliver(w.delivery(valid_from=1, valid_until=2, grace_until=3, issued_at=1)),
    "a begin before the present one's": lambda w: w.deliver(w.delivery(valid_from=int(NOW()) - 30 * DAY)),
    "a secret that has ended": lambda w: w.deliver(w.delivery(valid_from=int(NOW()) - 1, valid_until=int(NOW()))),
    "a begin in 9999": lambda w: w.deliver(w.delivery(valid_from=FAR, valid_until=FAR + 1, grace_until=FAR + 2)),
    "a begin tomorrow": lambda w: w.deliver(w.delivery(valid_from=int(NOW()) + DAY, valid_until=int(NOW()) + 2 * DAY)),
    "a delivery signed in 9999": lambda w: w.deliver(w.delivery(issued_at=FAR)),
    "a reply signed in 9999": lambda w: w.deliver(w.delivery(issued_at=FAR), issued_at=FAR),
}


@pytest.mark.parametrize("name", WRONG_ROTATIONS)
def test_a_rotation_that_makes_no_sense_is_not_taken(chain: Chain, till: Till, name: str) -> None:
    before = chain.snapshot()
    with chain.server_side() as server_side:

        def behave(asked: Asked) -> Said:
            return WRONG_ROTATIONS[name](Wrong(chain, server_side, asked))

        with chain.bad.behaving(always("rotate-secret", behave)):
            chain.rotate_fails()
            assert chain.snapshot() == before
            assert_clock_is_right(chain)
    chain.settle()


def assert_clock_is_right(chain: Chain) -> None:
    status = chain.admin("status")
    assert abs(status["time"] - time.time()) < 60 and not status["clock_suspect"]


WRONG_STATUS: dict[str, Callable[[Wrong], Said]] = {
    "9999": lambda w: w.status(issued_at=FAR),
    "a year on": lambda w: w.status(issued_at=int(NOW()) + 366 * DAY),
    "for another agent": lambda w: w.status(agent_id="pos-666"),
    "a key set that is not there": lambda w: w.status(key_set=2**50),
    "by a new key": lambda w: w.reply(_plain(w), new_signing_key()),
}


def _plain(wrong: Wrong) -> StatusReply:
    return StatusReply(secret_version=1, rotate_now=True, revocations=9, key_set=1, next_contact_s=60, **wrong.head)


@pytest.mark.parametrize("name", WRONG_STATUS)
def test_a_status_that_makes_no_sense_is_not_taken(chain: Chain, till: Till, name: str) -> None:
    before = chain.snapshot()
    with chain.server_side() as server_side:
        behave = always("secret-status", lambda asked: WRONG_STATUS[name](Wrong(chain, server_side, asked)))
        with chain.bad.behaving(behave):
            assert chain.asks("contact")
            assert chain.snapshot() == before
            assert_clock_is_right(chain)
    chain.settle()


def test_a_status_of_1970_moves_no_clock(chain: Chain, till: Till) -> None:
    with chain.server_side() as server_side:
        behave = always("secret-status", lambda asked: Wrong(chain, server_side, asked).status(issued_at=0))
        with chain.bad.behaving(behave):
            chain.admin("contact")
            assert_clock_is_right(chain)
    chain.settle()


@pytest.mark.parametrize("number", [0, 1])
def test_an_old_key_set_is_not_taken_though_the_root_signed_it(chain: Chain, till: Till, number: int) -> None:
    chain.settle()
    with chain.server_side() as server_side:
        key = load_pem_private_key((chain.root / "root.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        content = verify_key_set(server_side.keys.key_set(), server_side.keys.root_pins()).content
        public = ECKey.import_key(key).as_dict(private=False)
        header = {"alg": "ES256", "typ": KEY_SET_TYPE, "jwk": {name: public[name] for name in ("kty", "crv", "x", "y")}}
        old = msgspec.structs.replace(content, number=number, rotation_keys=content.license_keys)
        text = jws.serialize_compact(header, msgspec.json.encode(old), ECKey.import_key(key), algorithms=["ES256"])
        assert verify_key_set(text, server_side.keys.root_pins()).content.number == number

        def behave(asked: Asked) -> Said:
            if asked.purpose == "key-set":
                return Reply(text.encode())
            return (
                Wrong(chain, server_side, asked).status(key_set=2**50) if asked.purpose == "secret-status" else asked.forward()
            )

        before = chain.snapshot()
        with chain.bad.behaving(behave):
            assert "key set" in chain.asks("contact")
            assert chain.snapshot() == before
    chain.settle()


def test_a_lower_revocation_number_takes_nothing_back(chain: Chain, till: Till) -> None:
    revoked = chain.issue("till-lost")
    assert chain.admin("license_check", token=revoked)["valid"]
    chain.server_cli("revoke", "till-lost")
    chain.settle()
    assert not chain.admin("license_check", token=revoked)["valid"]
    before = chain.snapshot()
    with chain.server_side() as server_side:

        def behave(asked: Asked) -> Said:
            wrong = Wrong(chain, server_side, asked)
            if asked.purpose == "revocation-list":
                return wrong.reply(
                    RevocationReply(number=before["revocations"] - 1, next_update=int(NOW()) + DAY, revoked=(), **wrong.head)
                )
            return wrong.status(revocations=0) if asked.purpose == "secret-status" else asked.forward()

        with chain.bad.behaving(behave):
            chain.admin("contact")
            after = chain.snapshot()
            assert (after["revocations"], after["revoked"]) == (before["revocations"], before["revoked"])
    assert not chain.admin("license_check", token=revoked)["valid"]
    chain.settle()


# Against the real server


def thief(chain: Chain, directory: Path) -> Device:
    """Who has copied the TLS key and the certificate of the agent, and nothing else."""
    certificates, key = chain.bad.keys[-1]
    device = Device(chain.server.base, chain.server.root, directory)
    device.agent_id = chain.agent_id
    loaded = load_pem_private_key(key, None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    device.tls, device.certificates = loaded, (certificates,)
    return device


def test_a_stolen_tls_key_without_the_identity_key_gets_nothing(chain: Chain, till: Till, tmp_path: Path) -> None:
    chain.settle()
    device = thief(chain, tmp_path)
    with chain.server_side() as server_side:
        before = server_side.secrets.listed(chain.agent_id)
    with device.client(patient=True) as client:
        challenge = device.challenge(client)
        fields = {"current_secret_version": chain.newest(), "key_check": None, "highest_version": 99, "serial": 1}
        kinds: list[tuple[str, dict[str, Any]]] = [
            ("secret-status", fields),
            ("rotate-secret", fields | {"cause": "forced"}),
            ("confirm-rotation", {"secret_version": 1, "key_check": "A" * 22}),
            ("revocation-list", {}),
            ("renew-certificate", {"csr": "x"}),
            ("reissue-licenses", {"licenses": ["till-1"], "secret_version": 1}),
        ]
        for purpose, more in kinds:
            head = {"v": 1, "purpose": purpose, "agent_id": chain.agent_id, "request_id": os.urandom(16).hex()}
            content = head | {"challenge": challenge, "timestamp": 0} | more
            text = sign(content, REQUEST_TYPE, chain.agent_id, device.identity)
            response = client.post(f"{PREFIX}/{purpose}", json={"request": text})
            assert (response.status_code, response.json()["error"]["code"]) == (403, "bad_signature"), purpose
            # Not even a refusal is signed for it, which the agent might believe.
            assert "reply" not in response.json()
    with chain.server_side() as server_side:
        assert server_side.secrets.listed(chain.agent_id) == before


def test_a_replayed_request_acts_once_and_elsewhere_not_at_all(chain: Chain, till: Till, tmp_path: Path) -> None:
    chain.settle()
    chain.admin("rotate")
    asked = chain.bad.of("rotate-secret")[-1]
    assert isinstance(asked.said, Reply)
    newest = chain.newest()
    with thief(chain, tmp_path).client(patient=True) as client:
        headers = {"content-type": "application/json"}
        again = client.post(f"{PREFIX}/rotate-secret", content=asked.fetch.body, headers=headers)
        assert again.content == asked.said.body, "the same request gets the same answer"
        text = asked.body["request"]
        changed = client.post(f"{PREFIX}/rotate-secret", json={"request": with_payload(text, highest_version=99)})
        assert (changed.status_code, changed.json()["error"]["code"]) == (403, "bad_signature")
    with Device(chain.server.base, chain.server.root, tmp_path).client() as client:
        nobody = client.post(f"{PREFIX}/rotate-secret", content=asked.fetch.body, headers=headers)
        assert nobody.status_code == 401
    chain.settle()
    assert chain.newest() == newest
    with chain.server_side() as server_side:
        assert max(row.version for row in server_side.secrets.listed(chain.agent_id)) == newest


def test_a_certificate_that_has_ended_or_is_revoked_opens_nothing(chain: Chain, tmp_path: Path) -> None:
    device = Device(chain.server.base, chain.server.root, tmp_path)
    device.provision(chain.server.claim(), chain.server.pins)
    good = device.certificates
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "device")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(device.tls, hashes.SHA256())
    with chain.server_side() as server_side:
        server_side.certificates.note_use(device.agent_id, device.fingerprint, int(time.time()))
        long_ago = int(time.time()) - 3650 * DAY
        device.certificates = server_side.certificates.renew(device.agent_id, csr.public_bytes(Encoding.PEM).decode(), long_ago)
    with device.client() as client:
        ended = client.post(f"{PREFIX}/challenge", json={})
        assert ended.status_code == 401 and "challenge" not in ended.json()
    device.certificates = good
    with device.client(patient=True) as client:
        challenge = device.challenge(client)
        chain.server.revoke(device.agent_id)
        fields = {"current_secret_version": 0, "key_check": None, "highest_version": 0, "serial": 1}
        response = device.post(client, device.request(SecretStatus, challenge, **fields))
        assert response.status_code == 403 and "reply" in response.json(), "the owner of the identity key is told"
        text = sign({"agent_id": device.agent_id}, REQUEST_TYPE, device.agent_id, ec.generate_private_key(ec.SECP256R1()))
        response = client.post(f"{PREFIX}/secret-status", json={"request": text})
        assert response.status_code == 403 and "reply" not in response.json()


def test_a_revoked_agent_is_told_so_by_the_server_and_says_so(chain: Chain, till: Till) -> None:
    """The last test of this chain. The licenses that the agent has stay valid until their end, or until they are revoked."""
    before = chain.snapshot()
    chain.server.revoke(chain.agent_id)
    told = chain.asks("contact")
    assert "agent_revoked" in told
    chain.wait_until(lambda: bool(chain.records("alert.server_refuses")))
    assert chain.records("alert.server_refuses")[-1]["outcome"] == "raised"
    assert chain.records("server.contact")[-1]["outcome"] == "refused"
    assert chain.snapshot() == before
