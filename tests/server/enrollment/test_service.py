"""Provisioning in process: what makes a device an agent, and everything that keeps it from becoming one."""

import hashlib
import hmac
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from joserfc import jws
from joserfc.jwk import ECKey
from sqlalchemy.exc import OperationalError

from contracts.enrollment.enrollment import COMPLETE_TYPE, NOBODY, Begin, Begun, Claim, Complete, Completed, proof_input
from contracts.exchange import REPLY_TYPE, Refusal, RefusalCode, Refused, Reply, verify_reply
from contracts.jose import b64decode, b64encode, jwk_from_point, thumbprint
from contracts.trust import encode_trust, parse_trust
from server.agents.activation import ProvenDevice
from server.base.limits import FAILED_CLAIM_RATE
from server.base.refused import RequestRefused
from server.enrollment.service import LEVELS, Enrollment, Policy
from server.keys.jose import new_signing_key, public_jwk
from server.keys.pki import key_of_csr
from server.web.responses import STATUS_OF, Response
from tests.server.attestationworld import EK_ECC, PaperTpm, area, new_key, point

NOW = 1_800_000_000
CLAIM = "claim-0123456789abcdef"


@dataclass
class KeptSession:
    token_id: int
    begin: bytes
    nonce: bytes
    credential: bytes | None


@dataclass
class NewAgent:
    agent_id: str
    serial: int
    certificates: tuple[str, ...]


@dataclass
class Store:
    """Storage in memory: the steps are tested here, not the database."""

    key: dict[str, str] = field(default_factory=new_signing_key)
    sessions: dict[str, KeptSession] = field(default_factory=dict)
    bound: dict[str, str] = field(default_factory=dict)
    activated: list[tuple[Any, ...]] = field(default_factory=list)
    records: list[tuple[Any, ...]] = field(default_factory=list)
    fails: Exception | None = None

    def sign_reply(self, reply: Reply) -> str:
        header = {"alg": "ES256", "typ": REPLY_TYPE, "kid": public_jwk(self.key)["kid"]}
        text: str = jws.serialize_compact(
            header, msgspec.json.encode(reply), ECKey.import_key({**self.key}), algorithms=["ES256"]
        )
        return text

    def open_enrollment_token(self, jwe: str) -> bytes:
        if not jwe.startswith("jwe."):
            raise RequestRefused(RefusalCode.CLAIM_REFUSED, "the claim does not decrypt")
        return b64decode(jwe.removeprefix("jwe."))

    def key_set(self) -> str:
        return "key.set.text"

    def use(self, _session: object, text: str, hw_id: str, now: int) -> int:
        if self.fails is not None:
            raise self.fails
        if text != CLAIM or self.bound.setdefault(text, hw_id) != hw_id:
            raise RequestRefused(RefusalCode.CLAIM_REFUSED, "no such claim")
        return 7

    def start_attempt(
        self, _session: object, session_id: str, token_id: int, begin: bytes, nonce: bytes, credential: bytes | None, now: int
    ) -> None:
        self.sessions[session_id] = KeptSession(token_id, begin, nonce, credential)

    def attempt(self, _session: object, session_id: str, now: int) -> KeptSession:
        if session_id not in self.sessions:
            raise RequestRefused(RefusalCode.CLAIM_REFUSED, "no such session")
        return self.sessions[session_id]

    def activate(self, _session: object, token_id: int, device: ProvenDevice, now: int) -> NewAgent:
        key_of_csr(device.csr_pem)
        self.activated.append((token_id, device, now))
        return NewAgent(device.agent_id or "pos-000001", 1, ("leaf", "ca"))

    def record_refusal(
        self, _session: object, address: str, event: str, refused: RequestRefused, now: int, fields: dict[str, Any]
    ) -> None:
        self.records.append((f"address {address}", event, refused.code.value))

    @contextmanager
    def write(self) -> Iterator["Store"]:
        yield self

    read = write


