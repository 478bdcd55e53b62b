"""Writes exchange-0.1.0.json: requests and replies as release 0.1.0 made them. Run once, in a checkout of its commit:

    git worktree add /tmp/release $(grep -v '^#' packaging/last-release | cut -d' ' -f2)
    cp tests/vectors/make_exchange.py /tmp/release/tests/vectors/
    cd /tmp/release && PYTHONPATH=$PWD python tests/vectors/make_exchange.py exchange-0.1.0.json

It uses the code of that commit, whose modules lay elsewhere: it does not run with today's. The device's keys and all times are
fixed; the server's keys and ES256's signatures are random, so another run gives another file. The file is frozen: agents and
servers of 0.1.0 are in the field, and what they say does not change any more.
"""
# ruff: noqa: I001 - the modules are those of another commit

import asyncio
import hashlib
import hmac
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jwe
from joserfc.jwk import ECKey

from contracts import exchange as forms
from contracts.claimseal import encrypt_claim
from contracts.enrollment import COMPLETE_TYPE, NOBODY, Begin, Begun, Claim, Complete, Completed, proof_input
from contracts.exchange import Cause, Request, purpose_of, request_input, signing_input, verify_reply, with_signature
from contracts.jose import b64decode, b64encode, jwk_from_point, thumbprint
from contracts.keyset import pin_of, verify_key_set
from server.app import PREFIX, create_app
from server.enrollment import LEVELS, Enrollment, Policy
from server.exchange import Exchange
from server.guard import CALLER, NOTE, Caller, Note
from server.licenses import Order
from server.office import Plan, found_office, open_office
from server.peers import peer_of
from server.pki import spki_of
from server.rootkey import read_root_key
from server.secretversions import key_check
from tests.server.attestationworld import EK_ECC, PaperTpm, area

NOW = 1_800_000_000
DAY = 86_400
ISSUER = "https://license.example"


def counted(name: str) -> Any:
    """Bytes that look random and are the same at each run."""
    state = [0]

    def give(size: int) -> bytes:
        state[0] += 1
        return hashlib.shake_256(f"{name} {state[0]}".encode()).digest(size)

    return give


