"""Judges an opened license: claims, the standing of its secret and a time in; a ruling and how long it holds out.

Performs no IO.

Every check of a token is numbered here in the order in which it is made; `CHECKS` is that list. `validator` makes checks 1 to
5, which need the token itself, and `failing` makes 6 to 9.
"""

from collections.abc import Iterator, Set
from typing import Any

import msgspec

from agentd.secrets.lifecycle import State
from agentd.secrets.ring import FOREVER, Standing
from contracts.claims import Claims
from ipc.answers import Reason, Verdict

CHECKS: tuple[tuple[Reason, str], ...] = (
    (Reason.MALFORMED, "the token is not of the form that `contracts.licensetoken` defines"),
    (Reason.WRONG_AUDIENCE, "its header names another agent"),
    (Reason.UNKNOWN_SECRET, "the agent holds no secret version with the header's number"),
    (Reason.SECRET_INVALIDATED, "that version was invalidated, or its grace ended; or DEGRADED_EXPIRED: it is the newest"
     " and its grace ended without a successor"),
    (Reason.BAD_SIGNATURE, "the secret does not decrypt the token, or no license key of the server signed it; or MALFORMED or"
     " WRONG_AUDIENCE by the claims inside"),
    (Reason.REVOKED, "the revocation list names the license, or the server has suspended it or taken it from this machine"),
    (Reason.NOT_YET_VALID, "`nbf` is later than it can be"),
    (Reason.EXPIRED, "`exp` has passed"),
    (Reason.REVOCATIONS_STALE, "the revocation list is out of date and the configuration says to refuse then"),
)  # fmt: skip
"""The reason that each check gives, in order; the first check that fails decides."""


class Ruling(msgspec.Struct, frozen=True):
    """A verdict, what the audit log says with it, and the times between which it stays the same.

    Attributes:
        verdict: what the POS application gets, except the flags `degraded` and `clock_suspect`.
        license_id: the license; None where the token could not be opened.
        secret_version: as the token's header names it; None where it could not be read.
        since: seconds since 1970 UTC.
        until: the first second at which the verdict may be another.
        suspended: the reason is `revoked`, and the server may take it back.
    """

    verdict: Verdict
    license_id: str | None = None
    secret_version: int | None = None
    since: int = 0
    until: int = 0
    suspended: bool = False

    def audit_fields(self) -> dict[str, Any]:
        """What a record says of the verdict; never the token."""
        fields = {
            "license": self.license_id,
            "secret_version": self.secret_version,
            "secret_state": self.verdict.secret_state,
            "expires_at": self.verdict.expires_at,
        }
        return {**fields, "suspended": True} if self.suspended else fields


def refusal(reason: Reason, version: int | None = None, state: State | None = None, *, refreshed: bool = False) -> Ruling:
    """The ruling on a token that was not opened."""
    verdict = Verdict(
        valid=False,
        reason=reason,
        secret_state=None if state is None else state.value,
        reissue_due=state is State.INVALIDATED,
        refreshed=refreshed,
    )
    return Ruling(verdict, None, version)


def failing(claims: Claims, now: int, revoked: Set[str], fresh_until: int, ahead: int) -> Iterator[Reason]:
    """The reasons of those of checks 6 to 9 that fail, in order; arguments as for `judge`."""
    if claims.jti in revoked:  # check 6
        yield Reason.REVOKED
    if now + ahead < claims.nbf:  # check 7
        yield Reason.NOT_YET_VALID
    if now >= claims.exp:  # check 8
        yield Reason.EXPIRED
    if now >= fresh_until:  # check 9
        yield Reason.REVOCATIONS_STALE


def judge(
    claims: Claims,
    version: int,
    standing: Standing,
    now: int,
    revoked: Set[str],
    newer_token: bool,
    fresh_until: int = FOREVER,
    until: int = FOREVER,
    ahead: int = 0,
    suspended: Set[str] = frozenset(),
) -> Ruling:
    """The ruling on an opened license.

    A valid license is one inside `nbf` and `exp`, not revoked, whose secret is not past its `grace_until`.

    Args:
        claims: of the license.
        version: number of the secret version that opened it.
        standing: of that version at `now`.
        now: seconds since 1970 UTC.
        revoked: ids of revoked licenses.
        newer_token: the agent holds a newer token of this license.
        fresh_until: when the revocation list becomes too old to go by.
        until: the ruling holds no longer than this, for a reason of the caller's.
        ahead: how much later than `now` it may be, in seconds: a license that begins by then is not refused.
        suspended: those of `revoked` that the server may reinstate.
    """
    reason = standing.reason  # check 4 again: the token may have been opened in an earlier epoch
    if reason is Reason.OK:
        reason = next(failing(claims, now, revoked, fresh_until, ahead), Reason.OK)
    valid = reason is Reason.OK
    superseded = not standing.newest or standing.state is State.INVALIDATED
    verdict = Verdict(
        valid=valid,
        reason=reason,
        expires_at=claims.exp,
        features=claims.features if valid else (),
        metadata=claims.metadata if valid and claims.metadata is not None else {},
        secret_state=standing.state.value,
        reissue_due=superseded,
        refresh_by=standing.grace_until if superseded and standing.state is not State.INVALIDATED else None,
        refreshed=newer_token,
    )
    for change in (claims.nbf - ahead, claims.exp, fresh_until, standing.next_change):
        if now < change < until:
            until = change
    return Ruling(verdict, claims.jti, version, now, until, reason is Reason.REVOKED and claims.jti in suspended)
