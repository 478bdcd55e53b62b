"""Defines what the agent answers a POS application: verdicts, licenses, counts, an update that waits. Types only."""

from dataclasses import dataclass, field
from enum import StrEnum


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
