"""Makes agents of devices: a claim, the hardware's proof, then certificate and serial number. HTTP is `app.py`'s.

Two steps, each of which a device may repeat. Nothing is granted in the first one; in the second one, nothing before all holds.
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

from contracts.enrollment import COMPLETE_TYPE, NOBODY, Begin, Begun, Claim, Complete, Completed, proof_input
from contracts.exchange import EXCHANGE_VERSION, REQUEST_ID, Refusal, RefusalCode, Reply, convert
from contracts.jose import MalformedToken, b64decode, b64encode, jwk_from_point, point_from_jwk, thumbprint
from server.base.limits import FAILED_CLAIM_RATE, address_key, buckets
from server.base.refused import RequestRefused
from server.exchange.ports import ActivationStore, AuditLog, ClaimStore, EnrollmentKeys, Session
from server.exchange.requests import NotAuthentic, NotReadable, open_signed, parse_signed
from server.exchange.service import DATABASE_RETRY_S
from server.web.responses import STATUS_OF, Response, error

from .attestation import AttestationError, read_evidence
from .credential import make_credential
from .endorsement import hardware_id, verify_ek_certificate

Level = Literal["attested", "tpm-unattested", "software"]
LEVELS: tuple[Level, ...] = ("attested", "tpm-unattested", "software")
"""How sure the server is of a device's hardware, the surest first."""
NONCE_BYTES = 32
CREDENTIAL_BYTES = 32


@dataclass(frozen=True, slots=True)
class Policy:
    """Which devices are accepted.

    Attributes:
        accept: levels that may become agents.
        roots: CAs of TPM manufacturers that count; without any, no device is `attested`.
    """

    accept: frozenset[Level]
    roots: Sequence[x509.Certificate] = ()


