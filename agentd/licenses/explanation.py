"""Explains a verdict: the result of each check that `verdict.CHECKS` numbers, and the facts that it went by. Performs no IO.

The first check that fails decides, as in `validator`. Those after it are judged too where the facts for them are known, so that
who fixes the first reason learns of the second. Never holds a token, a secret or what the issuer attached to a license.
"""

from typing import Any, Final

from agentd.base.errors import NoSuchLicense
from contracts.jose import MalformedToken
from contracts.licensetoken import SealedToken, parse_token
from ipc.answers import LicenseReason, Reason

from .seats import Floating
from .validator import Entry, Validator
from .verdict import CHECKS, failing

PASSED: Final = "passed"
FAILED: Final = "failed"
UNKNOWN: Final = "unknown"
"""The check could not be made: an earlier one has failed, or there is no token."""

_NUMBER = {reason: number for number, (reason, _text) in enumerate(CHECKS, 1)}
_REVOKED, _LAST = _NUMBER[Reason.REVOKED], len(CHECKS)


def explain_token(validator: Validator, token: str, now: int) -> dict[str, Any]:
    """Why a token is valid or not at a time, seconds since 1970 UTC."""
    return _explained(validator, token, now, "given", None)


def explain_license(validator: Validator, license_id: str, now: int) -> dict[str, Any]:
    """Why the newest token here of a license is valid or not; for a floating license, that of the machine's seat of it.

    Raises:
        NoSuchLicense: nothing here names the license.
    """
    inventory, floating = validator.inventory, validator.seats.page.floating.get(license_id)
    token = inventory.newest(license_id)
    if token is None and floating is not None and floating.seat:
        token = inventory.newest(floating.seat)
    if token is not None:
        return _explained(validator, token, now, "kept", license_id)
    refused = license_id in validator.refused
    if not refused and floating is None and license_id not in inventory.licenses():
        # Without the id: the text is logged, and what was given may be anything.
        raise NoSuchLicense("this machine knows no license with this id")
    results = dict.fromkeys(range(1, _LAST + 1), UNKNOWN)
    results[_REVOKED] = FAILED if refused else PASSED
    results[_LAST] = FAILED if now >= validator.fresh_until else PASSED
    reason = LicenseReason.REVOKED if refused else LicenseReason.NO_SEAT if floating is not None else LicenseReason.NO_LICENSE
    return {
        **_facts(validator, license_id, now),
        "token": None,
        "reason": reason.value,
        "check": _REVOKED if refused else None,
        "checks": _listed(results),
        "audience": None,
        "secret": None,
        "begins_at": None,
        "expires_at": None if floating is None else floating.expires,
        "features": [],
        "newest": None,
    }


def _explained(validator: Validator, token: str, now: int, which: str, asked: str | None) -> dict[str, Any]:
    entry = validator.look(token, now)
    try:
        sealed = parse_token(token)
    except MalformedToken:
        sealed = None
    claims = entry.claims
    license_id = claims.jti if claims is not None else asked or validator.inventory.license_of(token)
    results = _results(validator, sealed, entry, now, None if license_id is None else license_id in validator.refused)
    return {
        **_facts(validator, license_id, now),
        "token": which,
        "reason": entry.ruling.verdict.reason.value,
        "check": next((number for number, result in results.items() if result == FAILED), None),
        "checks": _listed(results),
        "audience": None if sealed is None else sealed.agent_id,
        "secret": None if sealed is None else _secret(validator, sealed.version, now),
        "begins_at": None if claims is None else claims.nbf,
        "expires_at": None if claims is None else claims.exp,
        "features": [] if claims is None else list(claims.features),
        "newest": _newest(validator, token, license_id, now),
    }


def _results(validator: Validator, sealed: SealedToken | None, entry: Entry, now: int, refused: bool | None) -> dict[int, str]:
    """The result of each check by its number, in order."""
    claims, ring = entry.claims, validator.ring
    ours = None if sealed is None else sealed.agent_id == validator.agent_id
    stored = ring.find(sealed.version) if sealed is not None and ours else None
    passes = None if stored is None else ring.passes(stored, now)
    opened = True if claims is not None else False if passes else None
    later: dict[Reason, bool | None] = {
        Reason.REVOKED: refused,
        Reason.NOT_YET_VALID: None,
        Reason.EXPIRED: None,
        Reason.REVOCATIONS_STALE: now >= validator.fresh_until,
    }
    if claims is not None:
        fails = set(failing(claims, now, validator.refused, validator.fresh_until, validator.ahead))
        later = {reason: reason in fails for reason in later}
    fine = (sealed is not None, ours, stored is not None if ours else None, passes, opened)
    # Of the later ones it is known whether they fail.
    every = (*fine, *(None if fails is None else not fails for fails in later.values()))
    return {number: UNKNOWN if good is None else PASSED if good else FAILED for number, good in enumerate(every, 1)}


def _listed(results: dict[int, str]) -> list[dict[str, Any]]:
    return [
        {"number": number, "name": reason.value, "result": results[number]} for number, (reason, _text) in enumerate(CHECKS, 1)
    ]


def _secret(validator: Validator, version: int, now: int) -> dict[str, Any]:
    """The secret version that a token names; without state and dates where the agent does not hold it."""
    ring = validator.ring
    stored, newest = ring.find(version), ring.newest_number
    standing = None if stored is None else ring.standing(stored, now)
    return {
        "version": version,
        "newest": newest,
        "state": None if standing is None else standing.state.value,
        "grace_until": None if standing is None else standing.grace_until,
        "invalidated_at": None if stored is None else stored.meta.invalidated_at,
    }


def _newest(validator: Validator, token: str, license_id: str | None, now: int) -> dict[str, Any] | None:
    """What the agent has besides the token itself."""
    newest = None if license_id is None else validator.inventory.newest(license_id)
    if newest is None or newest == token:
        return None
    ruling = validator.look(newest, now).ruling
    return {"reason": ruling.verdict.reason.value, "secret_version": ruling.secret_version}


def _facts(validator: Validator, license_id: str | None, now: int) -> dict[str, Any]:
    """What is known of a license without its token, and what holds for all of them."""
    lists, withheld = validator.revocations, validator.withheld
    words = {"suspended": withheld.suspended, "removed": withheld.removed, "given_back": withheld.given_back}
    return {
        "license": license_id,
        "agent_id": validator.agent_id,
        "time": now,
        "latest_time": now + validator.ahead,
        "revoked": None if license_id is None else license_id in lists.revoked,
        "withheld": next((word for word, names in words.items() if license_id in names), None),
        "revocations": {
            "number": lists.number,
            "until": lists.next_update,
            "stale": lists.stale(now),
            "refuses": now >= validator.fresh_until,
        },
        "seat": _seat(validator, license_id),
    }


def _seat(validator: Validator, license_id: str | None) -> dict[str, Any] | None:
    """The floating license that an id names, or whose seat it names, with this machine's seat of it."""
    if not license_id:
        return None
    for name, each in validator.seats.page.floating.items():
        if license_id in (name, each.seat):
            return {"floating": name, "offered": each.offered, **_lease(each)}
    return None


def _lease(each: Floating) -> dict[str, Any]:
    if not each.seat:
        return {"seat": None, "renewed_from": None, "ends": None}
    return {"seat": each.seat, "renewed_from": each.lease_until, "ends": each.grace_until}
