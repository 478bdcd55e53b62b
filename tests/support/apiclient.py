"""A device with the software backend, and its talk with a real license server over TLS: provisioned, then an agent."""

import hashlib
import json
import os
import ssl
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID
from joserfc import jwe, jws
from joserfc.jwk import ECKey

from contracts.enrollment.enrollment import COMPLETE_TYPE, NOBODY, Begin, Begun, Claim, Complete, Completed
from contracts.exchange import REQUEST_TYPE, Request, purpose_of, verify_reply
from contracts.jose import b64decode, b64encode, jwk_from_point, thumbprint
from contracts.keyset import KeySet, verify_key_set
from tests.support.waiting import READY_S

PREFIX = "/api/v1"


def _point(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _jwk(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    return jwk_from_point(_point(key))


def sign(content: Any, kind: str, kid: str, key: ec.EllipticCurvePrivateKey) -> str:
    data = msgspec.json.encode(content)
    text: str = jws.serialize_compact(
        {"alg": "ES256", "typ": kind, "kid": kid}, data, ECKey.import_key(key), algorithms=["ES256"]
    )
    return text


class PatientClient(httpx.Client):
    """Sends a request that the server's rate limit has refused once more, after as long as the server said."""

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        ends = time.monotonic() + READY_S
        while (response := super().send(request, **options)).status_code == 429 and time.monotonic() < ends:
            time.sleep(int(response.headers["Retry-After"]))
        return response


class Device:
    """A device: its keys, and after `provision` what the server gave it.

    Args:
        base: URL of the server.
        root: the server's root certificate, PEM.
        directory: for the TLS key's file.
    """

    def __init__(self, base: str, root: str, directory: Path) -> None:
        self.base = base
        self.root = root
        self.directory = directory
        self.attestation, self.identity, self.agreement, self.tls = (ec.generate_private_key(ec.SECP256R1()) for _ in range(4))
        self.hw_id = os.urandom(32).hex()
        self.agent_id = NOBODY
        self.certificates: tuple[str, ...] = ()
        self.key_set: KeySet | None = None

    def client(self, *, with_certificate: bool = True, patient: bool = False, **options: Any) -> httpx.Client:
        """A client of its own; connections are kept.

        Args:
            with_certificate: it shows the device's.
            patient: it waits as long as the server tells it to, for tests that share a certificate with others.
        """
        return (PatientClient if patient else httpx.Client)(
            base_url=self.base, verify=self.context(with_certificate), timeout=READY_S, trust_env=False, **options
        )

    def context(self, with_certificate: bool = True) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.root)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if with_certificate and self.certificates:
            context.load_cert_chain(*self.files())
        return context

    def files(self) -> tuple[str, str]:
        certificate, key = self.directory / f"{self.hw_id[:8]}.pem", self.directory / f"{self.hw_id[:8]}.key"
        certificate.write_text("".join(self.certificates))
        key.write_bytes(self.tls.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return str(certificate), str(key)

    @property
    def fingerprint(self) -> str:
        return x509.load_pem_x509_certificate(self.certificates[0].encode()).fingerprint(hashes.SHA256()).hex()

    # Provisioning

    def begin(self, claim: str) -> Begin:
        assert self.key_set is not None
        area = _point(self.attestation)
        content = Claim(claim=claim, hw_id=self.hw_id, attestation=hashlib.sha256(area).hexdigest())
        enrollment: dict[str, Any] = msgspec.to_builtins(self.key_set.enrollment_keys[0])
        encrypted = jwe.encrypt_compact(
            {"alg": "ECDH-ES", "enc": "A256GCM"},
            msgspec.json.encode(content),
            ECKey.import_key({name: enrollment[name] for name in ("kty", "crv", "x", "y")}),
            algorithms=["ECDH-ES", "A256GCM"],
        )
        return Begin(
            request_id=os.urandom(16).hex(),
            claim=encrypted,
            hw_id=self.hw_id,
            backend="software",
            attestation=b64encode(area),
        )

    def complete(self, begun: Begun, agent_id: str | None = None) -> Complete:
        nonce = b64decode(begun.nonce)
        points = {"identity": _point(self.identity), "agreement": _point(self.agreement)}
        signed = b"LASE" + bytes([len(nonce)]) + nonce + points["identity"] + points["agreement"]
        signature = _es256(self.attestation, signed)
        evidence = {name: b64encode(point) for name, point in points.items()}
        evidence |= {"attestation": b64encode(_point(self.attestation)), "signature": b64encode(signature)}
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "device")])
        csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(self.tls, hashes.SHA256())
        return Complete(
            request_id=os.urandom(16).hex(),
            session=begun.session,
            evidence=evidence,
            identity_key=_jwk(self.identity),
            agreement_key=_jwk(self.agreement),
            csr=csr.public_bytes(Encoding.PEM).decode(),
            agent_id=agent_id,
        )

    def fetch_key_set(self, client: httpx.Client, pins: tuple[str, ...]) -> None:
        response = client.get(f"{PREFIX}/key-set")
        assert response.status_code == 200, response.text
        self.key_set = verify_key_set(response.text, pins).content

    def provision(self, claim: str, pins: tuple[str, ...], agent_id: str | None = None) -> Completed:
        with self.client(with_certificate=False) as client:
            self.fetch_key_set(client, pins)
            begin = self.begin(claim)
            response = client.post(f"{PREFIX}/provision", json=msgspec.to_builtins(begin))
            begun = self.read(response, Begun, begin.request_id, NOBODY)
            complete = self.complete(begun, agent_id)
            text = sign(complete, COMPLETE_TYPE, thumbprint(_jwk(self.identity)), self.identity)
            response = client.post(f"{PREFIX}/provision/complete", json={"request": text})
            # What the reply says of its addressee is what the device is to be called; a refusal is for nobody.
            given = str(json.loads(b64decode(response.json()["reply"].split(".")[1]))["agent_id"])
            completed: Completed = self.read(response, Completed, complete.request_id, given)
        self.agent_id = given
        self.certificates = completed.certificates
        return completed

    def read(self, response: httpx.Response, kind: Any, request_id: str, agent_id: str | None = None) -> Any:
        """The reply, verified as agents verify it."""
        assert self.key_set is not None
        body = response.json()
        assert "reply" in body, body
        addressee = self.agent_id if agent_id is None else agent_id
        return verify_reply(body["reply"], kind, addressee, request_id, self.key_set.trust())

    # As an agent

    def challenge(self, client: httpx.Client) -> str:
        response = client.post(f"{PREFIX}/challenge", json={})
        assert response.status_code == 200, response.text
        return str(response.json()["challenge"])

    def request(self, kind: type[Request], challenge: str, **fields: Any) -> Any:
        head = {"agent_id": self.agent_id, "request_id": os.urandom(16).hex(), "challenge": challenge, "timestamp": 0}
        return kind(**{**head, **fields})

    def sign(self, request: Any, key: ec.EllipticCurvePrivateKey | None = None) -> str:
        return sign(request, REQUEST_TYPE, self.agent_id, key or self.identity)

    def post(self, client: httpx.Client, request: Request) -> httpx.Response:
        return client.post(f"{PREFIX}/{purpose_of(request)}", json={"request": self.sign(request)})


def _es256(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")
