"""What may be wrong with a fleet, how bad that is, and by which thresholds it is judged. Pure."""

from datetime import UTC, tzinfo
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from common.zones import UnknownZone, zone_of
from server.base.errors import Invalid


class Severity(StrEnum):
    """How soon somebody should look. In their order."""

    INFO = "info"
    """Worth knowing."""
    WARNING = "warning"
    """Somebody should look during the day."""
    CRITICAL = "critical"
    """Somebody should look now."""

    @property
    def rank(self) -> int:
        """Its place in the order, from 0."""
        return tuple(Severity).index(self)


class Kind(StrEnum):
    """What an alert is about."""

    ERROR_RATE = "error-rate"
    """The share of contacts that fail is above a threshold."""
    LATENCY = "latency"
    """Answers to the fleet's devices take longer than a threshold."""
    LATE = "late"
    """The share of devices that have left out a contact is above a threshold."""
    ODD_ERROR_RATE = "unusual-error-rate"
    ODD_LATENCY = "unusual-latency"
    ODD_LATE = "unusual-late"
    FEW_CONTACTS = "few-contacts"
    """Far fewer devices contact the server than usual at that time of the week."""
    MANY_CONTACTS = "many-contacts"


Share = Annotated[float, Meta(gt=0, le=1)]
Seconds = Annotated[float, Meta(gt=0, le=5)]
"""At most the last bound of the latency's buckets: longer ones all count as that."""


class Shares(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Shares, 0 to 1, from which on a condition is a warning, and critical; None for never."""

    warning: Share | None = None
    critical: Share | None = None


class Latencies(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Latencies in seconds, from which on a condition is a warning, and critical; None for never."""

    warning: Seconds | None = None
    critical: Seconds | None = None


class Thresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """By what a fleet is judged.

    Attributes:
        error_rate: of the contacts in the window.
        latency_p95_s: of the contacts in the window; 2 s is what the server promises (OP-08).
        late: share of devices that have left out a contact. Without a threshold by default: shops switch tills off at night.
        window: number of intervals that are judged together.
        raise_after: judgments in a row that find a condition before its alert is raised.
        clear_after: judgments in a row that do not before it is cleared.
        min_contacts: contacts in the window below which rates and latencies are not judged.
        anomalies: whether the fleet is compared with its own past.
        sensitivity: how many times the usual spread a value is away from the usual one before it is unusual.
        zone: IANA time zone of the fleet, for "this time of the week".
    """

    error_rate: Shares = Shares(0.05, 0.2)
    latency_p95_s: Latencies = Latencies(2.0, 4.0)
    late: Shares = Shares()
    window: Annotated[int, Meta(ge=1, le=24)] = 6
    raise_after: Annotated[int, Meta(ge=1, le=48)] = 3
    clear_after: Annotated[int, Meta(ge=1, le=48)] = 6
    min_contacts: Annotated[int, Meta(ge=5, le=100_000)] = 20
    anomalies: bool = True
    sensitivity: Annotated[float, Meta(ge=3, le=20)] = 6.0
    zone: Annotated[str, Meta(max_length=64)] = "UTC"


def thresholds_of(text: str) -> Thresholds:
    """Thresholds from JSON, as they are stored or asked for; what is left out is as it is by default.

    Raises:
        Invalid: the text has another form, or a value is out of bounds.
    """
    try:
        found = msgspec.json.decode(text, type=Thresholds)
    except msgspec.DecodeError as problem:
        raise Invalid(f"these thresholds cannot be used: {problem}") from None
    for name in ("error_rate", "latency_p95_s", "late"):
        pair: Shares | Latencies = getattr(found, name)
        if pair.warning is not None and pair.critical is not None and pair.critical <= pair.warning:
            raise Invalid(f"{name}: 'critical' ({pair.critical:g}) must be greater than 'warning' ({pair.warning:g})")
    zone_for(found)
    return found


def zone_for(thresholds: Thresholds) -> tzinfo:
    """The time zone of thresholds; UTC needs no file. Raises Invalid: this machine does not know it."""
    if thresholds.zone == "UTC":
        return UTC
    try:
        return zone_of(thresholds.zone)
    except UnknownZone as problem:
        raise Invalid(f"'zone' {problem}") from None


def text_of(thresholds: Thresholds) -> str:
    """Thresholds as they are stored."""
    return msgspec.json.encode(thresholds).decode()
