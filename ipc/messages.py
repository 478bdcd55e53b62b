"""Defines the messages that the daemon receives and sends, as strict structs. Nothing here performs IO.

A request is decoded in one pass straight into its struct (msgspec): unknown operation, unknown or missing field, wrong type
and every bound are refused there. All fields are required, so a duplicate key shows as a map that claims more entries than
its struct has fields; that costs one comparison.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Generic, Literal, NoReturn, TypeVar, get_args

import msgspec
from msgspec import Meta

from .bounds import (
    COUNT_ID_BYTES,
    MAX_ADMIN_CERTIFICATE_BYTES,
    MAX_ADMIN_CERTIFICATES,
    MAX_ADMIN_SIGNATURE_BYTES,
    MAX_AMOUNT,
    MAX_BUSY_UNTIL,
    MAX_FEATURE_CHARS,
    MAX_FRAME_BYTES,
    MAX_ID,
    MAX_LICENSE_ID_CHARS,
    MAX_METER_CHARS,
    MAX_PRODUCT_CHARS,
    MAX_SIGNED_REQUEST_BYTES,
    MAX_TOKEN_CHARS,
    NONCE_BYTES,
    PROTOCOL_VERSION,
)
from .clientwire import METER, decode_map
from .errors import ErrorCode, LocalProtocolError, RemoteProtocolError

Version = Literal[1]
Id = Annotated[int, Meta(ge=0, le=MAX_ID)]
Token = Annotated[str, Meta(min_length=1, max_length=MAX_TOKEN_CHARS)]
Nonce = Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
SecretVersion = Annotated[int, Meta(ge=1, le=2**32 - 1)]


class Request(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", frozen=True, gc=False, kw_only=True):
    """What every request carries besides `op`: the protocol version and an id that its reply echoes."""

    v: Version
    id: Id


class ValidateLicense(Request, tag="validate_license", frozen=True):
    """Is this license valid? The nonce is new for each attempt."""

    token: Token
    nonce: Nonce


class RefreshLicense(Request, tag="refresh_license", frozen=True):
    """Is there a newer token of this license?"""

    token: Token


class Require(Request, tag="require", frozen=True):
    """Does a license of this machine allow this feature? The nonce is new for each attempt."""

    feature: Annotated[str, Meta(min_length=1, max_length=MAX_FEATURE_CHARS)]
    product: Annotated[str, Meta(min_length=1, max_length=MAX_PRODUCT_CHARS)] | None
    nonce: Nonce


class ListLicenses(Request, tag="licenses", frozen=True):
    """Which licenses does this machine hold, after the one with the id `after`? The nonce is new for each attempt."""

    after: Annotated[str, Meta(max_length=MAX_LICENSE_ID_CHARS)]
    metadata: bool
    nonce: Nonce


class CountUsage(Request, tag="count_usage", frozen=True):
    """Count this usage. The id is new for each count, and the same for each attempt to make it known."""

    meter: Annotated[str, Meta(max_length=MAX_METER_CHARS, pattern=METER)]
    amount: Annotated[int, Meta(ge=1, le=MAX_AMOUNT)]
    count_id: Annotated[bytes, Meta(min_length=COUNT_ID_BYTES, max_length=COUNT_ID_BYTES)]


class AgentInfo(Request, tag="agent_info", frozen=True):
    """Who are you?"""


class Ping(Request, tag="ping", frozen=True):
    """Do you answer?"""


class Status(Request, tag="status", frozen=True):
    """The whole state in one reply."""


class SecretList(Request, tag="secrets", frozen=True):
    """All secret versions with states and dates; never a secret."""


class SecretInstall(Request, tag="secret_install", frozen=True):
    """Install a new secret version from a delivery that the server signed and encrypted for this agent."""

    delivery: Annotated[str, Meta(min_length=1, max_length=MAX_TOKEN_CHARS)]


class SecretInvalidate(Request, tag="secret_invalidate", frozen=True):
    """Invalidate a secret version for good."""

    version: SecretVersion


class LicenseCheck(Request, tag="license_check", frozen=True):
    """What verdict would a POS application get for this token?"""

    token: Token


class LicenseExplain(Request, tag="license_explain", frozen=True):
    """Why is a license valid or not, check by check? The subject is a token, or the id of a license that the machine knows."""

    by: Literal["token", "license"]
    subject: Token


class LicenseImport(Request, tag="license_import", frozen=True):
    """Store this re-issued token, so that POS applications get it."""

    token: Token


class AuditTail(Request, tag="audit_tail", frozen=True):
    """The records after `after_seq`, the newest `limit` of them; a negative `after_seq` means from the newest back."""

    after_seq: Annotated[int, Meta(ge=-1, le=MAX_ID)]
    limit: Annotated[int, Meta(ge=1, le=1000)]


class AuditExport(Request, tag="audit_export", frozen=True):
    """The records after `after_seq`, the oldest `limit` of them, also from archives; -1 means from the oldest there is."""

    after_seq: Annotated[int, Meta(ge=-1, le=MAX_ID)]
    limit: Annotated[int, Meta(ge=1, le=1000)]


class AuditVerify(Request, tag="audit_verify", frozen=True):
    """Check the whole audit log against its chain, the daemon's own head and the sealed checkpoint."""


