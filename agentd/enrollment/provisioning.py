"""Makes an agent of a device: claim, proof of the hardware, certificate, first store. May be repeated until it has succeeded.

Nothing that the server says counts before a key set stands on the pinned root. The device's keys are made before the first
question and are the same at each attempt, so that a lost reply costs a repetition and no second serial number.
"""

import hashlib
import hmac
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

import contracts.evidence as wire
from agentd.base.clock import Clock
from agentd.base.config import Config
from agentd.base.identity import write_agent_id
from agentd.licenses.validator import EngineRefused
from agentd.secrets.installer import SECTION_BINDING, SECTION_HARDWARE, SECTION_TLS, SECTION_TRUST
from agentd.uplink import server_record as bindings
from agentd.uplink import tlskey
from agentd.uplink.certificates import BLOB_NAME
from agentd.uplink.client import API, NotTheServer, no_contact
from agentd.uplink.linkclient import LinkClient
from agentd.uplink.server_record import Binding
from agentd.uplink.tlskey import BadCertificate, StoredKey, StoredKeys, check_certificate
from agentd.uplink.transport import Carrier
from agentd.wiring import make_backend, make_store
from contracts.claimseal import encrypt_claim
from contracts.enrollment import COMPLETE_TYPE, NOBODY, Begin, Begun, Claim, Complete, Completed, proof_input
from contracts.exchange import Reply, signing_input, verify_reply, with_signature
from contracts.jose import (
    BadSignature,
    MalformedToken,
    b64decode,
    b64encode,
    jwk_from_point,
    parse_json_object,
    thumbprint,
)
from contracts.keyset import SignedKeySet, verify_key_set
from contracts.licensetoken import WrongAudience
from contracts.trust import Trust
from hwsec.backend import Backend, TpmEvidence
from hwsec.errors import AlreadyEnrolled, StoreMissing
from hwsec.files import no_trace
from hwsec.owner import HardwareOwner
from hwsec.sealedblob import seal_blob
from hwsec.secretmem import wipe_bytes
from hwsec.store import Contents
from hwsec.vault import Vault

from .recovery import check_fallback

log = logging.getLogger(__name__)

HARDWARE_DEADLINE_S = 60.0

T = TypeVar("T")
R = TypeVar("R", bound=Reply)


class ProvisioningRefused(EngineRefused):
    """The device is not made an agent; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the administrator asks for.

    Attributes:
        url: of the server.
        root: pin of its offline root.
        claim: the claim token.
    """

    url: str
    root: str
    claim: str


