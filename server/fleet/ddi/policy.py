"""Reads what a fleet's policy says of its devices that speak DDI: the member `ddi`."""

import json
from typing import Annotated

import msgspec
from msgspec import Meta
from sqlalchemy.orm import Session

from contracts.directive import Product
from server.base.ddisettings import MAX_POLL_S, MIN_POLL_S
from server.base.errors import NotFound
from server.fleet.fleets.membership import fleets_of
from server.registry import audit
from server.registry.models.fleets import Fleet

ATTRIBUTE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"
"""Of an attribute's name: what the selection of devices can name."""
Attribute = Annotated[str, Meta(pattern=ATTRIBUTE_PATTERN)]


class DdiPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a fleet's policy says under `ddi`.

    Attributes:
        versions: by product, the attribute whose value is the version that the device runs. A product that is not named has
            `PRODUCT.version`.
        confirm: whether a device must confirm a deployment before it is given to it.
        poll_s: how often a device asks, in seconds; None for what the server's settings say.
    """

    versions: Annotated[dict[Product, Attribute], Meta(max_length=16)] = {}
    confirm: bool = False
    poll_s: Annotated[int, Meta(ge=MIN_POLL_S, le=MAX_POLL_S)] | None = None

    def attribute_of(self, product: str) -> str:
        """The attribute that names the version of a product."""
        return self.versions.get(product, f"{product}.version")


def policy_of(fleet: Fleet | None) -> DdiPolicy:
    """The policy of a fleet; the usual one for no fleet, and where the fleet's says nothing of DDI."""
    content = {} if fleet is None else json.loads(fleet.policy or "{}")
    found = content.get("ddi") if isinstance(content, dict) else None
    try:
        return DdiPolicy() if found is None else msgspec.convert(found, DdiPolicy)
    except msgspec.ValidationError:
        # Who wrote it was told; a device that polls can do nothing about it, and gets what is safe: it has to confirm.
        return DdiPolicy(confirm=True)


def first_fleet(session: Session, device_id: str) -> Fleet | None:
    """The fleet that configures a device: that of the lowest rank. None if it is in no fleet."""
    found = fleets_of(session, device_id)
    return found[0] if found else None


def required_fleet(session: Session, fleet_id: str, *, lock: bool = False) -> Fleet:
    """A fleet. Raises NotFound."""
    fleet = session.get(Fleet, fleet_id, with_for_update=lock or None, populate_existing=lock)
    if fleet is None:
        raise NotFound(f"there is no fleet {fleet_id!r}; 'license-server fleets list' lists them")
    return fleet


def set_policy(session: Session, fleet_id: str, policy: DdiPolicy, now: int) -> None:
    """Replaces what a fleet's policy says of DDI; the rest of the policy stays. Raises NotFound."""
    fleet = required_fleet(session, fleet_id, lock=True)
    content = json.loads(fleet.policy or "{}")
    fleet.policy = json.dumps({**content, "ddi": msgspec.to_builtins(policy)}, separators=(",", ":"))
    fleet.updated_at, fleet.revision = now, fleet.revision + 1
    audit.record(
        session, audit.ADMIN, "ddi.policy_set", "ok", now, fleet=fleet_id, versions=policy.versions, confirm=policy.confirm,
        poll_s=policy.poll_s,
    )  # fmt: skip