class PublicKeys(Request, tag="public_keys", frozen=True):
    """The public keys with which an auditor checks the log: identity key and attestation key."""


Pcrs = Annotated[tuple[Annotated[int, Meta(ge=0, le=23)], ...], Meta(max_length=24)]


class PolicyShow(Request, tag="policy_show", frozen=True):
    """What the KEK is bound to, the signed policies, and PCR values: those of the binding and those named."""

    pcrs: Pcrs


class PolicyInstall(Request, tag="policy_install", frozen=True):
    """Install a signed policy."""

    policy: Annotated[str, Meta(min_length=1, max_length=MAX_TOKEN_CHARS)]


class PolicyBind(Request, tag="policy_bind", frozen=True):
    """Bind the KEK: to nothing (`none`), to Secure Boot (`secure-boot`) or to PCRs (`custom`), with the vendor's key in PEM."""

    kind: Literal["none", "secure-boot", "custom"]
    pcrs: Pcrs
    key: Annotated[str, Meta(max_length=4096)]


class PolicyRevoke(Request, tag="policy_revoke", frozen=True):
    """Refuse signed policies with a lower number, forever."""

    number: Annotated[int, Meta(ge=1, le=MAX_ID)]


class ClockChallenge(Request, tag="clock_challenge", frozen=True):
    """A challenge for the server's time."""


class ClockReset(Request, tag="clock_reset", frozen=True):
    """Accept the server's time, in answer to the challenge, even if it lowers the floor."""

    statement: Annotated[str, Meta(min_length=1, max_length=MAX_TOKEN_CHARS)]


class ClockConfirm(Request, tag="clock_confirm", frozen=True):
    """Take the server's time that is held or provisional."""


class Provision(Request, tag="provision", frozen=True):
    """Make this device an agent of the server at `url`, which is known by the pin of its offline root."""

    url: Annotated[str, Meta(min_length=1, max_length=2048)]
    root: Annotated[str, Meta(min_length=1, max_length=100)]
    claim: Annotated[str, Meta(min_length=16, max_length=256)]


class Rotate(Request, tag="rotate", frozen=True):
    """Contact the server now and get a new secret."""


class Contact(Request, tag="contact", frozen=True):
    """Contact the server now."""


class CertificateRenew(Request, tag="certificate_renew", frozen=True):
    """Get a new TLS client certificate now."""


class DegradedSwitch(Request, tag="degraded_switch", frozen=True):
    """Leave the server alone from now on, or not any more; where the configuration allows it."""

    on: bool


class Reload(Request, tag="reload", frozen=True):
    """Read the configuration file again, and say how that ended."""


class ConfigShow(Request, tag="config_show", frozen=True):
    """The configuration that is in force: each key with its value, its default, and where the value comes from."""


