"""Provisions devices: checks the enrollment token and the hardware's proof, then makes the device an agent.

Text in, response out; `server.api.app` speaks HTTP. There are two steps, and a device may repeat each. The first one
grants nothing; the second one grants nothing before every check has passed.
"""

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from cryptography import x509
from sqlalchemy.exc import SQLAlchemyError

from contracts.enrollment.enrollment import COMPLETE_TYPE, NOBODY, Begin, Begun, Claim, Complete, Completed, proof_input
from contracts.exchange import EXCHANGE_VERSION, REQUEST_ID, Refusal, RefusalCode, Reply, convert
from contracts.jose import MalformedToken, b64decode, b64encode, jwk_from_point, point_from_jwk, thumbprint
from server.agents.activation import Activation, ProvenDevice
from server.agents.enrollment_tokens import Attempt, EnrollmentTokens
from server.base.limits import FAILED_CLAIM_RATE, address_key, buckets
from server.base.refused import RequestRefused
from server.exchange.requests import NotAuthentic, NotReadable, open_signed, parse_signed
from server.keys.keyring import Keyring
from server.registry.database import Database
from server.web.responses import DATABASE_DOWN, PASSING, STATUS_OF, Response, error

from .attestation import AttestationError, read_evidence
from .credential import make_credential
from .endorsement import hardware_id, verify_ek_certificate
from .refusals import RecordedRefusals

Level = Literal["attested", "tpm-unattested", "software"]
LEVELS: tuple[Level, ...] = ("attested", "tpm-unattested", "software")
"""How sure the server is of a device's hardware, the surest first."""
NONCE_BYTES = 32
CREDENTIAL_BYTES = 32


@dataclass(frozen=True, slots=True)
class Policy:
    """Which devices may become agents.

    Attributes:
        accept: the levels that may.
        roots: TPM manufacturers' CAs that the operator trusts; without any, no device is `attested`.
    """

    accept: frozenset[Level]
    roots: Sequence[x509.Certificate] = ()


@dataclass(frozen=True, slots=True)
class _Asked:
    """A step that a device has asked for, for the audit. What the device says of itself is not proved."""

    event: str
    request_id: str
    address: str
    hw_id: str = ""
    agent_id: str = ""

    def fields(self, unrecorded: int) -> dict[str, Any]:
        said = {"hardware": self.hw_id[:16], "agent": self.agent_id[:64], "unrecorded": unrecorded}
        return {name: value for name, value in said.items() if value}


