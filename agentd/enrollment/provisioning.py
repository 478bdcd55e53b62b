"""Provisions a device: enrollment token, proof of the hardware, certificate, first store. Can be repeated until it succeeds.

Nothing that the server says counts before the pinned root has signed its key set. The device's keys are made before the first
request and are the same at each attempt, so a lost reply costs a repetition and no second serial number.
"""

import hashlib
import hmac
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

import contracts.enrollment.evidence as wire
from agentd.base.clock.clock import Clock
from agentd.base.config.config import Config
from agentd.base.errors import Refused
from agentd.base.identity import check_fallback, write_agent_id
from agentd.secrets.open import make_backend, make_store
from agentd.secrets.record import AgentRecord, SealedTlsKey, SealedTlsKeys, ServerRecord
from agentd.uplink import tlskey
from agentd.uplink.certificates import BLOB_NAME
from agentd.uplink.linkclient import LinkClient
from agentd.uplink.replies import key_set_in, signed_reply
from agentd.uplink.tlskey import BadCertificate, check_certificate
from agentd.uplink.transport import API, LinkTransport, NotTheServer, Transport
from common.files import no_trace
from contracts.enrollment.claimseal import encrypt_claim
from contracts.enrollment.enrollment import COMPLETE_TYPE, NOBODY, Begin, Begun, Claim, Complete, Completed, proof_input
from contracts.exchange import signing_input, with_signature
from contracts.jose import (
    BadSignature,
    MalformedToken,
    b64decode,
    b64encode,
    jwk_from_point,
    thumbprint,
)
from contracts.keyset import SignedKeySet, verify_key_set
from hwsec.backend import NONCE_MAX, Backend, TpmEvidence
from hwsec.errors import AlreadyEnrolled, StoreMissing
from hwsec.owner import HardwareOwner
from hwsec.sealedblob import seal_blob
from hwsec.secretmem import wipe_bytes
from hwsec.store import Contents
from hwsec.vault import Vault, WrappedSecret

HARDWARE_DEADLINE_S = 60.0

T = TypeVar("T")


