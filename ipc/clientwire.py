"""Encodes requests and decodes replies for the client side. Nothing here performs IO.

Unlike the daemon, a client passes over fields that it does not know: a newer daemon may add some. A known field of the
wrong type, or a key that comes twice, makes the reply invalid.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgpack

from .bounds import (
    COUNT_ID_BYTES,
    MAX_AMOUNT,
    MAX_BUSY_UNTIL,
    MAX_FEATURE_CHARS,
    MAX_FRAME_BYTES,
    MAX_LICENSE_ID_CHARS,
    MAX_METER_CHARS,
    MAX_PRODUCT_CHARS,
    MAX_TOKEN_CHARS,
    PROTOCOL_VERSION,
)
from .errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from .frames import encode_frame


class Reason(StrEnum):
    """Why a verdict is what it is. The list is closed for a protocol version; `docs/protocol.md` says what a till should do."""

    OK = "ok"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    MALFORMED = "malformed"
    UNKNOWN_SECRET = "unknown_secret"
    SECRET_INVALIDATED = "secret_invalidated"
    BAD_SIGNATURE = "bad_signature"
    WRONG_AUDIENCE = "wrong_audience"
    REVOKED = "revoked"
    DEGRADED_EXPIRED = "degraded_expired"
    REVOCATIONS_STALE = "revocations_stale"


class LicenseReason(StrEnum):
    """Why a license that the machine holds may be used or not, as `require` and `licenses` say it.

    The members of `Reason`, which compare equal to these, and those that no token gets. Append-only: a client takes a reason
    that it does not know for one more of "not valid".
    """

    OK = "ok"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    MALFORMED = "malformed"
    UNKNOWN_SECRET = "unknown_secret"
    SECRET_INVALIDATED = "secret_invalidated"
    BAD_SIGNATURE = "bad_signature"
    WRONG_AUDIENCE = "wrong_audience"
    REVOKED = "revoked"
    DEGRADED_EXPIRED = "degraded_expired"
    REVOCATIONS_STALE = "revocations_stale"
    SUSPENDED = "suspended"
    NO_SEAT = "no_seat"
    NO_LICENSE = "no_license"


NEAREST_FIRST: tuple[LicenseReason, ...] = (
    LicenseReason.OK,
    # The next contact ends these.
    LicenseReason.REVOCATIONS_STALE,
    LicenseReason.DEGRADED_EXPIRED,
    LicenseReason.NO_SEAT,
    LicenseReason.UNKNOWN_SECRET,
    LicenseReason.SECRET_INVALIDATED,
    # Time ends this one.
    LicenseReason.NOT_YET_VALID,
    # The issuer can end these.
    LicenseReason.SUSPENDED,
    LicenseReason.EXPIRED,
    # Nothing ends these.
    LicenseReason.REVOKED,
    LicenseReason.WRONG_AUDIENCE,
    LicenseReason.BAD_SIGNATURE,
    LicenseReason.MALFORMED,
    LicenseReason.NO_LICENSE,
)
"""Every reason, the nearest to valid first: by it `require` chooses among licenses of which none is valid."""

# Not `$`, which in Python's expressions also matches before a line feed at the end.
METER = rf"^[a-z0-9][a-z0-9._-]{{0,{MAX_METER_CHARS - 1}}}\Z"
"""What the name of a meter looks like."""
METER_FEATURE = "meter:"
"""A license allows the meter NAME by the feature `meter:NAME`."""

FAKE_FIELD = "fake"
"""A field that every reply of a fake for tests carries (`ipc/testing`), and no reply of an agent."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The agent's answer to `validate_license`.

    Attributes:
        valid: whether the license may be used now.
        reason: `Reason.OK`, or why not.
        expires_at: end of the license, seconds since 1970 UTC; None where the token could not be read.
        features: what is licensed; empty unless valid.
        metadata: what the issuer attached; empty unless valid.
        secret_state: state of the secret version that the token was made with: ACTIVE, GRACE or INVALIDATED.
        degraded: the agent has not been able to renew its secret in time.
        clock_suspect: the machine's clock shows a time that is certainly over.
        reissue_due: the license should be re-issued under the present secret.
        refresh_by: until when a refreshed token is needed, seconds since 1970 UTC.
        refreshed: the agent holds a newer token of this license; `refresh_license` hands it over.
        refresh_error: why the newer token did not replace the old one; None if it did, or there is no newer one. Not part of
            the agent's answer: the client library sets it, and the verdict counts all the same.
    """

    valid: bool
    reason: Reason
    expires_at: int | None = None
    features: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    secret_state: str | None = None
    degraded: bool = False
    clock_suspect: bool = False
    reissue_due: bool = False
    refresh_by: int | None = None
    refreshed: bool = False
    refresh_error: str | None = None


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """The agent's answer to `agent_info`.

    Attributes:
        agent_id: the id that licenses for this machine carry as their audience.
        agent_version: version of the program.
        protocol_versions: the values of `v` that it accepts.
        degraded: as in `Verdict`.
        time: the agent's clock, seconds since 1970 UTC.
    """

    agent_id: str
    agent_version: str
    protocol_versions: tuple[int, ...]
    degraded: bool
    time: int


@dataclass(frozen=True, slots=True)
class FeatureVerdict:
    """The agent's answer to `require`.

    Attributes:
        valid: whether a license of this machine allows the feature now.
        reason: a `LicenseReason`, or the text of one that this library does not know yet: then it is not valid.
        license_id: the license (`jti`); None where there is none, or the agent could not open it.
        product: what the license is for: its metadata `product`; None where it names none.
        expires_at: end of the license, seconds since 1970 UTC.
        features: all that the license allows; empty unless valid.
        metadata: what the issuer attached; empty unless valid.
        secret_state: state of the secret version of the license's newest token.
        degraded: as in `Verdict`.
        clock_suspect: as in `Verdict`.
    """

    valid: bool
    reason: LicenseReason | str
    license_id: str | None = None
    product: str | None = None
    expires_at: int | None = None
    features: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    secret_state: str | None = None
    degraded: bool = False
    clock_suspect: bool = False


@dataclass(frozen=True, slots=True)
class HeldLicense:
    """A license that the machine holds, as `licenses` lists it.

    Attributes:
        license_id: the license (`jti`).
        valid: whether it may be used now.
        reason: as in `FeatureVerdict`.
        begins_at: seconds since 1970 UTC; None where the agent could not open it.
        expires_at: likewise.
        product: as in `FeatureVerdict`.
        features: what is licensed; empty unless valid.
        metadata: what the issuer attached; empty unless valid and asked for.
    """

    license_id: str
    valid: bool
    reason: LicenseReason | str
    begins_at: int | None = None
    expires_at: int | None = None
    product: str | None = None
    features: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UsageCount:
    """The agent's answer to `count_usage`.

    Attributes:
        counted: whether the usage is counted, now or before.
        repeated: it was counted before, by an earlier attempt with the same id.
        reason: `LicenseReason.OK`, or why no license of this machine allows the meter now; as in `FeatureVerdict`.
        license_id: the license that it is counted for; None where none is, or the agent has forgotten which one it was.
        count_id: the id of the count: with it the call may be repeated.
    """

    counted: bool
    repeated: bool
    reason: LicenseReason | str
    license_id: str | None
    count_id: bytes


class ConsentAnswer(StrEnum):
    """What an application answers to an update that waits for the shop."""

    READY = "ready"
    BUSY = "busy"
    AFTER_SHIFT = "after_shift"


@dataclass(frozen=True, slots=True)
class WaitingUpdate:
    """The agent's answer to `ota_consent`.

    Attributes:
        pending: whether an update waits.
        product: what it updates; None if none waits, as all that follows.
        version: to which version.
        notes: the first 500 characters of its release notes.
        not_before: when it may begin, seconds since 1970 UTC; None where that is not known.
    """

    pending: bool
    product: str | None = None
    version: str | None = None
    notes: str | None = None
    not_before: int | None = None


def encode_request(op: str, request_id: int, fields: dict[str, Any]) -> bytes:
    """The frame of a request.

    Raises:
        LocalProtocolError: the message would be larger than a frame may be.
    """
    message = {"v": PROTOCOL_VERSION, "id": request_id, "op": op, **fields}
    body: bytes = msgpack.packb(message, use_bin_type=True)
    return encode_frame(body)


def may_be_sent(token: object) -> bool:
    """Whether a token has a form that the protocol carries: ASCII text that is neither empty nor too long."""
    return isinstance(token, str) and token.isascii() and 0 < len(token) <= MAX_TOKEN_CHARS


def check_token(token: str) -> str:
    """The token, if it is one that may be sent.

    Raises:
        LocalProtocolError: not a text, not ASCII, empty, or too long.
    """
    if not may_be_sent(token):
        raise LocalProtocolError(
            ErrorCode.BAD_REQUEST, f"a license token is an ASCII text of 1 to {MAX_TOKEN_CHARS} characters"
        )
    return token


def check_requirement(feature: str, product: str | None) -> None:
    """Checks that a feature and a product may be asked for.

    Raises:
        LocalProtocolError: one is not a text, empty, or too long.
    """
    for name, text, most in (("feature", feature, MAX_FEATURE_CHARS), ("product", product, MAX_PRODUCT_CHARS)):
        if text is None and name == "product":
            continue
        if not isinstance(text, str) or not 0 < len(text) <= most or any("\ud800" <= char <= "\udfff" for char in text):
            raise LocalProtocolError(ErrorCode.BAD_REQUEST, f"a {name} is a text of 1 to {most} characters")


def is_meter(name: object) -> bool:
    """Whether a value is the name of a meter."""
    return isinstance(name, str) and re.match(METER, name) is not None


def check_count(meter: str, amount: int, count_id: bytes) -> None:
    """Checks that a usage may be counted.

    Raises:
        LocalProtocolError: meter, amount or id is not one.
    """
    if not is_meter(meter):
        text = f"a meter is a text of 1 to {MAX_METER_CHARS} characters a-z, 0-9, '.', '_' and '-', and begins with a-z or 0-9"
        raise LocalProtocolError(ErrorCode.BAD_REQUEST, text)
    if type(amount) is not int or not 1 <= amount <= MAX_AMOUNT:
        raise LocalProtocolError(ErrorCode.BAD_REQUEST, f"an amount is an integer from 1 to {MAX_AMOUNT}")
    if not isinstance(count_id, bytes) or len(count_id) != COUNT_ID_BYTES:
        raise LocalProtocolError(ErrorCode.BAD_REQUEST, f"the id of a count has {COUNT_ID_BYTES} bytes")


def check_consent(answer: str, until: int) -> None:
    """Checks that an answer to a waiting update may be sent.

    Raises:
        LocalProtocolError: it is neither in `ConsentAnswer` nor empty, or `until` does not belong to it.
    """
    if answer != "" and answer not in ConsentAnswer._value2member_map_:
        text = "an answer to an update is 'ready', 'busy' or 'after_shift', or none at all"
        raise LocalProtocolError(ErrorCode.BAD_REQUEST, text)
    if type(until) is not int or not 0 <= until <= MAX_BUSY_UNTIL:
        raise LocalProtocolError(ErrorCode.BAD_REQUEST, f"until is an integer from 0 to {MAX_BUSY_UNTIL}: seconds since 1970")
    if (answer == ConsentAnswer.BUSY) != (until > 0):
        raise LocalProtocolError(ErrorCode.BAD_REQUEST, "until is the end of 'busy', and belongs to no other answer")


def decode_map(body: bytes) -> dict[str, Any]:
    """One MessagePack map with text keys, each at most once, and no extension types.

    Raises:
        RemoteProtocolError: `body` is anything else (BAD_MESSAGE).
    """
    try:
        message = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_unique,
            ext_hook=_no_extension,
            max_str_len=MAX_FRAME_BYTES,
            max_bin_len=MAX_FRAME_BYTES,
            max_array_len=1024,
            max_map_len=1024,
            max_ext_len=MAX_FRAME_BYTES,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(ErrorCode.BAD_MESSAGE, f"not one MessagePack map: {_why(error)}") from None
    if _holds_timestamp(message):
        raise RemoteProtocolError(ErrorCode.BAD_MESSAGE, "not one MessagePack map: extension types are not used here")
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise RemoteProtocolError(ErrorCode.BAD_MESSAGE, "not one MessagePack map with text keys")
    return message


class _BadMap(ValueError):
    """A rule of ours for maps is broken; the text is ours too."""


def _why(error: Exception) -> str:
    """What the library's exception means; its own texts name its options and functions."""
    text = str(error)
    if isinstance(error, _BadMap):
        return text
    if isinstance(error, UnicodeDecodeError):
        return "a text in it is not UTF-8"
    if isinstance(error, msgpack.ExtraData):
        return "bytes follow the map"
    if isinstance(error, RecursionError | msgpack.StackError):
        return "it is nested too deeply"
    if "map key" in text:
        return "a key in it is not a text"
    if "exceeds" in text:
        return "a map, a list or a text in it is too long"
    return "it is cut off" if "incomplete" in text or isinstance(error, msgpack.OutOfData) else "it is not MessagePack"


