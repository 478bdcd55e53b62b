"""Verdicts. Pure: claims, secret states and a time in; a verdict, and for how long it holds, out."""

from collections.abc import Set
from typing import Final

import msgspec

from agentd.secrets.lifecycle import Limits, State, grace_until, next_change, state_at
from contracts.claims import Claims
from hwsec.storeformat import VersionMeta
from ipc.clientwire import Reason

FOREVER: Final = 2**62


class Verdict(msgspec.Struct, frozen=True):
    """What a POS application is told, and what the audit says of it; field meanings as in `ipc.clientwire.Verdict`.

    Attributes:
        jti: the license; None where the token could not be opened.
        secret_version: as the token's header names it; None where it could not be read.
    """

    valid: bool
    reason: Reason
    expires_at: int | None = None
    features: tuple[str, ...] = ()
    metadata: dict[str, str] | None = None
    secret_state: str | None = None
    reissue_due: bool = False
    refresh_by: int | None = None
    refreshed: bool = False
    jti: str | None = None
    secret_version: int | None = None


class Ruling(msgspec.Struct, frozen=True):
    """A verdict and the times between which it stays the same (until excluded)."""

    verdict: Verdict
    since: int
    until: int


def refusal(reason: Reason, version: int | None = None, state: State | None = None, *, refreshed: bool = False) -> Verdict:
    """A verdict on a token that was not opened."""
    return Verdict(
        valid=False,
        reason=reason,
        secret_state=None if state is None else state.value,
        reissue_due=state is State.INVALIDATED,
        refreshed=refreshed,
        secret_version=version,
    )


def secret_reason(meta: VersionMeta, newest: bool, state: State) -> Reason:
    """Why a secret does not carry a license: it was given up, or the server has been out of reach for too long."""
    if state is not State.INVALIDATED:
        return Reason.OK
    if newest and State(meta.state) is State.ACTIVE:
        return Reason.DEGRADED_EXPIRED
    return Reason.SECRET_INVALIDATED


def judge(
    claims: Claims,
    meta: VersionMeta,
    newest: bool,
    now: int,
    limits: Limits,
    revoked: Set[str],
    newer_token: bool,
    fresh_until: int = FOREVER,
) -> Ruling:
    """The verdict on an opened license.

    A valid license is one inside nbf and exp, not revoked, whose secret is not past its grace_until.

    Args:
        claims: of the license.
        meta: of the secret version that opened it.
        newest: whether that is the newest version.
        now: seconds since 1970 UTC.
        limits: what the configuration shortens.
        revoked: ids of revoked licenses.
        newer_token: the agent holds a newer token of this license.
        fresh_until: from then on the revocation list is too old to be gone by.
    """
    state = state_at(meta, now, limits)
    reason = secret_reason(meta, newest, state)
    if reason is Reason.OK:
        if claims.jti in revoked:
            reason = Reason.REVOKED
        elif now < claims.nbf:
            reason = Reason.NOT_YET_VALID
        elif now >= claims.exp:
            reason = Reason.EXPIRED
        elif now >= fresh_until:
            reason = Reason.REVOCATIONS_STALE
    valid = reason is Reason.OK
    superseded = not newest or state is State.INVALIDATED
    verdict = Verdict(
        valid=valid,
        reason=reason,
        expires_at=claims.exp,
        features=claims.features if valid else (),
        metadata=claims.metadata if valid else None,
        secret_state=state.value,
        reissue_due=superseded,
        refresh_by=grace_until(meta, limits) if superseded and state is not State.INVALIDATED else None,
        refreshed=newer_token,
        jti=claims.jti,
        secret_version=meta.version,
    )
    times = (claims.nbf, claims.exp, fresh_until, next_change(meta, now, limits))
    changes = [time for time in times if time is not None and time > now]
    return Ruling(verdict, now, min(changes, default=FOREVER))