class ProvisioningRefused(Refused):
    """The device does not become an agent; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class ProvisioningOrder:
    """What the administrator asks for.

    Attributes:
        url: of the server.
        root: pin of its offline root.
        claim: the enrollment token.
    """

    url: str
    root: str
    claim: str


class Provisioner:
    """Provisions one device.

    Args:
        config: of the agent, which need not have an id.
        owner: the hardware's thread.
        link: reaches the server.
        random: gives that many random bytes.
        trace: called after each step; a test stops it there.
    """

    def __init__(
        self,
        config: Config,
        owner: HardwareOwner,
        link: LinkClient,
        clock: Clock,
        random: Callable[[int], bytes] = os.urandom,
        trace: Callable[[str], None] = no_trace,
    ) -> None:
        self._config = config
        self._owner = owner
        self._link = link
        self._clock = clock
        self._random = random
        self._trace = trace

    async def provision(self, order: ProvisioningOrder) -> ServerRecord:
        """Makes this device an agent of that server.

        Raises:
            ProvisioningRefused: it is one already, or the server's answers do not agree with each other.
            Refused: the server says no.
            NoContact: the server was not reached; the same command may be repeated.
            HwsecError: the hardware or the disk does not work.
        """
        vault = Vault()
        backend = make_backend(self._config, vault)
        try:
            await self._on_hardware(lambda: self._prepare(backend, vault))
            self._trace("prepared")
            transport = LinkTransport(self._link, "enrollment", order.url, lambda: (order.root,), self._clock)
            async with transport.open():
                return await self._converse(transport, backend, vault, order)
        finally:
            await self._on_hardware(backend.close)
            vault.close()

    async def _on_hardware(self, work: Callable[[], T]) -> T:
        return await self._owner.run(work, HARDWARE_DEADLINE_S)

    def _prepare(self, backend: Backend, vault: Vault) -> None:
        # threat-model T17: only the policy moves an agent from a TPM to the software backend.
        check_fallback(self._config)
        try:
            backend.create()
        except AlreadyEnrolled:
            backend.open()
        try:
            make_store(self._config, backend, vault).load()
        except StoreMissing:
            if backend.read_anchor()[0] is None:
                return
            raise ProvisioningRefused(
                "this device has been an agent and its store is missing; 'license-agent recover show' says what can be done"
            ) from None
        raise ProvisioningRefused("this device is an agent already; 'license-agent recover reinitialize' ends that")

    async def _converse(self, transport: Transport, backend: Backend, vault: Vault, order: ProvisioningOrder) -> ServerRecord:
        first = await self._key_set(transport, order.root)
        trust = first.content.trust()
        begin = await self._on_hardware(lambda: self._begin(backend, order, first))
        response = await transport("POST", f"{API}/provision", msgspec.json.encode(begin))
        begun = signed_reply(response, Begun, NOBODY, begin.request_id, trust, "provision")
        self._trace("begun")
        scalar, csr = tlskey.new_key(self._config.agent.id, vault)
        complete, signed = await self._on_hardware(lambda: self._complete(backend, begun, csr))
        body = json.dumps({"request": signed}).encode()
        response = await transport("POST", f"{API}/provision/complete", body)
        done = signed_reply(response, Completed, None, complete.request_id, trust, "provision/complete")
        self._trace("completed")
        key_set = self._checked(done, csr, scalar, first, order.root)
        server = ServerRecord(
            agent_id=done.agent_id,
            serial=done.serial,
            url=order.url,
            pins=(order.root,),
            roots=key_set.content.roots,
            key_set=key_set.content.number,
            key_set_expires=key_set.content.expires,
            attestation=done.attestation,
        )

        def keep() -> None:
            with backend.kek() as kek, vault.open(scalar) as key:
                sealed = seal_blob(kek, BLOB_NAME, key.view)
            tls = SealedTlsKeys(current=SealedTlsKey(certificates=done.certificates, sealed=sealed))
            self._keep(backend, vault, server, key_set, tls)

        await self._on_hardware(keep)
        self._trace("kept")
        return server

    async def _key_set(self, transport: Transport, root: str) -> SignedKeySet:
        text = key_set_in(await transport("GET", f"{API}/key-set", b""))
        try:
            return verify_key_set(text, (root,))
        except (MalformedToken, BadSignature) as error:
            raise NotTheServer(f"the root with that pin has not signed the server's key set: {error}") from None

    # Requests

    def _begin(self, backend: Backend, order: ProvisioningOrder, key_set: SignedKeySet) -> Begin:
        endorsement = backend.endorsement()
        if endorsement is None and backend.name == "tpm":
            raise ProvisioningRefused(
                "the TPM shows no endorsement key: its endorsement hierarchy has an auth value that this agent does not know"
            )
        attestation = _attestation(backend)
        hw_id = backend.measure_hardware_id()
        if hw_id is None:
            raise ProvisioningRefused("this machine has no hardware id: no TPM, and no /etc/machine-id")
        claim = Claim(claim=order.claim, hw_id=hw_id, attestation=hashlib.sha256(attestation).hexdigest())
        try:
            sealed = encrypt_claim(
                claim, key_set.content.enrollment_keys[0], ec.generate_private_key(ec.SECP256R1()), self._random(12)
            )
        except MalformedToken as error:
            raise NotTheServer(f"malformed response: the key set's enrollment key cannot be used: {error}") from None
        certificate = None if endorsement is None else endorsement.certificate
        return Begin(
            request_id=self._random(16).hex(),
            claim=sealed,
            hw_id=hw_id,
            backend="tpm" if endorsement is not None else "software",
            endorsement_public=None if endorsement is None else b64encode(endorsement.public),
            endorsement_certificate=None if certificate is None else b64encode(certificate),
            attestation=b64encode(attestation),
        )

    def _complete(self, backend: Backend, begun: Begun, csr: str) -> tuple[Complete, str]:
        nonce = _bytes(begun.nonce)
        if len(nonce) > NONCE_MAX:
            raise NotTheServer(
                f"malformed response: the server's nonce has {len(nonce)} bytes; at most {NONCE_MAX} can be certified"
            )
        proof = None
        if begun.credential_blob is not None and begun.encrypted_secret is not None:
            secret = backend.activate(_bytes(begun.credential_blob), _bytes(begun.encrypted_secret))
            proof = b64encode(hmac.digest(secret, proof_input(begun.session, nonce, csr), "sha256"))
            wipe_bytes(secret)
        identity = jwk_from_point(backend.identity_public())
        complete = Complete(
            request_id=self._random(16).hex(),
            session=begun.session,
            proof=proof,
            evidence=_evidence(backend, nonce),
            identity_key=identity,
            agreement_key=jwk_from_point(backend.agreement_public()),
            csr=csr,
            agent_id=self._config.agent.id or None,
        )
        signed = signing_input({"alg": "ES256", "typ": COMPLETE_TYPE, "kid": thumbprint(identity)}, complete)
        return complete, with_signature(signed, backend.sign(signed))

    def _checked(self, done: Completed, csr: str, scalar: WrappedSecret, first: SignedKeySet, root: str) -> SignedKeySet:
        wanted = self._config.agent.id
        if wanted and done.agent_id != wanted:
            raise ProvisioningRefused(
                f"the server calls this agent {done.agent_id!r}, its configuration {wanted!r}: they must agree; "
                "change or remove [agent] id"
            )
        try:
            check_certificate(done.certificates[0], csr)
            tlskey.client_key(done.certificates, scalar)
            found = verify_key_set(done.key_set, (*first.content.roots, root), above=first.content.number - 1)
        except (BadCertificate, MalformedToken, BadSignature) as error:
            raise NotTheServer(f"the server's answer does not match the request: {error}") from None
        return found

    # The store

    def _keep(self, backend: Backend, vault: Vault, server: ServerRecord, key_set: SignedKeySet, tls: SealedTlsKeys) -> None:
        config = self._config.with_agent_id(server.agent_id)
        hardware_id = backend.measure_hardware_id() or ""
        write_agent_id(config, server.agent_id)
        record = AgentRecord(key_set.content.trust_file(), hardware_id=hardware_id, server=server, tls=tls)
        make_store(config, backend, vault).commit(Contents((), record.sections()))


def _attestation(backend: Backend) -> bytes:
    found = backend.evidence(bytes(1))
    return found.attestation


def _evidence(backend: Backend, nonce: bytes) -> dict[str, Any]:
    found = backend.evidence(nonce)
    content: Any
    if isinstance(found, TpmEvidence):
        keys = [
            wire.CertifiedKey(public=b64encode(key.public), attest=b64encode(key.attest), signature=b64encode(key.signature))
            for key in (found.identity, found.agreement)
        ]
        content = wire.TpmEvidence(attestation=b64encode(found.attestation), identity=keys[0], agreement=keys[1])
    else:
        content = wire.SoftwareEvidence(
            attestation=b64encode(found.attestation),
            identity=b64encode(found.identity),
            agreement=b64encode(found.agreement),
            signature=b64encode(found.signature),
        )
    result: dict[str, Any] = msgspec.to_builtins(content)
    return result


def _bytes(text: str) -> bytes:
    try:
        return b64decode(text)
    except MalformedToken as error:
        raise NotTheServer(f"malformed response: the server's challenge cannot be read: {error}") from None