class Enrollment:
    """The two steps of provisioning.

    Args:
        database: the registry's.
        keyring: decrypts enrollment tokens and signs replies.
        tokens: enrollment tokens, and attempts between the steps.
        activation: makes agents.
        policy: which devices may become agents.
        random: returns this many random bytes.
        steady: seconds of a clock that never goes back, for the rate limit of refused attempts.
    """

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        tokens: EnrollmentTokens,
        activation: Activation,
        policy: Policy,
        random: Callable[[int], bytes],
        steady: Callable[[], float],
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._tokens = tokens
        self._activation = activation
        self._policy = policy
        self._random = random
        self._steady = steady
        self._refused = buckets(FAILED_CLAIM_RATE)
        self._recorded = RecordedRefusals(steady)

    def begin(self, body: dict[str, Any], address: str, now: int) -> Response:
        """The first step.

        Args:
            body: the JSON object of `Begin`; its `request_id` has the right form.
            address: of the caller.
            now: seconds since 1970 UTC.
        """
        asked = _Asked("provision.begin", body["request_id"], address, str(body.get("hw_id", "")))
        return self._answer(asked, now, lambda: self._begin(body, now))

    def complete(self, text: str, address: str, now: int) -> Response:
        """The second step.

        Args:
            text: the JWS around a `Complete`.
            address: of the caller.
            now: seconds since 1970 UTC.
        """
        try:
            content = _open_complete(text)
        except NotReadable as problem:
            return error(400, RefusalCode.BAD_REQUEST, f"malformed request: {problem}")
        except NotAuthentic as problem:
            return error(403, RefusalCode.BAD_SIGNATURE, f"the request is not authentic: {problem}")
        asked = _Asked("provision.complete", content["request_id"], address, agent_id=str(content.get("agent_id") or ""))
        return self._answer(asked, now, lambda: self._complete(content, now))

    def _answer(self, asked: _Asked, now: int, step: Callable[[], Reply]) -> Response:
        """The signed reply of a step. A refusal is recorded or counted, and slows its address down."""
        key = address_key(asked.address)
        wait = self._refused.wait(key, self._steady())
        if wait:
            return error(429, RefusalCode.RATE_LIMITED, f"too many refused attempts; try again in {wait} s", wait)
        try:
            try:
                return Response(200, self._keyring.sign_reply(step()))
            except RequestRefused as refused:
                if refused.code not in PASSING:
                    self._refused.take(key, self._steady())
                unrecorded = self._recorded.take(asked.address)
                if unrecorded is not None:
                    with self._database.write() as session:
                        self._tokens.record_refusal(session, asked.address, asked.event, refused, now, asked.fields(unrecorded))
                return self._refusal(asked.request_id, refused, now)
        except SQLAlchemyError:
            return DATABASE_DOWN

    def _refusal(self, request_id: str, refused: RequestRefused, now: int) -> Response:
        refusal = Refusal(
            agent_id=NOBODY,
            request_id=request_id,
            issued_at=now,
            code=refused.code,
            text=refused.text[:500],
            retry_after_s=refused.retry_after_s,
        )
        signed = self._keyring.sign_reply(refusal)
        return Response(STATUS_OF[refused.code], signed, refused.code, refused.text, refused.retry_after_s)

    # The steps

    def _begin(self, body: dict[str, Any], now: int) -> Reply:
        begin: Begin = _converted(body, Begin, "request")
        attestation = _bytes(begin.attestation, "attestation")
        token = self._open_token(begin, attestation)
        self._check_level(begin, now)
        nonce, attempt_id = self._random(NONCE_BYTES), self._random(16).hex()
        credential = blob = secret = None
        if begin.backend == "tpm":
            credential = self._random(CREDENTIAL_BYTES)
            blob, secret = _make_credential(begin, attestation, credential, self._random)
        with self._database.write() as session:
            token_id = self._tokens.use(session, token, begin.hw_id, now)
            self._tokens.start_attempt(session, attempt_id, token_id, msgspec.json.encode(begin), nonce, credential, now)
        return Begun(
            agent_id=NOBODY,
            request_id=begin.request_id,
            issued_at=now,
            session=attempt_id,
            nonce=b64encode(nonce),
            credential_blob=None if blob is None else b64encode(blob),
            encrypted_secret=None if secret is None else b64encode(secret),
        )

    def _complete(self, content: dict[str, Any], now: int) -> Reply:
        complete: Complete = _converted(content, Complete, "request")
        with self._database.read() as session:
            attempt = self._tokens.attempt(session, complete.session, now)
        begin = msgspec.json.decode(attempt.begin, type=Begin)
        level = self._check_level(begin, now)
        _check_proof(complete, begin, attempt)
        device = ProvenDevice(
            hw_id=begin.hw_id,
            backend=begin.backend,
            level=level,
            identity_key=complete.identity_key,
            agreement_key=complete.agreement_key,
            attestation_key=_check_keys(complete, begin, attempt.nonce),
            csr_pem=complete.csr,
            agent_id=complete.agent_id,
        )
        with self._database.write() as session:
            activated = self._activation.activate(session, attempt.token_id, device, now)
        return Completed(
            agent_id=activated.agent_id,
            request_id=complete.request_id,
            issued_at=now,
            serial=activated.serial,
            attestation=level,
            certificates=tuple(activated.certificates),
            key_set=self._keyring.key_set(),
        )

    # The checks

    def _open_token(self, begin: Begin, attestation: bytes) -> str:
        """Decrypts the enrollment token and checks that it was encrypted for this device."""
        try:
            claim = msgspec.json.decode(self._keyring.open_enrollment_token(begin.claim), type=Claim)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise RequestRefused(
                RefusalCode.CLAIM_REFUSED, "the content of the encrypted enrollment token is malformed"
            ) from None
        if claim.hw_id != begin.hw_id or claim.attestation != hashlib.sha256(attestation).hexdigest():
            raise RequestRefused(
                RefusalCode.CLAIM_REFUSED, "the enrollment token was encrypted for another device or attestation key"
            )
        return claim.claim

    def _check_level(self, begin: Begin, now: int) -> Level:
        level = self._level(begin, now)
        if level not in self._policy.accept:
            raise RequestRefused(RefusalCode.ATTESTATION_FAILED, f"this server does not accept {level} devices")
        return level

    def _level(self, begin: Begin, now: int) -> Level:
        if begin.backend == "software":
            if begin.endorsement_public is not None or begin.endorsement_certificate is not None:
                raise RequestRefused(
                    RefusalCode.BAD_REQUEST, "a device with the software backend must not send an endorsement key"
                )
            return "software"
        public = _bytes(begin.endorsement_public or "", "endorsement_public")
        try:
            if hardware_id(public) != begin.hw_id:
                raise RequestRefused(RefusalCode.ATTESTATION_FAILED, "hw_id is not the SHA-256 of endorsement_public")
        except AttestationError as problem:
            raise _failed(problem) from None
        if begin.endorsement_certificate is None or not self._policy.roots:
            return "tpm-unattested"
        try:
            certificate = _bytes(begin.endorsement_certificate, "endorsement_certificate")
            verify_ek_certificate(certificate, public, self._policy.roots, datetime.fromtimestamp(now, UTC))
        except AttestationError:
            return "tpm-unattested"
        return "attested"