def _unique(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for key, value in pairs:
        if key in result:
            raise _BadMap(f"the key {key!r} comes twice")
        result[key] = value
    return result


def _holds_timestamp(message: Any) -> bool:
    """The library decodes one extension type by itself, before its hook is asked."""
    waiting = [message]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend(value)
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, msgpack.Timestamp):
            return True
    return False


def _no_extension(code: int, _data: bytes) -> Any:
    raise _BadMap(f"extension type {code} is not used here")


def decode_reply(body: bytes, request_id: int) -> dict[str, Any]:
    """The fields of a successful reply to the request `request_id`.

    Raises:
        RemoteProtocolError: the body breaks the protocol, answers another request, or is an error reply; then `code` is
            the code that the daemon sent (INTERNAL where we do not know it).
    """
    reply = decode_map(body)
    if "error" in reply:
        error = reply["error"]
        if not isinstance(error, dict):
            raise _invalid("its error is not a map")
        code, text = error.get("code"), error.get("text")
        known = ErrorCode._value2member_map_.get(code) if isinstance(code, int) else None
        raise RemoteProtocolError(
            known if isinstance(known, ErrorCode) else ErrorCode.INTERNAL,
            text if isinstance(text, str) else f"error {code}",
            reply.get("id") if isinstance(reply.get("id"), int) else None,
        )
    if reply.get("v") != PROTOCOL_VERSION or reply.get("id") != request_id:
        raise _invalid("it answers another request")
    return reply