class MetricsText(Request, tag="metrics", frozen=True):
    """The metrics, as in the metrics file."""


class Health(Request, tag="health", frozen=True):
    """Does the agent work? The verdict alone, for monitoring without a certificate."""


Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class SystemInfo(Request, tag="system_info", frozen=True):
    """Which program runs, and since when? Asked to see that an update has reached the running process."""


class CertificateCheck(Request, tag="certificate_check", frozen=True):
    """Which of these certificates are revoked? SHA-256 of their DER, hex. For whom administrators connect to."""

    digests: Annotated[tuple[Sha256, ...], Meta(min_length=1, max_length=MAX_ADMIN_CERTIFICATES)]


class Challenge(Request, tag="challenge", frozen=True):
    """A challenge for one `signed` on this connection, and what else the signature covers."""


class Signed(Request, tag="signed", frozen=True):
    """Perform `request`, which an administrator's key has signed together with the challenge of this connection.

    Attributes:
        certificates: the administrator's, then the one between it and the admin CA, if there is one; DER.
        signature: ES256 in DER over `contracts.admin.adminauth.signed_text`.
        request: body of another request, with the same `v` and `id`.
    """

    certificates: Annotated[
        tuple[Annotated[bytes, Meta(min_length=1, max_length=MAX_ADMIN_CERTIFICATE_BYTES)], ...],
        Meta(min_length=1, max_length=MAX_ADMIN_CERTIFICATES),
    ]
    signature: Annotated[bytes, Meta(min_length=1, max_length=MAX_ADMIN_SIGNATURE_BYTES)]
    request: Annotated[bytes, Meta(min_length=1, max_length=MAX_SIGNED_REQUEST_BYTES)]


class SessionBegin(Request, tag="session_begin", frozen=True):
    """Let this connection read without further signatures for a while; only inside `signed`."""


class AdminAccess(Request, tag="admin_access", frozen=True):
    """How administrators are authenticated, and whose certificates count."""


class AdminRevoke(Request, tag="admin_revoke", frozen=True):
    """Let these certificates not count any more, for good: SHA-256 of their DER, hex."""

    digests: Annotated[tuple[Sha256, ...], Meta(min_length=1, max_length=100)]


class AdminAccessEnd(Request, tag="admin_access_end", frozen=True):
    """Do not demand certificates any more, where neither the configuration nor an admin CA does."""


class WebhookStatus(Request, tag="webhook_status", frozen=True):
    """The webhook: its keys by their ids, what waits, and what was put aside."""


class WebhookKeyNew(Request, tag="webhook_key_new", frozen=True):
    """Make a key that alerts are signed with, besides the present one."""


class WebhookKeyEnd(Request, tag="webhook_key_end", frozen=True):
    """End a key: the one with this id, or, if it is empty, the former one of two."""

    key: Annotated[str, Meta(max_length=64)]


class WebhookTest(Request, tag="webhook_test", frozen=True):
    """Send the webhook an event of its own now."""


class WebhookRetry(Request, tag="webhook_retry", frozen=True):
    """Send the dead letters once more, and what waits at once."""


class BreakGlassBegin(Request, tag="break_glass_begin", frozen=True):
    """Use this break-glass certificate from now on; only signed with it, and once."""

    why: Annotated[str, Meta(min_length=1, max_length=200)]


class BreakGlassEnd(Request, tag="break_glass_end", frozen=True):
    """Let no break-glass certificate that is in use count any more."""


class OtaConsent(Request, tag="ota_consent", frozen=True):
    """Asks whether an update waits for the shop, and says whether it may begin.

    Attributes:
        answer: `ready`, `busy`, `after_shift`, or "" for a look without an answer.
        until: end of `busy`, seconds since 1970 UTC; 0 with any other answer.
    """

    answer: Literal["", "ready", "busy", "after_shift"]
    until: Annotated[int, Meta(ge=0, le=MAX_BUSY_UNTIL)]


