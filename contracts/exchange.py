"""Declares the requests of agents and the replies of the license server, and verifies replies. Pure.

    request  JWS (ES256) by the agent's identity key   {"alg": "ES256", "typ": "agent-request+jwt", "kid": "<agent id>"}
    reply    JWS (ES256) by a rotation key of the server {"alg": "ES256", "typ": "server-reply+jwt", "kid": "<key id>"}

A request contains a challenge of the server, which bounds its age without the agent's clock, and a random id that the reply
echoes. A carrier can delay or drop messages, but can neither forge a reply nor replay an old one. The same request may be sent
again; it gets the same reply.
"""

import json
import re
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from common.plain import msgspec_text

from .claims import MAX_ID_CHARS, MAX_TIME
from .jose import MalformedToken, b64decode, b64encode, parse_header, parse_json_object, verify_es256
from .licensetoken import MAX_HEADER_CHARS, MAX_TOKEN_CHARS, MAX_VERSION, WrongAudience
from .trust import Trust

EXCHANGE_VERSION = 1
REQUEST_TYPE = "agent-request+jwt"
REPLY_TYPE = "server-reply+jwt"
MAX_REQUEST_CHARS = 64 * 1024
MAX_REPLY_CHARS = 1024 * 1024
MAX_LICENSES_PER_REQUEST = 32
MAX_REVOKED = 4096
KEY_CHECK_CHARS = 22
"""16 bytes in base64url: enough to find out whether both sides hold the same secret, and nothing about it."""

REQUEST_ID = re.compile(r"[0-9a-f]{32}")
"""Form of a request id: 16 random bytes in hex."""

AgentId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
RequestId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
Time = Annotated[int, Meta(ge=0, le=MAX_TIME)]
SecretVersion = Annotated[int, Meta(ge=0, le=MAX_VERSION)]
Number = Annotated[int, Meta(ge=0, le=2**53 - 1)]
KeyCheck = Annotated[str, Meta(pattern=rf"^[A-Za-z0-9_-]{{{KEY_CHECK_CHARS}}}\Z")]
LicenseId = Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARS)]
Token = Annotated[str, Meta(min_length=1, max_length=MAX_TOKEN_CHARS)]
Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Text = Annotated[str, Meta(max_length=500)]
Pem = Annotated[str, Meta(min_length=1, max_length=8192)]


class Cause(StrEnum):
    """Why an agent requests a rotation."""

    DUE = "due"
    FORCED = "forced"
    URGENT = "urgent"
    """The server demanded it."""


