"""Judges a fleet at the end of an interval: which conditions hold, how they stand now, and what its health is. Pure."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import tzinfo

import msgspec

from .anomalies import Usual, chance_of_count, chance_of_share, distance, past, samples, times, usual
from .intervals import INTERVAL_S
from .rules import Kind, Latencies, Severity, Shares, Thresholds
from .series import Series, Window, window
from .standings import Standing, Verdict, after

_FLOOR_SHARE, _FLOOR_LATE, _FLOOR_LATENCY_S, _FLOOR_CONTACTS = 0.005, 0.02, 0.05, 0.05
"""The least spreads: one failure in two hundred contacts, 2 % of the devices, 50 ms, and a twentieth of the usual contacts."""
Standings = dict[str, Standing]
"""By `key_of`."""


@dataclass(frozen=True, slots=True)
class Found:
    """One condition in one judgment.

    Attributes:
        kind: of the alert.
        severity: of the alert, if this condition raises it.
        verdict: whether the condition holds.
        value: what was measured; 0 if nothing was.
        bound: what it was compared with: the threshold, or where the unusual begins.
        usual: what is usual; None for a threshold.
    """

    kind: Kind
    severity: Severity
    verdict: Verdict
    value: float = 0.0
    bound: float = 0.0
    usual: float | None = None

    @property
    def key(self) -> str:
        """Its key among the standings."""
        return f"{self.kind}/{self.severity}"


class Health(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the last judgment found. Rates are None where too little was observed; those before them are of the window.

    Attributes:
        at: the end of the interval, seconds since 1970 UTC.
        contacts: devices that have contacted the server, in all intervals of the window together.
        error_rate: share of the contacts that failed.
        latency_p95_s: seconds.
        devices: in service.
        late_share: of the devices, those that have left out a contact.
        usual_contacts: what is usual at that time of the week; None without enough weeks.
        usual_error_rate: the same of the error rate.
        weeks: weeks that it was compared with.
    """

    at: int
    contacts: int
    error_rate: float | None
    latency_p95_s: float | None
    devices: int | None
    late_share: float | None
    usual_contacts: float | None = None
    usual_error_rate: float | None = None
    weeks: int = 0


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judgment comes to."""

    found: tuple[Found, ...]
    standings: Standings
    health: Health


def needed(at: int, thresholds: Thresholds, zone: tzinfo, step_s: int = INTERVAL_S) -> list[tuple[int, int]]:
    """Spans of the series that a judgment reads: first and last begin of each."""
    width_s = thresholds.window * step_s
    spans = [(at - width_s + step_s, at)]
    if thresholds.anomalies:
        spans += [(week[0] - width_s + step_s, week[-1]) for week in times(at, zone, width_s, step_s)]
    return spans


def judge(
    series: Series, thresholds: Thresholds, zone: tzinfo, standings: Mapping[str, Standing], at: int, step_s: int = INTERVAL_S
) -> Judgement:
    """Judges a fleet.

    Args:
        series: its observations, at least those of `needed`.
        thresholds: by what.
        zone: the one that the thresholds name.
        standings: how its conditions stood before; one that is missing is quiet.
        at: the begin of the interval that has ended.
        step_s: the length of an interval.
    """
    present = window(series, at, thresholds.window, step_s)
    found = list(_by_thresholds(present, thresholds))
    health = Health(
        at + step_s, present.contacts, present.error_rate if present.contacts >= thresholds.min_contacts else None,
        present.latency_p95_s if present.contacts >= thresholds.min_contacts else None, present.devices, present.late_share,
    )  # fmt: skip
    if thresholds.anomalies:
        odd, known = _by_past(series, present, thresholds, zone, at, step_s)
        found += odd
        health = msgspec.structs.replace(
            health,
            usual_contacts=None if known[0] is None else known[0].value,
            usual_error_rate=None if known[1] is None else known[1].value,
            weeks=0 if known[0] is None else known[0].weeks,
        )
    standing = {
        each.key: after(standings.get(each.key, Standing()), each.verdict, thresholds.raise_after, thresholds.clear_after)
        for each in found
    }
    return Judgement(tuple(found), standing, health)


def _by_thresholds(present: Window, thresholds: Thresholds) -> Iterator[Found]:
    enough = present.contacts >= thresholds.min_contacts
    measured: tuple[tuple[Kind, float | None, Shares | Latencies], ...] = (
        (Kind.ERROR_RATE, present.error_rate if enough else None, thresholds.error_rate),
        (Kind.LATENCY, present.latency_p95_s if enough else None, thresholds.latency_p95_s),
        (Kind.LATE, present.late_share, thresholds.late),
    )
    for kind, value, bounds in measured:
        for severity, bound in ((Severity.WARNING, bounds.warning), (Severity.CRITICAL, bounds.critical)):
            if bound is None:
                continue
            if value is None:
                yield Found(kind, severity, Verdict.UNKNOWN, bound=bound)
            else:
                yield Found(kind, severity, Verdict.BAD if value >= bound else Verdict.GOOD, value, bound)


def _by_past(
    series: Series, present: Window, thresholds: Thresholds, zone: tzinfo, at: int, step_s: int
) -> tuple[list[Found], tuple[Usual | None, Usual | None]]:
    least = thresholds.min_contacts
    weeks = past(series, at, zone, thresholds.window, step_s)

    def known(value: Callable[[Window], float | None], floor: float, chance: Callable[[float], float]) -> Usual | None:
        return usual(samples(weeks, value), floor, chance)

    def enough(value: Callable[[Window], float | None]) -> Callable[[Window], float | None]:
        return lambda each: value(each) if each.contacts >= least else None

    contacts = known(_contacts, 0.0, chance_of_count)
    if contacts is not None:
        contacts = replace(contacts, spread=max(contacts.spread, _FLOOR_CONTACTS * contacts.value))
        if contacts.value < least:
            contacts = None
    errors = known(enough(lambda each: each.error_rate), _FLOOR_SHARE, chance_of_share(present.contacts))
    latencies = known(enough(lambda each: each.latency_p95_s), _FLOOR_LATENCY_S, lambda _value: 0.0)
    late = known(lambda each: each.late_share, _FLOOR_LATE, chance_of_share(present.devices or 0))
    seen = float(present.contacts) if present.observed >= thresholds.window / 2 else None
    few = present.contacts < least
    late_now = None if present.devices is None or present.devices < least else present.late_share
    odd = (
        (Kind.FEW_CONTACTS, Severity.WARNING, -1, seen, contacts),
        (Kind.MANY_CONTACTS, Severity.INFO, 1, seen, contacts),
        (Kind.ODD_ERROR_RATE, Severity.WARNING, 1, None if few else present.error_rate, errors),
        (Kind.ODD_LATENCY, Severity.WARNING, 1, None if few else present.latency_p95_s, latencies),
        (Kind.ODD_LATE, Severity.WARNING, 1, late_now, late),
    )
    return [_odd(*each, thresholds.sensitivity) for each in odd], (contacts, errors)


def _contacts(each: Window) -> float:
    return float(each.contacts)


def _odd(kind: Kind, severity: Severity, direction: int, value: float | None, known: Usual | None, sensitivity: float) -> Found:
    if value is None or known is None:
        return Found(kind, severity, Verdict.UNKNOWN)
    bound = known.value + direction * sensitivity * known.spread
    verdict = Verdict.BAD if direction * distance(value, known) > sensitivity else Verdict.GOOD
    return Found(kind, severity, verdict, value, bound, known.value)
