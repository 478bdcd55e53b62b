"""Makes a virtual machine an agent, as one with the software backend is: by an enrollment token, over the wire."""

import hashlib
import os
from typing import TypeVar

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from contracts.enrollment.claimseal import encrypt_claim
from contracts.enrollment.enrollment import COMPLETE_TYPE, Begin, Begun, Claim, Complete, Completed
from contracts.exchange import signing_input, with_signature
from contracts.jose import b64decode, b64encode, thumbprint
from contracts.keyset import KeySet

from .machine import Machine, jwk_of, key_of, point_of, sign
from .wire import Answer, NoAnswer, Wire

T = TypeVar("T")


class NotEnrolled(Exception):
    """A machine did not become an agent; the text says which one and why."""


class _Refused(msgspec.Struct):
    text: str = ""


async def key_set(wire: Wire, machine: Machine) -> KeySet:
    """The server's keys, of a server whose certificate was verified. Raises NoAnswer."""
    async with wire.line(machine) as line:
        answer = await line.get("key-set")
    if answer.status != 200:
        raise NoAnswer(f"the server gives its key set with status {answer.status}")
    return msgspec.json.decode(b64decode(answer.body.decode("ascii").split(".")[1]), type=KeySet)


async def enroll(wire: Wire, keys: KeySet, machine: Machine, token: str) -> None:
    """Makes a machine an agent, and keeps its certificates.

    Args:
        wire: to the server.
        keys: the server's.
        machine: has no certificate yet.
        token: an enrollment token that nobody has used.

    Raises:
        NotEnrolled: the server refused it, or did not answer.
    """
    try:
        async with wire.line(machine) as line:
            attestation = key_of(machine.seed, machine.number, "attestation")
            begun = _reply(await line.post("provision", _begin(keys, machine, token, point_of(attestation))), Begun)
            complete = _complete(machine, begun, attestation)
            header = {"alg": "ES256", "typ": COMPLETE_TYPE, "kid": thumbprint(complete.identity_key)}
            signed = signing_input(header, complete)
            text = with_signature(signed, sign(machine.identity, signed))
            done = _reply(await line.post("provision/complete", {"request": text}), Completed)
    except NoAnswer as problem:
        raise NotEnrolled(f"machine {machine.agent_id}: {problem}") from None
    machine.certificates = "".join(done.certificates)
    machine.agent_id = done.agent_id


def _begin(keys: KeySet, machine: Machine, token: str, attestation: bytes) -> Begin:
    claim = Claim(claim=token, hw_id=machine.hw_id, attestation=hashlib.sha256(attestation).hexdigest())
    sealed = encrypt_claim(claim, keys.enrollment_keys[0], ec.generate_private_key(ec.SECP256R1()), os.urandom(12))
    return Begin(
        request_id=os.urandom(16).hex(),
        claim=sealed,
        hw_id=machine.hw_id,
        backend="software",
        attestation=b64encode(attestation),
    )


def _complete(machine: Machine, begun: Begun, attestation: ec.EllipticCurvePrivateKey) -> Complete:
    agreement = key_of(machine.seed, machine.number, "agreement")
    nonce, points = b64decode(begun.nonce), [point_of(key) for key in (attestation, machine.identity, agreement)]
    evidence = {
        "attestation": b64encode(points[0]), "identity": b64encode(points[1]), "agreement": b64encode(points[2]),
        "signature": b64encode(sign(attestation, b"LASE" + bytes([len(nonce)]) + nonce + points[1] + points[2])),
    }  # fmt: skip
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "license-agent")])
    tls = key_of(machine.seed, machine.number, "tls")
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(tls, hashes.SHA256())
    return Complete(
        request_id=os.urandom(16).hex(), session=begun.session, evidence=evidence, identity_key=jwk_of(machine.identity),
        agreement_key=jwk_of(agreement), csr=csr.public_bytes(Encoding.PEM).decode(), agent_id=machine.agent_id,
    )  # fmt: skip


def _reply(answer: Answer, kind: type[T]) -> T:
    """The signed reply's content. Raises NoAnswer for everything else."""
    body = answer.read()
    if not body.reply:
        raise NoAnswer(f"status {answer.status}: {body.error.text or answer.body[:200]!r}")
    content = b64decode(body.reply.split(".")[1])
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError:
        said = msgspec.json.decode(content, type=_Refused).text
        raise NoAnswer(f"status {answer.status}: {said or 'a reply of another kind'}") from None