class OtaStatus(Request, tag="ota_status", frozen=True):
    """Updates: what runs, where an update is and what it waits for."""


class OtaCheck(Request, tag="ota_check", frozen=True):
    """Ask the license server for this machine's directive now."""


class OtaInstall(Request, tag="ota_install", frozen=True):
    """Install what is offered now, whatever window, notice and shop say.

    Attributes:
        rehearse: go back at the end of the trial, on purpose.
    """

    rehearse: bool


class OtaHandOver(Request, tag="ota_hand_over", frozen=True):
    """Announces an open file, which comes with one byte once this is answered. `ota_package` on this connection is about it."""


class OtaPackage(Request, tag="ota_package", frozen=True):
    """Install the package in the update bundle that was handed over.

    Attributes:
        sha256: of the package, hex.
    """

    sha256: Sha256


class OtaRollback(Request, tag="ota_rollback", frozen=True):
    """Go back to the version before the running one."""

    product: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,31}\Z")]


class OtaUnlock(Request, tag="ota_unlock", frozen=True):
    """Let updates begin again after failed attempts."""

    why: Annotated[str, Meta(min_length=1, max_length=200)]


class OtaPause(Request, tag="ota_pause", frozen=True):
    """Let no update begin on this machine, or end that."""

    end: bool


class OtaHistory(Request, tag="ota_history", frozen=True):
    """Lines of the maintenance register, the newest first.

    Attributes:
        skip: so many of the newest.
        count: most lines of the reply.
    """

    skip: Annotated[int, Meta(ge=0, le=100_000)]
    count: Annotated[int, Meta(ge=1, le=50)]


PosRequest = ValidateLicense | RefreshLicense | Require | ListLicenses | CountUsage | AgentInfo | Ping | OtaConsent
SignableRequest = (
    Status
    | SecretList
    | SecretInstall
    | SecretInvalidate
    | LicenseCheck
    | LicenseExplain
    | LicenseImport
    | AuditTail
    | AuditExport
    | AuditVerify
    | PublicKeys
    | PolicyShow
    | PolicyInstall
    | PolicyBind
    | PolicyRevoke
    | ClockChallenge
    | ClockReset
    | ClockConfirm
    | Provision
    | Rotate
    | Contact
    | CertificateRenew
    | DegradedSwitch
    | MetricsText
    | ConfigShow
    | Reload
    | Ping
    | Health
    | SystemInfo
    | CertificateCheck
    | SessionBegin
    | AdminAccess
    | AdminRevoke
    | AdminAccessEnd
    | WebhookStatus
    | WebhookKeyNew
    | WebhookKeyEnd
    | WebhookTest
    | WebhookRetry
    | BreakGlassBegin
    | BreakGlassEnd
    | OtaStatus
    | OtaCheck
    | OtaInstall
    | OtaPackage
    | OtaRollback
    | OtaUnlock
    | OtaPause
    | OtaHistory
)
"""What administrators ask for, with a signature around it or without one."""
AdminRequest = SignableRequest | Challenge | Signed | OtaHandOver


class VerdictReply(msgspec.Struct, frozen=True, gc=False):
    """The reply to `validate_license`; `clientwire.Verdict` explains each field."""

    v: int
    id: int
    nonce: bytes
    valid: bool
    reason: str
    expires_at: int | None
    features: tuple[str, ...]
    metadata: dict[str, str]
    secret_state: str | None
    degraded: bool
    clock_suspect: bool
    reissue_due: bool
    refresh_by: int | None
    refreshed: bool


R = TypeVar("R", bound=Request)


