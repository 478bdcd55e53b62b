"""A fleet's observations as a series, and what they amount to over several intervals. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .intervals import INTERVAL_S
from .latency import added, quantile


@dataclass(frozen=True, slots=True)
class Point:
    """What was observed in one interval. An interval without a point was not observed, and is a gap.

    Attributes:
        contacts: devices that have contacted the server.
        failed: devices that have failed at something.
        latencies: counts by the bounds of `latency`.
        devices: in service; None if nobody has counted at the time.
        late: of those, the ones that have left out a contact.
    """

    contacts: int
    failed: int
    latencies: Sequence[int]
    devices: int | None = None
    late: int | None = None


Series = Mapping[int, Point]
"""Points by the begin of their intervals, seconds since 1970 UTC."""


@dataclass(frozen=True, slots=True)
class Window:
    """What several intervals amount to.

    Attributes:
        observed: intervals that there is a point for.
        contacts: contacts in all of them.
        error_rate: failed devices by contacts, 0 to 1; None without contacts.
        latency_p95_s: of 20 contacts, 19 took at most that long, in seconds; None without contacts.
        devices: in service, at the last count; None without one.
        late_share: of those, the share that has left out a contact, on average of the counts; None without one.
    """

    observed: int
    contacts: int
    error_rate: float | None
    latency_p95_s: float | None
    devices: int | None
    late_share: float | None


def window(series: Series, at: int, width: int, step_s: int = INTERVAL_S) -> Window:
    """What the intervals up to one amount to, that one with them.

    Args:
        series: the fleet's.
        at: the begin of the last interval.
        width: number of intervals.
        step_s: the length of an interval.
    """
    found = [point for n in range(width) if (point := series.get(at - n * step_s)) is not None]
    contacts = sum(point.contacts for point in found)
    failed = sum(point.failed for point in found)
    counted = [(point.devices, point.late or 0) for point in found if point.devices is not None]
    devices = sum(each for each, _late in counted)
    return Window(
        observed=len(found),
        contacts=contacts,
        error_rate=min(failed / contacts, 1.0) if contacts else None,
        latency_p95_s=quantile(added(point.latencies for point in found), 0.95),
        devices=counted[0][0] if counted else None,
        late_share=sum(late for _devices, late in counted) / devices if devices else None,
    )
