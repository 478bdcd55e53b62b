"""Acts on the monitoring of fleets: health, observations, thresholds, alerts and silences."""

from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field

from server.accounts.roles import Role
from server.acts.act import Act, Context, Form, Line, Listed, Number, PageForm, Time, VendorId, page, revision_tag
from server.fleet.fleets import fleets
from server.fleet.monitoring import alerts, rules, settings, silences, views
from server.fleet.monitoring.intervals import INTERVAL_S, interval_of
from server.fleet.monitoring.judgement import Health
from server.fleet.monitoring.latency import counts_of, quantile
from server.fleet.monitoring.rules import Kind
from server.registry.models.monitoring import FleetObservation, FleetWatch

AlertId = Annotated[str, Field(pattern=r"^fa-[0-9a-f]{12}$")]
SilenceId = Annotated[str, Field(pattern=r"^fs-[0-9a-f]{12}$")]
KindName = Literal[
    "error-rate", "latency", "late", "unusual-error-rate", "unusual-latency", "unusual-late", "few-contacts", "many-contacts"
]
_Share = Annotated[float, Field(gt=0, le=1, strict=False)]
_Seconds = Annotated[float, Field(gt=0, le=5, strict=False)]


class ShareBounds(Form):
    """Shares, 0 to 1, from which on something is a warning, and critical; null for never."""

    warning: _Share | None = None
    critical: _Share | None = None


class LatencyBounds(Form):
    """Seconds from which on a latency is a warning, and critical; null for never."""

    warning: _Seconds | None = None
    critical: _Seconds | None = None


class FleetThresholds(Form):
    """By what a fleet is judged. `late` is about devices that have left out a contact. `window` is in intervals of 5 minutes,
    `raise_after` and `clear_after` are judgments in a row; with fewer than `min_contacts` in it, rates and latencies are
    not judged. `anomalies` is the comparison with the past, at the same time of the week by `zone`.
    """

    fleet_id: str
    error_rate: ShareBounds
    latency_p95_s: LatencyBounds
    late: ShareBounds
    window: Number
    raise_after: Number
    clear_after: Number
    min_contacts: Number
    anomalies: bool
    sensitivity: float
    zone: str
    revision: Number


class OneFleetWatched(Form):
    """Which fleet."""

    fleet_id: VendorId


class SetThresholds(Form):
    """What is to be another of a fleet's thresholds; what is left out stays. Of a pair, both bounds are set."""

    fleet_id: VendorId
    error_rate: ShareBounds | None = None
    latency_p95_s: LatencyBounds | None = None
    late: ShareBounds | None = None
    window: Annotated[int, Field(ge=1, le=24)] | None = None
    raise_after: Annotated[int, Field(ge=1, le=48)] | None = None
    clear_after: Annotated[int, Field(ge=1, le=48)] | None = None
    min_contacts: Annotated[int, Field(ge=5, le=100_000)] | None = None
    anomalies: bool | None = None
    sensitivity: Annotated[float, Field(ge=3, le=20, strict=False)] | None = None
    zone: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9_+/-]+$")] | None = None


class FleetAlert(Form):
    """An alert; times are seconds since 1970 UTC. `value` was measured when it was raised or became more severe, `bound` is
    what that was compared with. `told` says whether it was sent to people: not while a silence covers it.
    """

    alert_id: str
    fleet_id: str
    kind: str
    severity: str
    state: str
    value: float
    bound: float
    detail: str
    told: bool
    raised_at: Time
    updated_at: Time
    acknowledged_at: Time | None
    acknowledged_by: str | None
    cleared_at: Time | None


class Condition(Form):
    """A condition that was found lately. `state`: suspect (not often enough yet), raised, or recovering."""

    kind: str
    severity: str
    state: str


class FleetHealth(Form):
    """How a fleet is, as of the last judgment at `at` (null before the first); rates are null where too little was observed.

    `contacts` counts devices in each interval of the window; `usual_contacts` and `usual_error_rate` are those of this time of
    the week in the `weeks` weeks before. Times are seconds since 1970 UTC.
    """

    fleet_id: str
    at: Time | None
    contacts: Number
    error_rate: float | None
    latency_p95_s: float | None
    devices: Number | None
    late_share: float | None
    usual_contacts: float | None
    usual_error_rate: float | None
    weeks: Number
    conditions: tuple[Condition, ...]
    alerts: tuple[FleetAlert, ...]