class Device:
    """A device, with or without a TPM."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.paper = PaperTpm()
        self.ek = new_key()
        self.ek_public = area(EK_ECC, self.ek)
        self.attestation = self.paper.area("attestation") if backend == "tpm" else point(self.paper.attestation)
        self.hw_id = hashlib.sha256(self.ek_public if backend == "tpm" else b"machine").hexdigest()
        self.tls = ec.generate_private_key(ec.SECP256R1())
        self.csr = csr_for(self.tls)

    def claim(self, **changes: Any) -> str:
        content = {"claim": CLAIM, "hw_id": self.hw_id, "attestation": hashlib.sha256(self.attestation).hexdigest()}
        return "jwe." + b64encode(msgspec.json.encode(Claim(**{**content, **changes})))

    def begin(self, **changes: Any) -> dict[str, Any]:
        begin = Begin(
            request_id=os.urandom(16).hex(),
            claim=self.claim(),
            hw_id=self.hw_id,
            backend="tpm" if self.backend == "tpm" else "software",
            endorsement_public=b64encode(self.ek_public) if self.backend == "tpm" else None,
            attestation=b64encode(self.attestation),
        )
        return {**msgspec.to_builtins(begin), **changes}

    def complete(self, session: str, kept: KeptSession, **changes: Any) -> dict[str, Any]:
        proof = None
        if kept.credential is not None:
            proof = b64encode(hmac.digest(kept.credential, proof_input(session, kept.nonce, self.csr), "sha256"))
        tpm = self.backend == "tpm"
        content = Complete(
            request_id=os.urandom(16).hex(),
            session=session,
            proof=proof,
            evidence=self.paper.evidence(kept.nonce) if tpm else self.paper.software_evidence(kept.nonce),
            identity_key=jwk_from_point(point(self.paper.identity)),
            agreement_key=jwk_from_point(point(self.paper.agreement)),
            csr=self.csr,
        )
        return {**msgspec.to_builtins(content), **changes}

    def sign(self, content: dict[str, Any], key: ec.EllipticCurvePrivateKey | None = None, **header: Any) -> str:
        kid = thumbprint(jwk_from_point(point(self.paper.identity)))
        protected = {"alg": "ES256", "typ": COMPLETE_TYPE, "kid": kid, **header}
        text: str = jws.serialize_compact(
            protected, json.dumps(content).encode(), ECKey.import_key(key or self.paper.identity), algorithms=["ES256"]
        )
        return text


def csr_for(key: Any) -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pos")])
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
        .decode()
    )


class World:
    def __init__(self, backend: str = "tpm", policy: Policy | None = None) -> None:
        self.store, self.device, self.clock = Store(), Device(backend), [0.0]
        public = public_jwk(self.store.key)
        self.trust = parse_trust(encode_trust("issuer", [public], [public]))
        self.enrollment = Enrollment(
            self.store,
            self.store,
            self.store,
            self.store,
            policy or Policy(frozenset(LEVELS)),
            os.urandom,
            lambda: self.clock[0],
        )

    def begin(self, body: dict[str, Any] | None = None, address: str = "192.0.2.1") -> Response:
        return self.enrollment.begin(body or self.device.begin(), address, NOW)

    def begun(self) -> tuple[str, KeptSession]:
        body = self.device.begin()
        answer = self.begin(body)
        assert answer.status == 200, answer
        session = self.read(answer, Begun, body["request_id"]).session
        return session, self.store.sessions[session]

    def complete(self, content: dict[str, Any], **how: Any) -> Response:
        return self.enrollment.complete(self.device.sign(content, **how), "192.0.2.1", NOW)

    def read(self, answer: Response, kind: Any, request_id: str, agent_id: str = NOBODY) -> Any:
        return verify_reply(json.loads(answer.body())["reply"], kind, agent_id, request_id, self.trust)

    def refused(self, answer: Response, request_id: str, code: RefusalCode) -> Refusal:
        with pytest.raises(Refused) as caught:
            self.read(answer, Begun, request_id)
        assert caught.value.refusal.code is code and answer.status == STATUS_OF[code]
        return caught.value.refusal


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize(("backend", "level"), [("tpm", "tpm-unattested"), ("software", "software")])
def test_a_device_becomes_an_agent(backend: str, level: str) -> None:
    world = World(backend)
    session, kept = world.begun()
    assert len(kept.nonce) == 32 and (kept.credential is not None) == (backend == "tpm")
    content = world.device.complete(session, kept, agent_id="till-7")
    completed = world.read(world.complete(content), Completed, content["request_id"], "till-7")
    assert (completed.serial, completed.attestation, completed.key_set) == (1, level, "key.set.text")
    assert completed.certificates == ("leaf", "ca")
    paper = world.device.paper
    keys = [jwk_from_point(point(key)) for key in (paper.identity, paper.agreement, paper.attestation)]
    wanted = ProvenDevice(world.device.hw_id, backend, level, *keys, world.device.csr, "till-7")
    assert world.store.activated == [(7, wanted, NOW)]


def test_both_steps_may_be_repeated(world: World) -> None:
    body = world.device.begin()
    sessions = [world.read(world.begin(body), Begun, body["request_id"]).session for _ in range(2)]
    assert len(set(sessions)) == 2
    content = world.device.complete(sessions[0], world.store.sessions[sessions[0]])
    assert [world.complete(content).status for _ in range(2)] == [200, 200]


def certificate_for(ek: Any, issuer: tuple[x509.Name, Any]) -> bytes:
    """An endorsement certificate as a TPM's maker issues it."""
    tpm = [("2.23.133.2.1", "id:49424D00"), ("2.23.133.2.2", "paper"), ("2.23.133.2.3", "id:1")]
    names = x509.Name([x509.NameAttribute(x509.ObjectIdentifier(oid), value) for oid, value in tpm])
    moment = datetime.fromtimestamp(NOW, UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer[0])
        .public_key(ek.public_key())
        .serial_number(5)
        .not_valid_before(moment - timedelta(days=1))
        .not_valid_after(moment + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DirectoryName(names)]), critical=True)
        .add_extension(usage(key_agreement=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.ObjectIdentifier("2.23.133.8.1")]), critical=False)
        .sign(issuer[1], hashes.SHA256())
        .public_bytes(Encoding.DER)
    )