def _invalid(why: str) -> RemoteProtocolError:
    return RemoteProtocolError(ErrorCode.BAD_MESSAGE, f"the agent's reply is invalid: {why}")


def _take(reply: dict[str, Any], name: str, kind: type, *, optional: bool = False) -> Any:
    value = reply.get(name)
    if value is None and optional:
        return None
    # bool is an int in Python, and never one on the wire.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _invalid(f"{name} is not of its type")
    return value


def verdict_from(reply: dict[str, Any], nonce: bytes) -> Verdict:
    """The verdict in a reply to `validate_license`.

    Raises:
        RemoteProtocolError: the nonce is not ours, or a field is not of its type.
    """
    if reply.get("nonce") != nonce:
        raise _invalid("its nonce is not the one that was sent")
    features = _take(reply, "features", list)
    metadata = _take(reply, "metadata", dict)
    if not all(isinstance(item, str) for item in (*features, *metadata, *metadata.values())):
        raise _invalid("features or metadata hold something else than text")
    reason = _take(reply, "reason", str)
    if reason not in Reason._value2member_map_:
        raise _invalid(f"the reason {reason!r} is not in the list of protocol version {PROTOCOL_VERSION}")
    valid = _take(reply, "valid", bool)
    if valid != (reason == Reason.OK):
        raise _invalid("valid and reason contradict each other")
    return Verdict(
        valid=valid,
        reason=Reason(reason),
        expires_at=_take(reply, "expires_at", int, optional=True),
        features=tuple(features),
        metadata=metadata,
        secret_state=_take(reply, "secret_state", str, optional=True),
        degraded=_take(reply, "degraded", bool),
        clock_suspect=_take(reply, "clock_suspect", bool),
        reissue_due=_take(reply, "reissue_due", bool),
        refresh_by=_take(reply, "refresh_by", int, optional=True),
        refreshed=_take(reply, "refreshed", bool),
    )