class Observation(Form):
    """What was observed of a fleet in the 5 minutes from `at` on, in seconds since 1970 UTC. `failed` counts the devices of
    `contacts` that failed at something; `updates` are devices that failed in rollouts.
    """

    at: Time
    contacts: Number
    failed: Number
    refused: Number
    rotations: Number
    updates: Number
    latency_p95_s: float | None
    devices: Number | None
    late: Number | None


class ObservationsForm(PageForm):
    """Of which fleet, the newest first."""

    fleet_id: VendorId
    after: Annotated[str, Field(max_length=16, pattern=r"^[0-9]*$")] = ""


class AlertsForm(PageForm):
    """Which alerts: those that are open, and with `cleared` those that are over, too."""

    fleet: VendorId | None = None
    cleared: Annotated[bool, Field(strict=False)] = False


class OneAlert(Form):
    """Which alert."""

    alert_id: AlertId


class SilenceForm(Form):
    """Which alerts are sent to nobody until `ends_at`, seconds since 1970 UTC: of one fleet or all, of one kind or all."""

    fleet_id: VendorId | None = None
    kind: KindName | None = None
    ends_at: Time
    comment: Line = ""


class Silence(Form):
    """A silence; times are seconds since 1970 UTC. It covers all fleets, or all kinds, where there is null."""

    silence_id: str
    fleet_id: str | None
    kind: str | None
    begins_at: Time
    ends_at: Time
    created_by: str
    comment: str


class SilencesForm(PageForm):
    """Which part of the silences."""


class OneSilence(Form):
    """Which silence."""

    silence_id: SilenceId


def health(context: Context, body: OneFleetWatched) -> FleetHealth:
    """Show how a fleet is: what the last judgment found, and its open alerts."""
    fleets.required(context.session, body.fleet_id)
    row = context.session.get(FleetWatch, body.fleet_id)
    found = None if row is None else views.health_of(row.health)
    standings = {} if row is None else views.standings_of(row.standings)
    conditions = []
    for key, standing in sorted(standings.items()):
        kind, _, severity = key.partition("/")
        if standing.state != "quiet":
            conditions.append(Condition(kind=kind, severity=severity, state=standing.state.value))
    rows = alerts.listed(context.session, "", len(Kind) + 1, body.fleet_id)
    facts: dict[str, Any] = dict.fromkeys(Health.__struct_fields__) | {"contacts": 0, "weeks": 0}
    facts |= {} if found is None else msgspec.structs.asdict(found)
    opened = tuple(map(_alert, rows))
    return FleetHealth(fleet_id=body.fleet_id, **facts, conditions=tuple(conditions), alerts=opened)


def observations(context: Context, body: ObservationsForm) -> Listed[Observation]:
    """List what was observed of a fleet in each interval of the last 90 days."""
    fleets.required(context.session, body.fleet_id)
    before = int(body.after) if body.after else interval_of(context.now) + INTERVAL_S
    rows = views.observations(context.session, body.fleet_id, before, body.limit + 1)
    items = tuple(map(_observation, rows[: body.limit]))
    return Listed(items=items, after=str(items[-1].at) if len(rows) > body.limit else None)


def thresholds(context: Context, body: OneFleetWatched) -> FleetThresholds:
    """Show by what a fleet is judged."""
    fleets.required(context.session, body.fleet_id)
    found, revision = settings.thresholds_for(context.session, body.fleet_id)
    return FleetThresholds.model_validate(
        {**msgspec.to_builtins(found), "fleet_id": body.fleet_id, "revision": revision}, strict=False
    )


def set_thresholds(context: Context, body: SetThresholds) -> FleetThresholds:
    """Set by what a fleet is judged from the next interval on."""
    fleets.required(context.session, body.fleet_id)
    changes = body.model_dump(exclude_none=False, exclude={"fleet_id"})
    given = {name: value for name, value in changes.items() if value is not None}
    settings.set_thresholds(context.session, body.fleet_id, given, context.now)
    return thresholds(context, OneFleetWatched(fleet_id=body.fleet_id))


def present(context: Context, body: SetThresholds) -> FleetThresholds:
    """The thresholds as they are."""
    return thresholds(context, OneFleetWatched(fleet_id=body.fleet_id))


def list_alerts(context: Context, body: AlertsForm) -> Listed[FleetAlert]:
    """List the alerts of fleets that are open."""
    if body.fleet is not None:
        fleets.required(context.session, body.fleet)
    rows = alerts.listed(context.session, body.after, body.limit + 1, body.fleet, cleared=body.cleared)
    items = tuple(map(_alert, rows[: body.limit]))
    return Listed(items=items, after=items[-1].alert_id if len(rows) > body.limit else None)