def _dashed(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


# Requests


class Request(msgspec.Struct, tag_field="purpose", tag=_dashed, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The members of every request.

    Attributes:
        v: version of the protocol.
        agent_id: the sender.
        request_id: new for each request; a request that is sent again keeps it.
        challenge: a recent one from the server.
        timestamp: the agent's clock. It may be wrong, and decides nothing.
    """

    v: Literal[1] = 1
    agent_id: AgentId
    request_id: RequestId
    challenge: Annotated[str, Meta(min_length=16, max_length=256)]
    timestamp: Time


class RotateSecret(Request, frozen=True):
    """Requests the agent's next secret.

    Attributes:
        current_secret_version: the newest version that the agent holds; 0 before the first.
        key_check: of that secret; None before the first.
        highest_version: the highest version that it ever accepted: a server restored from an old backup skips ahead of it.
        serial: the agent's serial number, for the same reason.
        cause: why it asks.
    """

    current_secret_version: SecretVersion
    key_check: KeyCheck | None
    highest_version: SecretVersion
    serial: Number
    cause: Cause


class ConfirmRotation(Request, frozen=True):
    """Confirms that the agent has sealed a version; licenses may be issued under it."""

    secret_version: SecretVersion
    key_check: KeyCheck


class SecretStatus(Request, frozen=True):
    """Asks for news, at each contact.

    Attributes:
        current_secret_version: as in `RotateSecret`.
        key_check: as in `RotateSecret`.
        highest_version: as in `RotateSecret`.
        serial: as in `RotateSecret`.
        audit_seq: number of the last sealed audit record; None before the first checkpoint.
        audit_head: SHA-256 over the heads of the audit chains there.
        license_number: up to which change the agent knows its licenses. Left out unless the server has announced
            `sync-licenses`: release 0.1.0 refuses it.
    """

    current_secret_version: SecretVersion
    key_check: KeyCheck | None
    highest_version: SecretVersion
    serial: Number
    audit_seq: Number | None = None
    audit_head: Hash | None = None
    license_number: Number | msgspec.UnsetType = msgspec.UNSET


class ReissueLicenses(Request, frozen=True):
    """Requests new tokens for licenses, under a secret version."""

    licenses: Annotated[tuple[LicenseId, ...], Meta(min_length=1, max_length=MAX_LICENSES_PER_REQUEST)]
    secret_version: SecretVersion


class ValidateLicense(Request, frozen=True):
    """Asks for the server's verdict on a token."""

    token: Token


class RevocationList(Request, frozen=True):
    """Requests the list of the agent's revoked licenses."""


class RenewCertificate(Request, frozen=True):
    """Requests a certificate for a new TLS key.

    Attributes:
        csr: PKCS #10 request in PEM (RFC 2986), signed by the new key.
    """

    csr: Pem


AnyRequest = (
    RotateSecret | ConfirmRotation | SecretStatus | ReissueLicenses | ValidateLicense | RevocationList | RenewCertificate
)


# Replies


class Reply(msgspec.Struct, tag_field="kind", tag=_dashed, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The members of every reply.

    Attributes:
        v: version of the protocol.
        agent_id: the agent that it is for.
        request_id: of the request that it answers.
        issued_at: the server's time.
    """

    v: Literal[1] = 1
    agent_id: str
    request_id: RequestId
    issued_at: Time


class RotateReply(Reply, frozen=True):
    """A secret.

    Attributes:
        delivery: as in `contracts.delivery`; the same version until it is confirmed.
    """

    delivery: Annotated[str, Meta(min_length=1, max_length=MAX_TOKEN_CHARS)]


class ConfirmReply(Reply, frozen=True):
    """The server issues licenses under that version from now on."""

    secret_version: SecretVersion


class StatusReply(Reply, frozen=True):
    """What is new.

    Attributes:
        secret_version: the newest confirmed one; 0 before the first.
        rotate_now: whether the agent must rotate at once.
        revocations: number of the agent's revocation list.
        key_set: number of the key set.
        next_contact_s: seconds until the agent's next contact.
        audit_seq: the newest audit record that the server has noted; None before the first.
        license_number: of the newest change of the agent's licenses. Left out unless the request has it.
    """

    secret_version: SecretVersion
    rotate_now: bool
    revocations: Number
    key_set: Number
    next_contact_s: Annotated[int, Meta(ge=1, le=30 * 86_400)]
    audit_seq: Number | None = None
    license_number: Number | msgspec.UnsetType = msgspec.UNSET


class ReissueReply(Reply, frozen=True):
    """New tokens for the licenses that are not in `missing`.

    Attributes:
        tokens: in no particular order; each names its license.
        missing: licenses that are unknown, revoked or expired, and get no new token.
    """

    tokens: Annotated[tuple[Token, ...], Meta(max_length=MAX_LICENSES_PER_REQUEST)]
    missing: Annotated[tuple[LicenseId, ...], Meta(max_length=MAX_LICENSES_PER_REQUEST)]


class ValidateReply(Reply, frozen=True):
    """The server's verdict on a token.

    Attributes:
        valid: whether the token is valid.
        reason: `ok`, or why it is not valid; as on the POS socket.
        license_id: of the token; None if it could not be decrypted.
        expires_at: end of the license; None if it could not be decrypted.
    """

    valid: bool
    reason: Annotated[str, Meta(min_length=1, max_length=64)]
    license_id: LicenseId | None
    expires_at: Time | None


class RevocationReply(Reply, frozen=True):
    """The agent's revocation list.

    Attributes:
        number: grows with each change; an agent does not accept a lower one.
        next_update: when the agent should have a newer list.
        revoked: the ids of all revoked licenses of the agent.
    """

    number: Number
    next_update: Time
    revoked: Annotated[tuple[LicenseId, ...], Meta(max_length=MAX_REVOKED)]


class RenewReply(Reply, frozen=True):
    """A certificate.

    Attributes:
        certificates: PEM; the agent's own, then those between it and the root.
    """

    certificates: Annotated[tuple[Pem, ...], Meta(min_length=1, max_length=4)]


class RefusalCode(StrEnum):
    """Why the server refuses a request. Append-only."""

    BAD_REQUEST = "bad_request"
    UNSUPPORTED_VERSION = "unsupported_version"
    UNKNOWN_AGENT = "unknown_agent"
    AGENT_REVOKED = "agent_revoked"
    BAD_SIGNATURE = "bad_signature"
    STALE_CHALLENGE = "stale_challenge"
    REPLAYED = "replayed"
    """The request id was used for another request."""
    UNKNOWN_VERSION = "unknown_version"
    """The server does not know that secret version: it was restored from a backup. Rotate."""
    KEY_MISMATCH = "key_mismatch"
    """Agent and server hold different secrets under that number. Rotate."""
    TOO_MANY_VERSIONS = "too_many_versions"
    """Another secret would end one under which licenses are still valid."""
    CLAIM_REFUSED = "claim_refused"
    ATTESTATION_FAILED = "attestation_failed"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"


class Refusal(Reply, frozen=True):
    """The server refuses the request.

    Attributes:
        code: the reason.
        text: the reason in words.
        retry_after_s: seconds until the request may succeed; None if that is unknown, or trying again is of no use.
    """

    code: RefusalCode
    text: Text
    retry_after_s: Annotated[int, Meta(ge=0, le=30 * 86_400)] | None = None


AnyReply = RotateReply | ConfirmReply | StatusReply | ReissueReply | ValidateReply | RevocationReply | RenewReply | Refusal


def purpose_of(request: Request | type[Request]) -> str:
    """The `purpose` of a request, which is also the last part of its path: `rotate-secret`."""
    return str(request.__struct_config__.tag)


class Refused(Exception):
    """The server has refused a request, and signed that.

    Attributes:
        refusal: the signed refusal.
    """

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"the server refuses: {refusal.text} ({refusal.code.value})")
        self.refusal = refusal


# The agent's side


def signing_input(header: dict[str, str], content: msgspec.Struct) -> bytes:
    """The signing input of a JWS (RFC 7515, 5.1)."""
    return f"{b64encode(json.dumps(header, separators=(',', ':')).encode())}.{b64encode(msgspec.json.encode(content))}".encode()


def request_input(request: Request) -> bytes:
    """The bytes of a request that the agent's identity key signs."""
    return signing_input({"alg": "ES256", "typ": REQUEST_TYPE, "kid": request.agent_id}, request)


def with_signature(signed: bytes, signature: bytes) -> str:
    """The JWS in compact serialization, of `signing_input` and its ES256 signature (64 bytes)."""
    return f"{signed.decode('ascii')}.{b64encode(signature)}"


R = TypeVar("R", bound=msgspec.Struct)


def verify_reply(text: str, kind: type[R], agent_id: str | None, request_id: str, trust: Trust) -> R:
    """Verifies signature, addressee and form of the server's reply to a request.

    Args:
        text: JWS in compact serialization.
        kind: the type of reply that the request must get.
        agent_id: the agent that asked; None leaves that check to the caller.
        request_id: of the request.
        trust: the keys that may sign.

    Raises:
        MalformedToken: the reply has another form, or answers another request.
        BadSignature: no key that the agent trusts signed it.
        WrongAudience: it is for another agent.
        Refused: the server refused the request.
    """
    content = _verified(text, trust)
    if agent_id is not None and content.get("agent_id") != agent_id:
        raise WrongAudience("the server's reply is for another agent")
    if content.get("request_id") != request_id:
        raise MalformedToken("the server's reply answers another request")
    wanted: Any = kind | Refusal
    reply = convert(content, wanted, "server's reply")
    if isinstance(reply, Refusal):
        raise Refused(reply)
    if not isinstance(reply, kind):
        raise MalformedToken("the server's reply is of another kind")
    return reply


def convert(content: dict[str, Any], kind: Any, what: str) -> Any:
    """Converts JSON content to a struct of `kind`.

    Raises:
        MalformedToken: the content has another form; the text says where.
    """
    try:
        return msgspec.convert(content, kind, strict=True)
    except msgspec.ValidationError as error:
        raise MalformedToken(f"malformed {what}: {msgspec_text(str(error))}"[:300]) from None


def _verified(text: str, trust: Trust) -> dict[str, Any]:
    parts = text.split(".", 3)
    if len(text) > MAX_REPLY_CHARS or not text.isascii() or len(parts) != 3:
        raise MalformedToken("malformed server's reply: it must be a JWS in compact serialization")
    protected, payload, signature = parts
    if len(protected) > MAX_HEADER_CHARS:
        raise MalformedToken("the reply's header is too long")
    kid = parse_header(protected, {"alg": "ES256", "typ": REPLY_TYPE, "kid": None}, "reply's header")["kid"]
    verify_es256(trust.delivery_key(kid), b64decode(signature), f"{protected}.{payload}".encode("ascii"))
    return parse_json_object(b64decode(payload), "server's reply")