def _text_of_license(fields: dict[str, Any]) -> dict[str, Any]:
    """What `require` and `licenses` say alike of a license."""
    features, metadata = _take(fields, "features", list), _take(fields, "metadata", dict)
    if not all(isinstance(item, str) for item in (*features, *metadata, *metadata.values())):
        raise _invalid("features or metadata hold something else than text")
    reason, valid = _take(fields, "reason", str), _take(fields, "valid", bool)
    if valid != (reason == LicenseReason.OK):
        raise _invalid("valid and reason contradict each other")
    return {
        "valid": valid,
        "reason": LicenseReason(reason) if reason in LicenseReason._value2member_map_ else reason,
        "product": _take(fields, "product", str, optional=True),
        "expires_at": _take(fields, "expires_at", int, optional=True),
        "features": tuple(features),
        "metadata": metadata,
    }


def feature_verdict_from(reply: dict[str, Any], nonce: bytes, feature: str, product: str | None) -> FeatureVerdict:
    """The verdict in a reply to `require`.

    Args:
        reply: its fields.
        nonce: of the request.
        feature: that was asked for.
        product: that was asked for; None for any.

    Raises:
        RemoteProtocolError: the nonce is not ours, a field is not of its type, or the license that should allow the feature
            does not.
    """
    if reply.get("nonce") != nonce:
        raise _invalid("its nonce is not the one that was sent")
    verdict = FeatureVerdict(
        **_text_of_license(reply),
        license_id=_take(reply, "license", str, optional=True),
        secret_state=_take(reply, "secret_state", str, optional=True),
        degraded=_take(reply, "degraded", bool),
        clock_suspect=_take(reply, "clock_suspect", bool),
    )
    if verdict.valid and (feature not in verdict.features or verdict.license_id is None):
        raise _invalid("it calls a license valid that does not allow the feature, or none")
    if verdict.valid and product is not None and verdict.product != product:
        raise _invalid("it names a license of another product")
    return verdict