def show_alert(context: Context, body: OneAlert) -> FleetAlert:
    """Show an alert."""
    return _alert(alerts.required(context.session, body.alert_id))


def acknowledge(context: Context, body: OneAlert) -> FleetAlert:
    """Take note of an alert. It stays open until what it is about is over, and is raised again if that becomes worse."""
    return _alert(alerts.acknowledge(context.session, body.alert_id, context.caller.account, context.now))


def silence(context: Context, body: SilenceForm) -> Silence:
    """Send some alerts to nobody for a while. They are raised and listed; those still open at its end are sent then."""
    wish = silences.Wish(body.fleet_id, None if body.kind is None else Kind(body.kind), body.ends_at, body.comment)
    return _silence(silences.add(context.session, wish, context.caller.account, context.now))


def end_silence(context: Context, body: OneSilence) -> Silence:
    """End a silence now."""
    return _silence(silences.end(context.session, body.silence_id, context.now))


def list_silences(context: Context, body: SilencesForm) -> Listed[Silence]:
    """List the silences that have not ended."""
    rows = [_silence(row) for row in silences.listed(context.session, body.after, body.limit + 1, context.now)]
    return page(rows, Silence, body.limit, lambda row: str(row.silence_id))


def _observation(row: FleetObservation) -> Observation:
    return Observation(
        at=row.at, contacts=row.contacts, failed=row.failed, refused=row.refused, rotations=row.rotations, updates=row.updates,
        latency_p95_s=quantile(counts_of(row.latencies), 0.95), devices=row.devices, late=row.late,
    )  # fmt: skip


def _alert(row: Any) -> FleetAlert:
    names = set(FleetAlert.model_fields) - {"alert_id", "told"}
    return FleetAlert(alert_id=row.id, told=row.told is not None, **{name: getattr(row, name) for name in names})


def _silence(row: Any) -> Silence:
    names = set(Silence.model_fields) - {"silence_id"}
    return Silence(silence_id=row.id, **{name: getattr(row, name) for name in names})


assert set(KindName.__args__) == {kind.value for kind in rules.Kind}  # type: ignore[attr-defined]
_READ, _WRITE = "fleets:read", "fleets:write"
_SECURITY = frozenset({Role.SECURITY_OFFICER})
_FLEET, _ALERT = "/fleets/{fleet_id}", "/fleet-alerts/{alert_id}"

ACTS = (
    Act("fleets.health", _READ, Role.VIEWER, OneFleetWatched, FleetHealth, health, f"{_FLEET}/health", "GET"),
    Act(
        "fleets.observations", _READ, Role.VIEWER, ObservationsForm, Listed[Observation], observations,
        f"{_FLEET}/observations", "GET",
    ),
    Act(
        "fleets.thresholds", _READ, Role.VIEWER, OneFleetWatched, FleetThresholds, thresholds, f"{_FLEET}/thresholds", "GET",
        etag=revision_tag,
    ),
    Act(
        "fleets.set_thresholds", _WRITE, Role.SECURITY_OFFICER, SetThresholds, FleetThresholds, set_thresholds,
        f"{_FLEET}/thresholds", present=present, etag=revision_tag,
    ),
    Act("fleet_alerts.list", _READ, Role.VIEWER, AlertsForm, Listed[FleetAlert], list_alerts, "/fleet-alerts", "GET"),
    Act("fleet_alerts.show", _READ, Role.VIEWER, OneAlert, FleetAlert, show_alert, _ALERT, "GET"),
    Act(
        "fleet_alerts.acknowledge", _WRITE, Role.SUPPORT, OneAlert, FleetAlert, acknowledge, f"{_ALERT}/acknowledge",
        also=_SECURITY,
    ),
    Act("fleet_alerts.silence", _WRITE, Role.SUPPORT, SilenceForm, Silence, silence, "/fleet-silences", also=_SECURITY),
    Act("fleet_alerts.silences", _READ, Role.VIEWER, SilencesForm, Listed[Silence], list_silences, "/fleet-silences", "GET"),
    Act(
        "fleet_alerts.end_silence", _WRITE, Role.SUPPORT, OneSilence, Silence, end_silence, "/fleet-silences/{silence_id}/end",
        also=_SECURITY,
    ),
)  # fmt: skip