class Provisioner:
    """Provisions one device.

    Args:
        config: of the agent, which need not have an id.
        owner: the hardware's thread.
        link: how the server is reached.
        clock: for certificates.
        random: gives that many random bytes.
        trace: told each step that is done; a test stops it there.
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

    async def provision(self, wish: Wish) -> Binding:
        """Makes this device an agent of that server.

        Raises:
            ProvisioningRefused: it is one already, or the server's words do not fit together.
            Refused: the server says no.
            NoContact: the server was not reached; the same command may be repeated.
            HwsecError: the hardware or the disk does not work.
        """
        vault = Vault()
        backend = make_backend(self._config, vault)
        try:
            await self._on_hardware(lambda: self._prepare(backend, vault))
            self._trace("prepared")
            carrier = Carrier(self._link, "enrollment", wish.url, lambda: (wish.root,), self._clock)
            async with carrier.open():
                return await self._converse(carrier, backend, vault, wish)
        finally:
            await self._on_hardware(backend.close)
            vault.close()

    async def _on_hardware(self, work: Callable[[], T]) -> T:
        return await self._owner.run(work, HARDWARE_DEADLINE_S)

    def _prepare(self, backend: Backend, vault: Vault) -> None:
        # threat-model T17: an agent of a TPM becomes one of the software backend only where the policy says so.
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
                "this device has been an agent, and its store is gone; 'license-agent recover show' says what can be done"
            ) from None
        raise ProvisioningRefused("this device is an agent already; 'license-agent recover reinitialize' gives that up")

    async def _converse(self, carrier: Carrier, backend: Backend, vault: Vault, wish: Wish) -> Binding:
        first = await self._key_set(carrier, wish.root)
        trust = first.content.trust()
        begin = await self._on_hardware(lambda: self._begin(backend, wish, first))
        begun = await self._ask(carrier, "provision", msgspec.json.encode(begin), Begun, begin.request_id, NOBODY, trust)
        self._trace("begun")
        scalar, csr = tlskey.new_key(self._config.agent.id, vault)
        complete, signed = await self._on_hardware(lambda: self._complete(backend, begun, csr))
        body = json.dumps({"request": signed}).encode()
        done = await self._ask(carrier, "provision/complete", body, Completed, complete.request_id, None, trust)
        self._trace("completed")
        key_set = self._checked(done, csr, first, wish.root)
        binding = Binding(
            agent_id=done.agent_id,
            serial=done.serial,
            url=wish.url,
            pins=(wish.root,),
            roots=key_set.content.roots,
            key_set=key_set.content.number,
            key_set_expires=key_set.content.expires,
            attestation=done.attestation,
        )

        def keep() -> None:
            with backend.kek() as kek, vault.open(scalar) as key:
                sealed = seal_blob(kek, BLOB_NAME, key.view)
            tls = StoredKeys(current=StoredKey(certificates=done.certificates, sealed=sealed))
            self._keep(backend, vault, binding, key_set, tls)

        await self._on_hardware(keep)
        self._trace("kept")
        return binding

    async def _key_set(self, carrier: Carrier, root: str) -> SignedKeySet:
        answer = await carrier("GET", f"{API}/key-set", b"")
        if answer.status != 200:
            raise no_contact(answer)
        try:
            return verify_key_set(answer.body.decode("ascii", "replace"), (root,))
        except (MalformedToken, BadSignature) as error:
            raise NotTheServer(f"what the server shows does not stand on the root with that pin: {error}") from None

    async def _ask(
        self, carrier: Carrier, path: str, body: bytes, kind: type[R], request_id: str, agent_id: str | None, trust: Trust
    ) -> R:
        answer = await carrier("POST", f"{API}/{path}", body)
        try:
            text = parse_json_object(answer.body, "answer").get("reply")
        except MalformedToken:
            text = None
        if not isinstance(text, str):
            raise no_contact(answer)
        try:
            return verify_reply(text, kind, agent_id, request_id, trust)
        except (MalformedToken, BadSignature, WrongAudience) as error:
            raise NotTheServer(f"the answer is not the server's: {error}") from None

    # What is said

    def _begin(self, backend: Backend, wish: Wish, key_set: SignedKeySet) -> Begin:
        endorsement = backend.endorsement()
        if endorsement is None and backend.name == "tpm":
            raise ProvisioningRefused(
                "the TPM shows no endorsement key: its endorsement hierarchy has an auth value that this agent does not know"
            )
        attestation = _attestation(backend)
        hw_id = backend.measure_hardware_id()
        if hw_id is None:
            raise ProvisioningRefused("this machine has no hardware id: no TPM, and no /etc/machine-id")
        claim = Claim(claim=wish.claim, hw_id=hw_id, attestation=hashlib.sha256(attestation).hexdigest())
        sealed = encrypt_claim(
            claim, key_set.content.enrollment_keys[0], ec.generate_private_key(ec.SECP256R1()), self._random(12)
        )
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

    def _checked(self, done: Completed, csr: str, first: SignedKeySet, root: str) -> SignedKeySet:
        wanted = self._config.agent.id
        if wanted and done.agent_id != wanted:
            raise ProvisioningRefused(
                f"the server calls this agent {done.agent_id!r}, its configuration {wanted!r}: they must agree; mend [agent] id"
            )
        try:
            check_certificate(done.certificates[0], csr)
            found = verify_key_set(done.key_set, (*first.content.roots, root), above=first.content.number - 1)
        except (BadCertificate, MalformedToken, BadSignature) as error:
            raise NotTheServer(f"the server's answer does not fit: {error}") from None
        return found

    # What is kept

    def _keep(self, backend: Backend, vault: Vault, binding: Binding, key_set: SignedKeySet, tls: StoredKeys) -> None:
        config = self._config.with_agent_id(binding.agent_id)
        hardware_id = backend.measure_hardware_id() or ""
        write_agent_id(config, binding.agent_id)
        make_store(config, backend, vault).commit(
            Contents(
                (),
                {
                    SECTION_TRUST: key_set.content.trust_file(),
                    SECTION_BINDING: bindings.encode(binding),
                    SECTION_HARDWARE: hardware_id.encode("ascii"),
                    SECTION_TLS: tlskey.encode(tls),
                },
            )
        )


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
        raise NotTheServer(f"the server's challenge is not of our form: {error}") from None