def licenses_from(reply: dict[str, Any], nonce: bytes, after: str) -> tuple[list[HeldLicense], str | None]:
    """The licenses in a reply to `licenses`, and where the next page begins; None after the last.

    Args:
        reply: its fields.
        nonce: of the request.
        after: of the request.

    Raises:
        RemoteProtocolError: the nonce is not ours, a field is not of its type, or the pages would never end.
    """
    if reply.get("nonce") != nonce:
        raise _invalid("its nonce is not the one that was sent")
    found = []
    last = after
    for entry in _take(reply, "licenses", list):
        if not isinstance(entry, dict):
            raise _invalid("licenses hold something else than maps")
        license_id = _take(entry, "license", str)
        if license_id <= last:
            raise _invalid("licenses are not in the order of their ids")
        last = license_id
        begins_at = _take(entry, "begins_at", int, optional=True)
        found.append(HeldLicense(license_id, **_text_of_license(entry), begins_at=begins_at))
    following: str | None = _take(reply, "next", str, optional=True)
    if following is not None and (not found or following != last or len(following) > MAX_LICENSE_ID_CHARS):
        raise _invalid("next is not the id of its last license")
    return found, following


def usage_count_from(reply: dict[str, Any], count_id: bytes) -> UsageCount:
    """What became of a count, in a reply to `count_usage`.

    Args:
        reply: its fields.
        count_id: of the request.

    Raises:
        RemoteProtocolError: the id is not ours, a field is not of its type, or the fields contradict each other.
    """
    if reply.get("count_id") != count_id:
        raise _invalid("its count_id is not the one that was sent")
    reason = _take(reply, "reason", str)
    found = UsageCount(
        counted=_take(reply, "counted", bool),
        repeated=_take(reply, "repeated", bool),
        reason=LicenseReason(reason) if reason in LicenseReason._value2member_map_ else reason,
        license_id=_take(reply, "license", str, optional=True),
        count_id=count_id,
    )
    if found.counted != (reason == LicenseReason.OK) or (found.repeated and not found.counted):
        raise _invalid("counted, repeated and reason contradict each other")
    if found.counted and not found.repeated and found.license_id is None:
        raise _invalid("it counts for no license")
    return found