def usage(key_agreement: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        False, False, False, False, key_agreement, key_cert_sign, key_cert_sign, encipher_only=False, decipher_only=False
    )


def maker() -> tuple[x509.Certificate, Any]:
    key = new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "maker")])
    moment = datetime.fromtimestamp(NOW, UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(4)
        .not_valid_before(moment - timedelta(days=1))
        .not_valid_after(moment + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage(key_cert_sign=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


@pytest.mark.parametrize(
    ("trusted", "given", "level"),
    [(True, True, "attested"), (True, False, "tpm-unattested"), (False, True, "tpm-unattested")],
)
def test_only_a_chain_to_a_configured_root_attests(trusted: bool, given: bool, level: str) -> None:
    root, key = maker()
    other, _ = maker()
    for accept in (frozenset(LEVELS), frozenset({"attested"})):
        world = World(policy=Policy(accept, [root if trusted else other]))  # type: ignore[arg-type]
        certificate = b64encode(certificate_for(world.device.ek, (root.subject, key))) if given else None
        body = world.device.begin(endorsement_certificate=certificate)
        answer = world.begin(body)
        if level not in accept:
            world.refused(answer, body["request_id"], RefusalCode.ATTESTATION_FAILED)
            continue
        session = world.read(answer, Begun, body["request_id"]).session
        content = world.device.complete(session, world.store.sessions[session])
        assert world.read(world.complete(content), Completed, content["request_id"], "pos-000001").attestation == level


# The first step


@pytest.mark.parametrize("change", ["hw_id", "attestation"])
def test_a_claim_is_for_one_device_and_one_key(world: World, change: str) -> None:
    body = world.device.begin(claim=world.device.claim(**{change: "0" * 64}))
    world.refused(world.begin(body), body["request_id"], RefusalCode.CLAIM_REFUSED)


@pytest.mark.parametrize("claim", ["other", "jwe.e30", "jwe.AA"])
def test_a_claim_that_is_none_is_refused_and_recorded(world: World, claim: str) -> None:
    body = world.device.begin(claim=claim)
    world.refused(world.begin(body), body["request_id"], RefusalCode.CLAIM_REFUSED)
    assert world.store.records == [("address 192.0.2.1", "provision.begin", "claim_refused")]
    assert not world.store.sessions


def test_another_devices_claim_is_refused(world: World) -> None:
    world.begun()
    world.device = Device("tpm")
    body = world.device.begin()
    world.refused(world.begin(body), body["request_id"], RefusalCode.CLAIM_REFUSED)


def test_guessing_claims_is_limited_by_address(world: World) -> None:
    for _ in range(FAILED_CLAIM_RATE.burst):
        body = world.device.begin(claim=world.device.claim(claim="guess-0123456789abcdef"))
        world.refused(world.begin(body), body["request_id"], RefusalCode.CLAIM_REFUSED)
    answer = world.begin()
    assert answer.status == 429 and answer.reply is None and answer.retry_after_s == 60
    assert world.begin(address="192.0.2.2").status == 200
    world.clock[0] += 60
    assert world.begin().status == 200


def test_a_hardware_id_is_the_hash_of_the_endorsement_key(world: World) -> None:
    world.device.hw_id = "0" * 64
    body = world.device.begin()
    world.refused(world.begin(body), body["request_id"], RefusalCode.ATTESTATION_FAILED)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"endorsement_public": None}, RefusalCode.ATTESTATION_FAILED),
        ({"endorsement_public": "AAAA"}, RefusalCode.ATTESTATION_FAILED),
        ({"endorsement_public": "A"}, RefusalCode.BAD_REQUEST),
        ({"attestation": "A"}, RefusalCode.BAD_REQUEST),
        ({"v": 2}, RefusalCode.UNSUPPORTED_VERSION),
        ({"v": True}, RefusalCode.UNSUPPORTED_VERSION),
        ({"hw_id": "x"}, RefusalCode.BAD_REQUEST),
        ({"extra": 1}, RefusalCode.BAD_REQUEST),
        ({"backend": "magic"}, RefusalCode.BAD_REQUEST),
    ],
    ids=str,
)
def test_a_first_step_of_another_form_is_refused(world: World, change: dict[str, Any], code: RefusalCode) -> None:
    body = world.device.begin(**change)
    world.refused(world.begin(body), body["request_id"], code)