class RequestDecoder(Generic[R]):
    """Turns frame bodies into requests of one socket.

    Args:
        union: the requests that this socket takes; a single one is a union too.
    """

    def __init__(self, union: Any) -> None:
        self._decode = msgspec.msgpack.Decoder(union).decode
        members: tuple[type[Request], ...] = get_args(union) or (union,)
        # Fields plus `op`; a fixmap header with that many entries is 0x80 | count.
        self._header = {member: 0x80 | (len(member.__struct_fields__) + 1) for member in members}
        self._ops = frozenset(str(member.__struct_config__.tag) for member in members)

    def decode(self, body: bytes) -> R:
        """The request in `body`.

        Raises:
            RemoteProtocolError: BAD_MESSAGE, UNSUPPORTED_VERSION, UNKNOWN_OP or BAD_REQUEST, with the request's id
                where it could be read.
        """
        try:
            request: R = self._decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._explain(body, error)
        if body[0] != self._header[type(request)]:
            # More entries than fields, a map header longer than it need be, or (of a single request) no `op`: the slow path.
            if "op" not in decode_map(body):
                self._explain(body, ValueError("the field 'op' is missing"))
        return request

    def _explain(self, body: bytes, error: Exception) -> NoReturn:
        message = decode_map(body)
        request_id = message.get("id")
        if not isinstance(request_id, int) or isinstance(request_id, bool) or not 0 <= request_id <= MAX_ID:
            request_id = None
        version = message.get("v")
        if isinstance(version, int) and not isinstance(version, bool) and version != PROTOCOL_VERSION:
            raise RemoteProtocolError(
                ErrorCode.UNSUPPORTED_VERSION,
                f"this agent speaks version {PROTOCOL_VERSION} of the protocol",
                request_id,
            )
        op = message.get("op")
        if isinstance(op, str) and op not in self._ops:
            raise RemoteProtocolError(
                ErrorCode.UNKNOWN_OP,
                f"this socket knows the operations {', '.join(sorted(self._ops))}",
                request_id,
            )
        raise RemoteProtocolError(ErrorCode.BAD_REQUEST, str(error), request_id)


_encoder = msgspec.msgpack.Encoder()


def encode_reply(reply: Any) -> bytes:
    """The frame of a reply: a struct, or a dict with the fields `v`, `id` and what the operation returns.

    Raises:
        LocalProtocolError: the reply does not fit a frame.
    """
    frame = bytearray(4)
    _encoder.encode_into(reply, frame, 4)
    length = len(frame) - 4
    if length > MAX_FRAME_BYTES:
        raise LocalProtocolError(ErrorCode.FRAME_TOO_LARGE, f"the reply would have {length} bytes")
    frame[:4] = length.to_bytes(4, "big")
    return bytes(frame)


_VERDICT_HEAD = b"\x8e\xa1v\x01\xa2id"
_NONCE_HEAD = b"\xa5nonce\xc4\x10"


def encode_verdict_tail(reply: VerdictReply) -> bytes:
    """What is the same in all replies with one verdict: the fields after the nonce."""
    body = _encoder.encode(reply)
    return bytes(body[body.index(_NONCE_HEAD) + len(_NONCE_HEAD) + NONCE_BYTES :])


def encode_id(request_id: int) -> bytes:
    """A request's id as a reply carries it."""
    return _encoder.encode(request_id)


def decode_id(request_id: bytes) -> int:
    """The id that `encode_id` has encoded."""
    return msgspec.msgpack.decode(request_id, type=int)


def encode_verdict(request_id: bytes, nonce: bytes, tail: bytes) -> bytes:
    """The frame of a `VerdictReply`, put together from its parts; the same bytes as `encode_reply` gives.

    Args:
        request_id: encoded.
        nonce: of the request.
        tail: from `encode_verdict_tail`.
    """
    body = _VERDICT_HEAD + request_id + _NONCE_HEAD + nonce + tail
    return len(body).to_bytes(4, "big") + body


def encode_error(code: ErrorCode, text: str, request_id: int | None, more: Mapping[str, Any] | None = None) -> bytes:
    """The frame of an error reply.

    Args:
        code: what went wrong.
        text: for people; its first 500 characters are sent.
        request_id: of the request; None where it could not be read.
        more: further members.
    """
    error = {"code": int(code), "text": text[:500]}
    return encode_reply({"v": PROTOCOL_VERSION, "id": request_id, "error": error, **(more or {})})