def _open_complete(text: str) -> dict[str, Any]:
    """The content of a second step, signed by the identity key that it contains."""
    header, content = parse_signed(text)
    key = content.get("identity_key")
    try:
        point_from_jwk(key)  # type: ignore[arg-type]
    except (MalformedToken, AttributeError):
        raise NotReadable("identity_key must be a public P-256 JWK") from None
    assert isinstance(key, dict)
    if header["kid"] != thumbprint(key):
        raise NotReadable("its kid must be the thumbprint of identity_key")
    request_id = content.get("request_id")
    if not isinstance(request_id, str) or not REQUEST_ID.fullmatch(request_id):
        raise NotReadable("request_id must be 32 characters 0-9 and a-f")
    return open_signed(text, COMPLETE_TYPE, header["kid"], key)


def _converted(content: dict[str, Any], kind: Any, what: str) -> Any:
    if content.get("v") != EXCHANGE_VERSION or isinstance(content["v"], bool):
        raise RequestRefused(
            RefusalCode.UNSUPPORTED_VERSION, f"this server speaks version {EXCHANGE_VERSION} of the protocol only"
        )
    try:
        return convert(content, kind, what)
    except MalformedToken as problem:
        raise RequestRefused(RefusalCode.BAD_REQUEST, str(problem)) from None


def _bytes(text: str, name: str) -> bytes:
    try:
        return b64decode(text)
    except MalformedToken:
        raise RequestRefused(RefusalCode.BAD_REQUEST, f"{name} must be base64url") from None


def _failed(problem: AttestationError) -> RequestRefused:
    return RequestRefused(RefusalCode.ATTESTATION_FAILED, str(problem)[:500])


def _make_credential(
    begin: Begin, attestation: bytes, credential: bytes, random: Callable[[int], bytes]
) -> tuple[bytes, bytes]:
    endorsement = _bytes(begin.endorsement_public or "", "endorsement_public")
    try:
        return make_credential(endorsement, attestation, credential, random)
    except AttestationError as problem:
        raise _failed(problem) from None


def _check_proof(complete: Complete, begin: Begin, attempt: Attempt) -> None:
    """Checks that the endorsement key's TPM holds the attestation key: no other TPM can decrypt the credential."""
    if begin.backend == "software":
        if complete.proof is not None:
            raise RequestRefused(RefusalCode.BAD_REQUEST, "a device with the software backend must not send a proof")
        return
    if attempt.credential is None or complete.proof is None:
        raise RequestRefused(RefusalCode.ATTESTATION_FAILED, "the proof is missing: the TPM must activate the credential")
    wanted = hmac.digest(attempt.credential, proof_input(complete.session, attempt.nonce, complete.csr), "sha256")
    if not hmac.compare_digest(_bytes(complete.proof, "proof"), wanted):
        raise RequestRefused(RefusalCode.ATTESTATION_FAILED, "the proof is wrong: the TPM did not decrypt the credential")


def _check_keys(complete: Complete, begin: Begin, nonce: bytes) -> dict[str, str]:
    """Checks that the first step's attestation key has certified the second step's keys; returns its JWK."""
    if complete.evidence.get("attestation") != begin.attestation:
        raise RequestRefused(
            RefusalCode.ATTESTATION_FAILED, "the evidence is from another attestation key than in the first step"
        )
    try:
        keys = read_evidence(complete.evidence, nonce, begin.backend)
    except AttestationError as problem:
        raise _failed(problem) from None
    if complete.identity_key != jwk_from_point(keys.identity) or complete.agreement_key != jwk_from_point(keys.agreement):
        raise RequestRefused(
            RefusalCode.ATTESTATION_FAILED,
            "identity_key and agreement_key are not the keys that the attestation key has certified",
        )
    return jwk_from_point(keys.attestation)
