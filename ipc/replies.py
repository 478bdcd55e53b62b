"""Reads each reply of the POS socket into its type, and refuses one that does not answer the request. Nothing here performs IO.

A field that is not known is passed over: a newer daemon may add some. A known one must be of its type (`clientwire`).
"""

import hashlib
from typing import Any

from .answers import (
    AgentInfo,
    FeatureVerdict,
    HeldLicense,
    LicenseReason,
    Reason,
    UsageCount,
    Verdict,
    WaitingUpdate,
)
from .bounds import (
    MAX_LICENSE_ID_CHARS,
    MAX_TOKEN_CHARS,
    PROTOCOL_VERSION,
)
from .clientwire import invalid


def _take(reply: dict[str, Any], name: str, kind: type, *, optional: bool = False) -> Any:
    value = reply.get(name)
    if value is None and optional:
        return None
    # bool is an int in Python, and never one on the wire.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise invalid(f"{name} is not of its type")
    return value


def verdict_from(reply: dict[str, Any], nonce: bytes) -> Verdict:
    """The verdict in a reply to `validate_license`.

    Raises:
        RemoteProtocolError: the nonce is not ours, or a field is not of its type.
    """
    if reply.get("nonce") != nonce:
        raise invalid("its nonce is not the one that was sent")
    features = _take(reply, "features", list)
    metadata = _take(reply, "metadata", dict)
    if not all(isinstance(item, str) for item in (*features, *metadata, *metadata.values())):
        raise invalid("features or metadata hold something else than text")
    reason = _take(reply, "reason", str)
    if reason not in Reason._value2member_map_:
        raise invalid(f"the reason {reason!r} is not in the list of protocol version {PROTOCOL_VERSION}")
    valid = _take(reply, "valid", bool)
    if valid != (reason == Reason.OK):
        raise invalid("valid and reason contradict each other")
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
        raise invalid("features or metadata hold something else than text")
    reason, valid = _take(fields, "reason", str), _take(fields, "valid", bool)
    if valid != (reason == LicenseReason.OK):
        raise invalid("valid and reason contradict each other")
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
        raise invalid("its nonce is not the one that was sent")
    verdict = FeatureVerdict(
        **_text_of_license(reply),
        license_id=_take(reply, "license", str, optional=True),
        secret_state=_take(reply, "secret_state", str, optional=True),
        degraded=_take(reply, "degraded", bool),
        clock_suspect=_take(reply, "clock_suspect", bool),
    )
    if verdict.valid and (feature not in verdict.features or verdict.license_id is None):
        raise invalid("it calls a license valid that does not allow the feature, or none")
    if verdict.valid and product is not None and verdict.product != product:
        raise invalid("it names a license of another product")
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
        raise invalid("its nonce is not the one that was sent")
    found = []
    last = after
    for entry in _take(reply, "licenses", list):
        if not isinstance(entry, dict):
            raise invalid("licenses hold something else than maps")
        license_id = _take(entry, "license", str)
        if license_id <= last:
            raise invalid("licenses are not in the order of their ids")
        last = license_id
        begins_at = _take(entry, "begins_at", int, optional=True)
        found.append(HeldLicense(license_id, **_text_of_license(entry), begins_at=begins_at))
    following: str | None = _take(reply, "next", str, optional=True)
    if following is not None and (not found or following != last or len(following) > MAX_LICENSE_ID_CHARS):
        raise invalid("next is not the id of its last license")
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
        raise invalid("its count_id is not the one that was sent")
    reason = _take(reply, "reason", str)
    found = UsageCount(
        counted=_take(reply, "counted", bool),
        repeated=_take(reply, "repeated", bool),
        reason=LicenseReason(reason) if reason in LicenseReason._value2member_map_ else reason,
        license_id=_take(reply, "license", str, optional=True),
        count_id=count_id,
    )
    if found.counted != (reason == LicenseReason.OK) or (found.repeated and not found.counted):
        raise invalid("counted, repeated and reason contradict each other")
    if found.counted and not found.repeated and found.license_id is None:
        raise invalid("it counts for no license")
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
        raise invalid("an update waits and has no name, or none waits and it has one")
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
        raise invalid("it is the newer token of another license")
    if token is None:
        return None
    # An issuer's token has no blanks; what has some would be another token once it is read back from a file.
    if not 0 < len(token) <= MAX_TOKEN_CHARS or not all("!" <= character <= "~" for character in token):
        raise invalid("its token has blanks, or is no ASCII text, or is too long")
    return token


def agent_info_from(reply: dict[str, Any]) -> AgentInfo:
    """The values in a reply to `agent_info`."""
    versions = _take(reply, "protocol_versions", list)
    if not all(type(version) is int for version in versions):
        raise invalid("protocol_versions are not numbers")
    return AgentInfo(
        agent_id=_take(reply, "agent_id", str),
        agent_version=_take(reply, "agent_version", str),
        protocol_versions=tuple(versions),
        degraded=_take(reply, "degraded", bool),
        time=_take(reply, "time", int),
    )