def test_an_attestation_key_of_another_template_is_refused(world: World) -> None:
    world.device.attestation = world.device.paper.area("identity")
    body = world.device.begin()
    world.refused(world.begin(body), body["request_id"], RefusalCode.ATTESTATION_FAILED)


def test_a_software_device_has_no_endorsement_key() -> None:
    world = World("software")
    body = world.device.begin(endorsement_public=b64encode(world.device.ek_public))
    world.refused(world.begin(body), body["request_id"], RefusalCode.BAD_REQUEST)


@pytest.mark.parametrize("backend", ["tpm", "software"])
def test_the_policy_says_who_may_come(backend: str) -> None:
    world = World(backend, Policy(frozenset({"attested"})))
    body = world.device.begin()
    refusal = world.refused(world.begin(body), body["request_id"], RefusalCode.ATTESTATION_FAILED)
    assert "does not accept" in refusal.text


def test_a_database_that_is_away_is_nobodys_fault(world: World) -> None:
    world.store.fails = OperationalError("x", {}, Exception("away"))
    assert (world.begin().status, world.begin().reply) == (503, None)


# The second step


def test_a_session_must_be_there(world: World) -> None:
    _, kept = world.begun()
    content = world.device.complete("0" * 32, kept)
    world.refused(world.complete(content), content["request_id"], RefusalCode.CLAIM_REFUSED)


def test_only_the_identity_key_signs(world: World) -> None:
    session, kept = world.begun()
    content = world.device.complete(session, kept)
    answer = world.complete(content, key=new_key())
    assert (answer.status, answer.code, answer.reply) == (403, RefusalCode.BAD_SIGNATURE, None)
    for how in ({"kid": "x"}, {"typ": "JWT"}):
        answer = world.complete(content, **how)
        assert (answer.status, answer.code) == (400, RefusalCode.BAD_REQUEST)
    assert not world.store.activated


