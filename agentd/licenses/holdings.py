"""Judges all licenses that the inventory holds, and keeps the result for as long as it holds. In memory only.

The inventory is not trusted: each token is validated, and what a license says is read from the token alone. A license whose
secret is gone is left out once it has not been used here for 90 days (`inventory.KEPT_S`): another one has taken its place.
"""

from agentd.secrets.ring import FOREVER
from ipc.answers import LicenseReason

from .choice import Held, HeldLicenses
from .seats import Floating
from .validator import Entry, Validator


class Holdings:
    """The licenses of this machine.

    Args:
        validator: judges their tokens.
    """

    def __init__(self, validator: Validator) -> None:
        self._validator = validator
        self._kept = HeldLicenses(())
        self._judged_at = (-1, -1)
        self._since = self._until = 0

    def at(self, now: int) -> HeldLicenses:
        """The licenses as they are judged at a time, seconds since 1970 UTC."""
        judged = (self._validator.ring.epoch, self._validator.inventory.changes)
        if self._judged_at != judged or not self._since <= now < self._until:
            self._judge(now)
        return self._kept

    def _judge(self, now: int) -> None:
        validator = self._validator
        ring, inventory = validator.ring, validator.inventory
        judged, used = (ring.epoch, inventory.changes), set(inventory.licenses())
        # What time does to the secrets decides about licenses that cannot be opened.
        until = min((ring.standing(stored, now).next_change for stored in ring.versions), default=FOREVER)
        found = []
        for license_id, token in inventory.tokens():
            entry = validator.look(token, now)
            if entry.claims is not None:
                until = min(until, entry.ruling.until)
            held = _held(license_id, entry)
            if held is not None and (held.reason is not LicenseReason.SECRET_INVALIDATED or license_id in used):
                found.append(held)
        # A floating license answers where no seat of it does: a contact may bring one.
        for license_id, floating in validator.seats.without(now, {license_id for license_id, _token in inventory.tokens()}):
            found.append(_without_seat(license_id, floating))
            until = min(until, floating.expires)
        ends = validator.seats.next_end(now)
        until = until if ends is None else min(until, ends)
        self._kept = HeldLicenses(found)
        self._judged_at, self._since, self._until = judged, now, until


def _without_seat(license_id: str, floating: Floating) -> Held:
    metadata = {} if floating.product is None else {"product": floating.product}
    return Held(license_id, LicenseReason.NO_SEAT, True, None, floating.expires, floating.features, metadata)


def _held(license_id: str, entry: Entry) -> Held | None:
    """A license of the inventory; None where its token is of another license."""
    ruling, claims = entry.ruling, entry.claims
    verdict = ruling.verdict
    reason = LicenseReason.SUSPENDED if ruling.suspended else LicenseReason(verdict.reason.value)
    if claims is None:
        return Held(license_id, reason, secret_version=ruling.secret_version, secret_state=verdict.secret_state)
    if claims.jti != license_id:
        return None
    return Held(
        license_id,
        reason,
        True,
        claims.nbf,
        claims.exp,
        claims.features,
        claims.metadata or {},
        ruling.secret_version,
        verdict.secret_state,
    )