def point(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def es256(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


class World:
    """A server in this process, asked over its own HTTP application."""

    def __init__(self, directory: Path) -> None:
        self.root_key = directory / "root.key"
        found_office(directory / "server", Plan(ISSUER, ("license.example",), self.root_key, None), NOW)
        self.office = open_office(directory / "server", counted("office"))
        self.now = NOW
        self.random = counted("server")
        office = self.office
        exchange = Exchange(office.keys, office.agents, office.secrets, office.licenses, self.random)
        policy = Policy(frozenset(LEVELS))
        enrollment = Enrollment(office.keys, office.claims, office.agents, office.audit, policy, self.random, lambda: 0.0)
        self.app = create_app(exchange, enrollment, office.keys, wall=lambda: self.now)
        chain = x509.load_pem_x509_certificates(office.keys.tls_material()[0].encode())
        self.pin = pin_of(spki_of(chain[-1]))
        self.certificate: str | None = None

    async def _guarded(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            der = None
            if self.certificate is not None:
                der = x509.load_pem_x509_certificate(self.certificate.encode()).public_bytes(Encoding.DER)
            caller = Caller(None if der is None else peer_of(der), "192.0.2.1")
            scope = {**scope, "extensions": {CALLER: caller, NOTE: Note()}}
        await self.app(scope, receive, send)

    def ask(self, method: str, path: str, body: str = "") -> tuple[int, str]:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self._guarded)
            async with httpx.AsyncClient(transport=transport, base_url="http://license.example") as client:
                headers = {"content-type": "application/json"} if method == "POST" else {}
                return await client.request(method, PREFIX + path, content=body, headers=headers)

        response = asyncio.run(send())
        return response.status_code, response.text


class Device:
    """A device, its keys fixed by a number."""

    def __init__(self, world: World, number: int, backend: str) -> None:
        self.world, self.backend = world, backend
        self.random = counted(f"device {number}")
        keys = [ec.derive_private_key(100 * number + n, ec.SECP256R1()) for n in range(1, 6)]
        self.attestation, self.identity, self.agreement, self.tls, self.endorsement = keys
        self.paper = PaperTpm(self.attestation, self.identity, self.agreement)
        tpm = backend == "tpm"
        self.attested = self.paper.area("attestation") if tpm else point(self.attestation)
        self.ek = area(EK_ECC, self.endorsement) if tpm else None
        self.hw_id = hashlib.sha256(self.ek or f"machine {number}".encode()).hexdigest()
        self.agent_id = NOBODY
        self.certificates: tuple[str, ...] = ()
        self.exchanges: list[dict[str, Any]] = []

    def new_id(self) -> str:
        return self.random(16).hex()

    def csr(self, key: ec.EllipticCurvePrivateKey) -> str:
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pos")])
        csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
        return csr.public_bytes(Encoding.PEM).decode()

    def provision(self, wanted: str | None) -> dict[str, Any]:
        world = self.world
        world.certificate = None
        key_set = verify_key_set(world.ask("GET", "/key-set")[1], (world.pin,)).content
        text = world.office.claims.new_claim(None, False, 3600, world.now)
        claim = Claim(claim=text, hw_id=self.hw_id, attestation=hashlib.sha256(self.attested).hexdigest())
        ephemeral = ec.derive_private_key(int.from_bytes(self.random(31), "big"), ec.SECP256R1())
        begin = Begin(
            request_id=self.new_id(),
            claim=encrypt_claim(claim, key_set.enrollment_keys[0], ephemeral, self.random(12)),
            hw_id=self.hw_id,
            backend="tpm" if self.ek else "software",
            endorsement_public=None if self.ek is None else b64encode(self.ek),
            attestation=b64encode(self.attested),
        )
        begin_body = msgspec.json.encode(begin).decode()
        status, begun_body = world.ask("POST", "/provision", begin_body)
        assert status == 200, begun_body
        begun = verify_reply(json.loads(begun_body)["reply"], Begun, NOBODY, begin.request_id, key_set.trust())
        nonce, csr = b64decode(begun.nonce), self.csr(self.tls)
        kept = world.office.claims.session(begun.session, world.now)
        proof = None
        if self.ek is not None:  # what the TPM would open: here, the server's own note of it
            assert kept.credential is not None
            proof = b64encode(hmac.digest(kept.credential, proof_input(begun.session, nonce, csr), "sha256"))
        complete = Complete(
            request_id=self.new_id(),
            session=begun.session,
            proof=proof,
            evidence=self.paper.evidence(nonce) if self.ek else self.paper.software_evidence(nonce),
            identity_key=jwk_from_point(point(self.identity)),
            agreement_key=jwk_from_point(point(self.agreement)),
            csr=csr,
            agent_id=wanted,
        )
        header = {"alg": "ES256", "typ": COMPLETE_TYPE, "kid": thumbprint(complete.identity_key)}
        signed = signing_input(header, complete)
        complete_body = json.dumps({"request": with_signature(signed, es256(self.identity, signed))})
        status, completed_body = world.ask("POST", "/provision/complete", complete_body)
        assert status == 200, completed_body
        done = verify_reply(json.loads(completed_body)["reply"], Completed, None, complete.request_id, key_set.trust())
        self.agent_id, self.certificates = done.agent_id, done.certificates
        return {
            "backend": self.backend,
            "claim": text,
            "credential_hex": None if kept.credential is None else kept.credential.hex(),
            "begin": begin_body,
            "begun": begun_body,
            "complete": complete_body,
            "completed": completed_body,
        }

    def challenge(self) -> str:
        self.world.certificate = self.certificates[0]
        status, body = self.world.ask("POST", "/challenge", "{}")
        assert status == 200, body
        self.exchanges.append({"name": "a challenge", "purpose": "challenge", "status": status, "request": "{}", "reply": body})
        return str(json.loads(body)["challenge"])

    def ask(self, name: str, kind: type[Request], challenge: str, status: int = 200, **fields: Any) -> Any:
        """Asks, and keeps request and reply. `request_id` and `v` may be among the fields."""
        head = {"agent_id": self.agent_id, "request_id": self.new_id(), "challenge": challenge, "timestamp": self.world.now}
        request = kind(**{**head, **fields})
        signed = request_input(request)
        body = json.dumps({"request": with_signature(signed, es256(self.identity, signed))})
        got, reply = self.world.ask("POST", f"/{purpose_of(request)}", body)
        assert got == status, (name, got, reply)
        purpose = purpose_of(request)
        self.exchanges.append({"name": name, "purpose": purpose, "status": got, "request": body, "reply": reply})
        return json.loads(b64decode(json.loads(reply)["reply"].split(".")[1]))

    def open(self, delivery: str) -> tuple[int, bytes]:
        content = json.loads(b64decode(delivery.split(".")[1]))
        key = ECKey.import_key(self.agreement)
        opened = jwe.decrypt_compact(content["new_secret_encrypted"], key, algorithms=["ECDH-ES", "A256GCM"])
        assert opened.plaintext is not None
        return int(content["secret_version"]), opened.plaintext


def converse(world: World, device: Device) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Every purpose, and the refusals that a server can be brought to; also the secrets that were delivered."""
    secrets: dict[str, str] = {}
    challenge = device.challenge()
    nothing: dict[str, Any] = {"current_secret_version": 0, "key_check": None, "highest_version": 0, "serial": 1}
    device.ask("before the first secret", forms.SecretStatus, challenge, **nothing)
    standing = nothing
    first: dict[str, Any] = {}
    for name, cause in (("the first secret", Cause.DUE), ("the next one, forced", Cause.FORCED)):
        reply = device.ask(name, forms.RotateSecret, challenge, cause=cause, **standing)
        version, secret = device.open(reply["delivery"])
        secrets[str(version)] = secret.hex()
        check = key_check(secret, device.agent_id, version)
        device.ask(f"{name}: confirmed", forms.ConfirmRotation, challenge, secret_version=version, key_check=check)
        standing = {"current_secret_version": version, "key_check": check, "highest_version": version, "serial": 1}
        first = first or standing
    audited = {"audit_seq": 41, "audit_head": hashlib.sha256(b"head").hexdigest()}
    device.ask("with the audit log's head", forms.SecretStatus, challenge, **standing, **audited)
    orders = [Order(f"license-{n}", "Shop", ("sales",), {"shop": "Rue du Lac 7"}, NOW, NOW + 30 * DAY) for n in (1, 2)]
    tokens = [world.office.licenses.issue(device.agent_id, order, world.now, 1) for order in orders]
    wanted = {"licenses": ("license-1", "license-2", "unknown"), "secret_version": 2}
    device.ask("two licenses and an unknown one", forms.ReissueLicenses, challenge, **wanted)
    device.ask("a good token", forms.ValidateLicense, challenge, token=tokens[0])
    device.ask("what is no token", forms.ValidateLicense, challenge, token="x.y.z")
    device.ask("nothing is revoked", forms.RevocationList, challenge)
    world.office.licenses.revoke("license-2", world.now)
    device.ask("one is revoked", forms.RevocationList, challenge)
    device.ask("a revoked token", forms.ValidateLicense, challenge, token=tokens[1])
    world.office.secrets.demand(device.agent_id, world.now)
    device.ask("a rotation is demanded", forms.SecretStatus, challenge, **standing, **audited)
    device.ask("an urgent one", forms.RotateSecret, challenge, cause=Cause.URGENT, **standing)
    # Refusals
    other = {"secret_version": 2, "key_check": "A" * 22}
    device.ask("another secret under that number", forms.ConfirmRotation, challenge, 409, **other)
    device.ask("a version that nobody knows", forms.ConfirmRotation, challenge, 409, **{**other, "secret_version": 99})
    repeated = device.new_id()
    device.ask("a request id", forms.RevocationList, challenge, request_id=repeated)
    device.ask("the same id for another request", forms.SecretStatus, challenge, 409, request_id=repeated, **standing)
    device.ask("what is no certificate request", forms.RenewCertificate, challenge, 403, csr="none")
    world.now += 400
    device.ask("a challenge that is too old", forms.RevocationList, challenge, 409)
    challenge = device.challenge()
    renewed = ec.derive_private_key(7001, ec.SECP256R1())
    device.ask("a certificate for a new key", forms.RenewCertificate, challenge, csr=device.csr(renewed))
    world.office.agents.set_status(device.agent_id, "revoked", world.now)
    device.ask("a revoked agent", forms.SecretStatus, challenge, 403, **standing)
    return device.exchanges, secrets


def made(directory: Path) -> dict[str, Any]:
    world = World(directory)
    key_sets = [world.ask("GET", "/key-set")[1]]
    software, tpm = Device(world, 1, "software"), Device(world, 2, "tpm")
    unsigned = [dict(zip(("status", "reply"), world.ask("POST", "/challenge", "{}"), strict=True))]
    unsigned.append(dict(zip(("status", "reply"), world.ask("POST", "/provision", "[]"), strict=True)))
    provisioning = [software.provision("pos-001"), tpm.provision(None)]
    (enrollment_key,) = world.office.keys._now().enrollment
    trust = verify_key_set(key_sets[0], (world.pin,)).content.trust_file().decode()
    exchanges, secrets = converse(world, software)
    world.office.keys.rotate("rotation", world.now, read_root_key(world.root_key, None))
    key_sets.append(world.ask("GET", "/key-set")[1])
    fingerprint = x509.load_pem_x509_certificate(software.certificates[0].encode()).fingerprint(hashes.SHA256()).hex()
    return {
        "note": "Made by make_exchange.py at release 0.1.0 and frozen. All keys were made for this file; they protect nothing.",
        "now": NOW,
        "root_pin": world.pin,
        "trust": json.loads(trust),
        "key_sets": key_sets,
        "enrollment_key": enrollment_key.as_dict(private=True),
        "challenge_key_hex": world.office.keys.challenge_key().hex(),
        "agent": {
            "agent_id": software.agent_id,
            "fingerprint": fingerprint,
            "identity_scalar": 102,
            "agreement_scalar": 103,
            "identity_key": jwk_from_point(point(software.identity)),
        },
        "secrets_hex": secrets,
        "provisioning": provisioning,
        "exchanges": exchanges,
        "unsigned": unsigned,
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        content = made(Path(directory))
    Path(sys.argv[1]).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