@pytest.mark.parametrize("text", ["", "a.b.c", "e30.e30.AA"])
def test_rubbish_is_no_second_step(world: World, text: str) -> None:
    assert world.enrollment.complete(text, "192.0.2.1", NOW).status == 400


@pytest.mark.parametrize("key", [None, {}, {"kty": "EC", "crv": "P-256", "x": "A" * 43, "y": "A" * 43}])
def test_an_identity_key_that_is_none_signs_nothing(world: World, key: Any) -> None:
    session, kept = world.begun()
    content = world.device.complete(session, kept, identity_key=key)
    assert world.complete(content).status == 400


def bad_proof(world: World, session: str, kept: KeptSession) -> dict[str, Any]:
    return world.device.complete(session, replace(kept, credential=bytes(32)))


def no_proof(world: World, session: str, kept: KeptSession) -> dict[str, Any]:
    return world.device.complete(session, kept, proof=None)


def other_csr(world: World, session: str, kept: KeptSession) -> dict[str, Any]:
    return world.device.complete(session, kept, csr=csr_for(new_key()))


def other_nonce(world: World, session: str, kept: KeptSession) -> dict[str, Any]:
    content = world.device.complete(session, kept)
    return content | {"evidence": world.device.paper.evidence(bytes(32))}


def other_agreement(world: World, session: str, kept: KeptSession) -> dict[str, Any]:
    return world.device.complete(session, kept, agreement_key=jwk_from_point(point(new_key())))


def other_attestation(world: World, session: str, kept: KeptSession) -> dict[str, Any]:
    content = world.device.complete(session, kept)
    other = PaperTpm(identity=world.device.paper.identity, agreement=world.device.paper.agreement)
    return content | {"evidence": other.evidence(kept.nonce)}


def software_evidence(world: World, session: str, kept: KeptSession) -> dict[str, Any]:
    content = world.device.complete(session, kept)
    return content | {"evidence": world.device.paper.software_evidence(kept.nonce)}


def no_evidence(world: World, session: str, kept: KeptSession) -> dict[str, Any]:
    return world.device.complete(session, kept, evidence={})


FORGERIES = [bad_proof, no_proof, other_csr, other_nonce, other_agreement, other_attestation, software_evidence, no_evidence]


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda forgery: forgery.__name__)
def test_what_the_hardware_did_not_say_makes_no_agent(world: World, forgery: Any) -> None:
    session, kept = world.begun()
    content = forgery(world, session, kept)
    world.refused(world.complete(content), content["request_id"], RefusalCode.ATTESTATION_FAILED)
    assert not world.store.activated
    assert world.store.records[-1] == ("address 192.0.2.1", "provision.complete", "attestation_failed")


def test_another_identity_key_is_not_certified(world: World) -> None:
    session, kept = world.begun()
    other = new_key()
    jwk = jwk_from_point(point(other))
    content = world.device.complete(session, kept, identity_key=jwk)
    answer = world.complete(content, key=other, kid=thumbprint(jwk))
    world.refused(answer, content["request_id"], RefusalCode.ATTESTATION_FAILED)


@pytest.mark.parametrize("csr", ["rubbish", csr_for(ec.generate_private_key(ec.SECP384R1()))], ids=["rubbish", "P-384"])
def test_a_certificate_request_must_be_one(csr: str) -> None:
    world = World("software")
    session, kept = world.begun()
    content = world.device.complete(session, kept, csr=csr)
    world.refused(world.complete(content), content["request_id"], RefusalCode.BAD_REQUEST)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"v": 2}, RefusalCode.UNSUPPORTED_VERSION),
        ({"extra": 1}, RefusalCode.BAD_REQUEST),
        ({"agent_id": "no spaces"}, RefusalCode.BAD_REQUEST),
        ({"proof": "AAAA"}, RefusalCode.BAD_REQUEST),
    ],
    ids=str,
)
def test_a_second_step_of_another_form_is_refused(change: dict[str, Any], code: RefusalCode) -> None:
    world = World("software")
    session, kept = world.begun()
    content = world.device.complete(session, kept, **change)
    world.refused(world.complete(content), content["request_id"], code)