def waiting_update_from(reply: dict[str, Any]) -> WaitingUpdate:
    """What waits for the shop, in a reply to `ota_consent`.

    Raises:
        RemoteProtocolError: a field is not of its type, or the fields contradict each other.
    """
    found = WaitingUpdate(
        pending=_take(reply, "pending", bool),
        product=_take(reply, "product", str, optional=True),
        version=_take(reply, "version", str, optional=True),
        notes=_take(reply, "notes", str, optional=True),
        not_before=_take(reply, "not_before", int, optional=True),
    )
    if found.pending != (found.product is not None) or found.pending != (found.version is not None):
        raise _invalid("an update waits and has no name, or none waits and it has one")
    return found


def refresh_digest(token: str) -> bytes:
    """What names the asked token in a reply to `refresh_license`: its SHA-256."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def refreshed_token_from(reply: dict[str, Any], asked: str) -> str | None:
    """The token in a reply to `refresh_license`; None if the agent holds no newer one.

    Args:
        reply: its fields.
        asked: the token in the request. An agent of release 0.1.0 does not say for which token its reply is; then the id
            alone tells, on a connection that no other process uses.

    Raises:
        RemoteProtocolError: the reply is for another token, or a field is not of its type.
    """
    token: str | None = _take(reply, "token", str, optional=True)
    for_token = _take(reply, "for_token", bytes, optional=True)
    if for_token is not None and for_token != refresh_digest(asked):
        raise _invalid("it is the newer token of another license")
    if token is None:
        return None
    # An issuer's token has no blanks; what has some would be another token once it is read back from a file.
    if not 0 < len(token) <= MAX_TOKEN_CHARS or not all("!" <= character <= "~" for character in token):
        raise _invalid("its token has blanks, or is no ASCII text, or is too long")
    return token


def agent_info_from(reply: dict[str, Any]) -> AgentInfo:
    """The values in a reply to `agent_info`."""
    versions = _take(reply, "protocol_versions", list)
    if not all(type(version) is int for version in versions):
        raise _invalid("protocol_versions are not numbers")
    return AgentInfo(
        agent_id=_take(reply, "agent_id", str),
        agent_version=_take(reply, "agent_version", str),
        protocol_versions=tuple(versions),
        degraded=_take(reply, "degraded", bool),
        time=_take(reply, "time", int),
    )