class Enrollment:
    """The two steps.

    Args:
        keys: opens claims, signs replies.
        claims: claims and attempts.
        agents: makes agents, and records it.
        audit: where refusals are recorded.
        policy: which devices are accepted.
        random: gives that many random bytes.
        steady: seconds of a clock that never goes back; for the limit of refused claims.
    """

    def __init__(
        self,
        keys: EnrollmentKeys,
        claims: ClaimStore,
        agents: ActivationStore,
        audit: AuditLog,
        policy: Policy,
        random: Callable[[int], bytes],
        steady: Callable[[], float],
    ) -> None:
        self._keys = keys
        self._claims = claims
        self._agents = agents
        self._audit = audit
        self._policy = policy
        self._random = random
        self._steady = steady
        self._refused = buckets(FAILED_CLAIM_RATE)

    def begin(self, body: dict[str, Any], address: str, now: int) -> Response:
        """The first step.

        Args:
            body: the JSON object of `Begin`; its `request_id` has the right form.
            address: where it comes from.
            now: seconds since 1970 UTC.
        """
        return self._guarded("provision.begin", body["request_id"], address, now, lambda: self._begin(body, now))

    def complete(self, text: str, address: str, now: int) -> Response:
        """The second step.

        Args:
            text: the JWS around a `Complete`.
            address: where it comes from.
            now: seconds since 1970 UTC.
        """
        try:
            content = _open_complete(text)
        except NotReadable as problem:
            return error(400, RefusalCode.BAD_REQUEST, f"the request is not of our form: {problem}")
        except NotAuthentic as problem:
            return error(403, RefusalCode.BAD_SIGNATURE, f"the request is not authentic: {problem}")
        return self._guarded("provision.complete", content["request_id"], address, now, lambda: self._complete(content, now))

    def _guarded(self, event: str, request_id: str, address: str, now: int, step: Callable[[], Reply]) -> Response:
        key = address_key(address)
        wait = self._refused.wait(key, self._steady())
        if wait:
            return error(429, RefusalCode.RATE_LIMITED, f"too many refused attempts; again in {wait} s", wait)
        try:
            try:
                return Response(200, self._keys.sign_reply(step()))
            except RequestRefused as refused:
                if refused.code in (RefusalCode.CLAIM_REFUSED, RefusalCode.ATTESTATION_FAILED):
                    self._refused.take(key, self._steady())
                self._audit.record(f"address {address}"[:128], event, refused.code.value, now, reason=refused.text[:200])
                return self._refusal(request_id, refused, now)
        except SQLAlchemyError:
            return error(503, RefusalCode.UNAVAILABLE, "the server's database does not answer", DATABASE_RETRY_S)

    def _refusal(self, request_id: str, refused: RequestRefused, now: int) -> Response:
        refusal = Refusal(
            agent_id=NOBODY,
            request_id=request_id,
            issued_at=now,
            code=refused.code,
            text=refused.text[:500],
            retry_after_s=refused.retry_after_s,
        )
        signed = self._keys.sign_reply(refusal)
        return Response(STATUS_OF[refused.code], signed, refused.code, refused.text, refused.retry_after_s)

    # The steps

    def _begin(self, body: dict[str, Any], now: int) -> Reply:
        begin: Begin = _converted(body, Begin, "request")
        attestation = _bytes(begin.attestation, "attestation")
        claim = self._open_claim(begin, attestation)
        self._check_level(begin, now)
        nonce, session = self._random(NONCE_BYTES), self._random(16).hex()
        credential = blob = secret = None
        if begin.backend == "tpm":
            credential = self._random(CREDENTIAL_BYTES)
            blob, secret = _make_credential(begin, attestation, credential, self._random)
        claim_id = self._claims.use(claim, begin.hw_id, now)
        self._claims.start_attempt(session, claim_id, msgspec.json.encode(begin), nonce, credential, now)
        return Begun(
            agent_id=NOBODY,
            request_id=begin.request_id,
            issued_at=now,
            session=session,
            nonce=b64encode(nonce),
            credential_blob=None if blob is None else b64encode(blob),
            encrypted_secret=None if secret is None else b64encode(secret),
        )

    def _complete(self, content: dict[str, Any], now: int) -> Reply:
        complete: Complete = _converted(content, Complete, "request")
        session = self._claims.attempt(complete.session, now)
        begin = msgspec.json.decode(session.begin, type=Begin)
        level = self._check_level(begin, now)
        _check_proof(complete, begin, session)
        attestation_key = _check_keys(complete, begin, session.nonce)
        activated = self._agents.activate(
            session.claim_id,
            begin.hw_id,
            begin.backend,
            level,
            complete.identity_key,
            complete.agreement_key,
            attestation_key,
            complete.csr,
            complete.agent_id,
            now,
        )
        return Completed(
            agent_id=activated.agent_id,
            request_id=complete.request_id,
            issued_at=now,
            serial=activated.serial,
            attestation=level,
            certificates=tuple(activated.certificates),
            key_set=self._keys.key_set(),
        )

    # The checks

    def _open_claim(self, begin: Begin, attestation: bytes) -> str:
        """The claim's text, once it is shown to be meant for this device."""
        try:
            claim = msgspec.json.decode(self._keys.open_claim(begin.claim), type=Claim)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise RequestRefused(RefusalCode.CLAIM_REFUSED, "what is encrypted in the claim is not of our form") from None
        if claim.hw_id != begin.hw_id or claim.attestation != hashlib.sha256(attestation).hexdigest():
            raise RequestRefused(RefusalCode.CLAIM_REFUSED, "the claim is for another device, or for another attestation key")
        return claim.claim

    def _check_level(self, begin: Begin, now: int) -> Level:
        level = self._level(begin, now)
        if level not in self._policy.accept:
            raise RequestRefused(RefusalCode.ATTESTATION_FAILED, f"this server does not accept devices that are {level}")
        return level

    def _level(self, begin: Begin, now: int) -> Level:
        if begin.backend == "software":
            if begin.endorsement_public is not None or begin.endorsement_certificate is not None:
                raise RequestRefused(RefusalCode.BAD_REQUEST, "a device with the software backend has no endorsement key")
            return "software"
        public = _bytes(begin.endorsement_public or "", "endorsement_public")
        try:
            if hardware_id(public) != begin.hw_id:
                raise RequestRefused(RefusalCode.ATTESTATION_FAILED, "hw_id is not the hash of the endorsement key")
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
    """The content, signed by the key that stands in it: who holds that key has said all of this."""
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
        raise RequestRefused(RefusalCode.UNSUPPORTED_VERSION, f"this server speaks version {EXCHANGE_VERSION} only")
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


def _check_proof(complete: Complete, begin: Begin, session: Session) -> None:
    """The TPM with that endorsement key has that attestation key: nobody else could open the credential."""
    if begin.backend == "software":
        if complete.proof is not None:
            raise RequestRefused(RefusalCode.BAD_REQUEST, "a device with the software backend has no proof")
        return
    if session.credential is None or complete.proof is None:
        raise RequestRefused(RefusalCode.ATTESTATION_FAILED, "the proof by the activated credential is missing")
    wanted = hmac.digest(session.credential, proof_input(complete.session, session.nonce, complete.csr), "sha256")
    if not hmac.compare_digest(_bytes(complete.proof, "proof"), wanted):
        raise RequestRefused(RefusalCode.ATTESTATION_FAILED, "the proof does not fit: the credential was opened by nobody")


def _check_keys(complete: Complete, begin: Begin, nonce: bytes) -> dict[str, str]:
    """The attestation key of the first step has certified the keys of the second one. Returns its JWK."""
    if complete.evidence.get("attestation") != begin.attestation:
        raise RequestRefused(RefusalCode.ATTESTATION_FAILED, "the evidence is of another attestation key than the first step")
    try:
        keys = read_evidence(complete.evidence, nonce, begin.backend)
    except AttestationError as problem:
        raise _failed(problem) from None
    if complete.identity_key != jwk_from_point(keys.identity) or complete.agreement_key != jwk_from_point(keys.agreement):
        raise RequestRefused(RefusalCode.ATTESTATION_FAILED, "the keys are not those that the attestation key has certified")
    return jwk_from_point(keys.attestation)
