"""Reads `[fleet]` of the configuration: what the machine's fleet may set here, and within which bounds. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from contracts.contact.configuration import BOUNDS, NAMES
from settings.sections import Key, Keys
from settings.values import BadValue

DEFAULT_ACCEPT = frozenset(NAMES) - {"updates.consent", "updates.consent_last", "alerts.min_severity"}
"""What a fleet may set where the file does not say: nothing that takes the shop's word away, or keeps an alert from people."""
DEFAULT_LIMITS: Mapping[str, tuple[int, int]] = {
    **BOUNDS,
    "updates.notice_h": (24, 720),
    "backup.overdue_hours": (1, 168),
    "agent.contact_interval": (300, 4 * 3600),
    "certificates.renew_days_before": (3, 365),
}


@dataclass(frozen=True, slots=True)
class FleetConfig:
    """`[fleet]`: what the fleet may set on this machine.

    Attributes:
        accept: the members that it may set, also where this file has a value; None for `DEFAULT_ACCEPT`, without those that
            this file has a value for.
        limits: bounds of members that are numbers, by their names; others have `DEFAULT_LIMITS`.
    """

    accept: tuple[str, ...] | None = None
    limits: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def refusal(self, name: str, given: frozenset[str]) -> str:
        """Why a member may not be set; empty if it may.

        Args:
            name: of the member.
            given: the keys that the file has, as `section.key`.
        """
        if self.accept is not None:
            return "" if name in self.accept else "[fleet] accept of this machine does not name it"
        if name not in DEFAULT_ACCEPT:
            return "this machine accepts it only if [fleet] accept names it"
        return "this machine's own file sets it" if name in given else ""

    def bounds(self, name: str) -> tuple[int, int]:
        """Least and greatest value of a member that is a number."""
        return self.limits.get(name, DEFAULT_LIMITS[name])


def _accept(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(each in NAMES for each in value) or len(set(value)) != len(value):
        raise BadValue(f"must be a list, each once, of: {', '.join(NAMES)}")
    return tuple(value)


def _limits(value: Any) -> dict[str, tuple[int, int]]:
    form = 'must be a table such as { "updates.notice_h" = [24, 72] }'
    if not isinstance(value, Mapping):
        raise BadValue(form)
    found: dict[str, tuple[int, int]] = {}
    for name, bounds in value.items():
        if name not in BOUNDS:
            raise BadValue(f"{form}; {name!r} has no bounds, these have: {', '.join(BOUNDS)}")
        least, most = BOUNDS[name]
        numbers = isinstance(bounds, list) and len(bounds) == 2 and all(type(each) is int for each in bounds)
        if not numbers or not least <= bounds[0] <= bounds[1] <= most:
            raise BadValue(f"{form}; the two numbers of {name!r} lie within {least} and {most}, the lower one first")
        found[name] = (bounds[0], bounds[1])
    return found


FLEET_KEYS: Keys = {"accept": Key(_accept), "limits": Key(_limits)}
