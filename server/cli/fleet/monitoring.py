"""Commands for the monitoring of fleets; they belong to the group `fleets`."""

from pathlib import Path
from typing import Any

import click

from common.text import quantity, shown
from server.cli.base.acting import asking, listed, perform
from server.cli.base.listing import limit_option, show_one, show_pages
from server.cli.base.options import TimeType, json_option, members, reason_option, utc, where_option
from server.fleet.monitoring.rules import Kind

_PAIRS = ("error_rate", "latency_p95_s", "late")
_kind_option = click.option("--kind", type=click.Choice([each.value for each in Kind]), help="Only alerts of this kind.")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.3g} %"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} s"


def _facts(facts: list[tuple[str, object]]) -> None:
    click.echo(shown("\n".join(f"{name + ':':<16}{value}" for name, value in facts)))


@click.command("health")
@where_option
@click.argument("fleet_id", metavar="FLEET")
@json_option
def fleets_health(directory: Path | None, fleet_id: str, as_json: bool) -> None:
    """Print how FLEET is: what the last judgment found, and its open alerts."""
    found = perform("fleets.health", directory, fleet_id=fleet_id)
    if as_json:
        show_one(found, as_json)
        return
    if found.at is None:
        click.echo("not judged yet: the server judges each fleet every 5 minutes", err=True)
        return
    usual = "" if found.usual_contacts is None else f", usual are {found.usual_contacts:.0f}"
    usual_rate = "" if found.usual_error_rate is None else f", usual are {_percent(found.usual_error_rate)}"
    devices = "-" if found.devices is None else f"{found.devices}, {_percent(found.late_share)} of them late"
    _facts(
        [
            ("judged", utc(found.at)),
            ("contacts", f"{found.contacts}{usual}"),
            ("failed", f"{_percent(found.error_rate)}{usual_rate}"),
            ("latency (p95)", _seconds(found.latency_p95_s)),
            ("devices", devices),
            ("compared with", quantity(found.weeks, "week")),
        ]
    )
    for each in found.conditions:
        click.echo(f"{each.severity}: {each.kind} is {each.state}")
    for each in found.alerts:
        click.echo(shown(f"{each.alert_id} {each.severity} {each.state} since {utc(each.raised_at)}: {each.detail}"))


@click.command("observations")
@where_option
@click.argument("fleet_id", metavar="FLEET")
@limit_option
@json_option
def fleets_observations(directory: Path | None, fleet_id: str, limit: int | None, as_json: bool) -> None:
    """List what was observed of FLEET in each 5 minutes of the last 90 days, the newest first."""

    def line(row: Any) -> tuple[object, ...]:
        devices = ("-", "-") if row.devices is None else (row.devices, row.late)
        return (
            utc(row.at),
            row.contacts,
            row.failed,
            row.refused,
            row.rotations,
            row.updates,
            _seconds(row.latency_p95_s),
            *devices,
        )

    headers = ("from", "contacts", "failed", "refused", "rotations", "updates", "latency (p95)", "devices", "late")
    show_pages(listed("fleets.observations", directory, limit, fleet_id=fleet_id), headers, line, as_json, members)


@click.group("thresholds")
def thresholds() -> None:
    """By what a fleet is judged: thresholds, and how many judgments raise an alert and clear it."""


@thresholds.command("show")
@where_option
@click.argument("fleet_id", metavar="FLEET")
@json_option
def thresholds_show(directory: Path | None, fleet_id: str, as_json: bool) -> None:
    """Print by what FLEET is judged."""
    _show_thresholds(perform("fleets.thresholds", directory, fleet_id=fleet_id), as_json)


def _bounds(_ctx: click.Context, _param: click.Parameter, text: str | None) -> dict[str, float | None] | None:
    """`0.05,0.2`: warning and critical; `-` for none."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    try:
        warning, critical = (
            None if part == "-" else float(part.removesuffix("s")) for part in (*parts, *["-"] * (2 - len(parts)))
        )
    except ValueError:
        raise click.BadParameter(f"{text!r} must be WARNING,CRITICAL such as 0.05,0.2; '-' is for none") from None
    return {"warning": warning, "critical": critical}


@thresholds.command("set")
@where_option
@click.argument("fleet_id", metavar="FLEET")
@click.option(
    "--error-rate", callback=_bounds, metavar="W,C", help="Shares of contacts that fail: warning, critical; '-' for none."
)
@click.option(
    "--latency", "latency_p95_s", callback=_bounds, metavar="W,C", help="Seconds that 95 % of the contacts stay below."
)
@click.option("--late", callback=_bounds, metavar="W,C", help="Shares of devices that have left out a contact.")
@click.option("--window", type=click.IntRange(1, 24), metavar="N", help="Judge N intervals of 5 minutes together.")
@click.option("--raise-after", type=click.IntRange(1, 48), metavar="N", help="Judgments in a row that raise an alert.")
@click.option("--clear-after", type=click.IntRange(1, 48), metavar="N", help="Judgments in a row that clear it.")
@click.option("--min-contacts", type=click.IntRange(5, 100_000), metavar="N", help="Judge no rate of fewer contacts.")
@click.option("--anomalies/--no-anomalies", default=None, help="Compare the fleet with its own past.")
@click.option("--sensitivity", type=click.FloatRange(3, 20), metavar="X", help="Spreads from the usual that are unusual.")
@click.option("--zone", metavar="ZONE", help="Time zone of the fleet, such as Europe/Berlin.")
@reason_option
@json_option
def thresholds_set(directory: Path | None, fleet_id: str, reason: str, as_json: bool, **given: Any) -> None:
    """Set by what FLEET is judged from the next interval on. What is not given stays."""
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        raise click.UsageError("Nothing to change: give at least one threshold, such as --error-rate 0.05,0.2.")
    with asking(directory) as server:
        tag = server.tag("fleets.thresholds", server.perform("fleets.thresholds", fleet_id=fleet_id))
        _show_thresholds(server.perform("fleets.set_thresholds", fleet_id=fleet_id, if_match=tag, **changes), as_json)


def _show_thresholds(row: Any, as_json: bool) -> None:
    if as_json:
        show_one(row, as_json)
        return
    says = (_percent, _seconds, _percent)
    pairs = [(name, getattr(row, name), text) for name, text in zip(_PAIRS, says, strict=True)]
    facts: list[tuple[str, object]] = [
        (name.removesuffix("_p95_s").replace("_", " "), f"warning {text(pair.warning)}, critical {text(pair.critical)}")
        for name, pair, text in pairs
    ]
    facts += [
        ("window", f"{row.window * 5} minutes"),
        ("raised after", quantity(row.raise_after, "judgment")),
        ("cleared after", quantity(row.clear_after, "judgment")),
        ("min. contacts", row.min_contacts),
        ("anomalies", f"{row.sensitivity:g} spreads from the usual, by {row.zone}" if row.anomalies else "off"),
    ]
    _facts(facts)


@click.group("alerts")
def alerts() -> None:
    """Alerts of fleets: what may be wrong, who has taken note of it, and what is silenced."""


@alerts.command("list")
@where_option
@click.option("--fleet", metavar="FLEET", help="Only alerts of this fleet.")
@click.option("--cleared", is_flag=True, help="Also those of the last 90 days that are over.")
@limit_option
@json_option
def alerts_list(directory: Path | None, fleet: str | None, cleared: bool, limit: int | None, as_json: bool) -> None:
    """List the alerts that are open."""

    def line(row: Any) -> tuple[object, ...]:
        return row.alert_id, row.fleet_id, row.severity, row.kind, row.state, utc(row.raised_at), row.detail

    headers = ("alert", "fleet", "severity", "kind", "state", "raised", "what")
    rows = listed("fleet_alerts.list", directory, limit, fleet=fleet, cleared=cleared)
    show_pages(rows, headers, line, as_json, members)


@alerts.command("show")
@where_option
@click.argument("alert_id", metavar="ALERT")
@json_option
def alerts_show(directory: Path | None, alert_id: str, as_json: bool) -> None:
    """Print an alert."""
    row = perform("fleet_alerts.show", directory, alert_id=alert_id)
    if as_json:
        show_one(row, as_json)
        return
    noted = "-" if row.acknowledged_at is None else f"{utc(row.acknowledged_at)} by {row.acknowledged_by}"
    _facts(
        [
            ("alert", row.alert_id),
            ("fleet", row.fleet_id),
            ("what", row.detail),
            ("kind", row.kind),
            ("severity", row.severity),
            ("state", row.state),
            ("sent", "yes" if row.told else "no: a silence covers it"),
            ("raised", utc(row.raised_at)),
            ("acknowledged", noted),
            ("cleared", "-" if row.cleared_at is None else utc(row.cleared_at)),
        ]
    )


@alerts.command("acknowledge")
@where_option
@click.argument("alert_id", metavar="ALERT")
@reason_option
def alerts_acknowledge(directory: Path | None, alert_id: str, reason: str) -> None:
    """Take note of ALERT. It stays open until it is over, and is raised again if it becomes worse."""
    perform("fleet_alerts.acknowledge", directory, alert_id=alert_id)
    click.echo(f"acknowledged {alert_id}", err=True)


@alerts.command("silence")
@where_option
@click.option("--fleet", "fleet_id", metavar="FLEET", help="Only alerts of this fleet.")
@_kind_option
@click.option(
    "--until", "ends_at", required=True, type=TimeType(), metavar="TIME", help="When it ends: +2h, 2027-01-31; within 30 days."
)
@click.option("--comment", default="", metavar="TEXT", help="What for; shown in the list.")
@reason_option
@json_option
def alerts_silence(
    directory: Path | None, fleet_id: str | None, kind: str | None, ends_at: int, comment: str, reason: str, as_json: bool
) -> None:
    """Send alerts to nobody for a while. They are raised and listed; those still open at the end are sent then."""
    wish = {"fleet_id": fleet_id, "kind": kind, "ends_at": ends_at, "comment": comment}
    row = perform("fleet_alerts.silence", directory, **wish)
    if as_json:
        show_one(row, as_json)
        return
    click.echo(row.silence_id)
    click.echo(shown(f"silenced {kind or 'all'} alerts of {fleet_id or 'all fleets'} until {utc(row.ends_at)}"), err=True)


@alerts.command("silences")
@where_option
@limit_option
@json_option
def alerts_silences(directory: Path | None, limit: int | None, as_json: bool) -> None:
    """List the silences that have not ended."""

    def line(row: Any) -> tuple[object, ...]:
        return row.silence_id, row.fleet_id or "all", row.kind or "all", utc(row.ends_at), row.created_by, row.comment

    headers = ("silence", "fleet", "kind", "ends", "by", "comment")
    show_pages(listed("fleet_alerts.silences", directory, limit), headers, line, as_json, members)


@alerts.command("unsilence")
@where_option
@click.argument("silence_id", metavar="SILENCE")
@reason_option
def alerts_unsilence(directory: Path | None, silence_id: str, reason: str) -> None:
    """End SILENCE now."""
    perform("fleet_alerts.end_silence", directory, silence_id=silence_id)
    click.echo(f"ended {silence_id}", err=True)


COMMANDS: tuple[click.Command, ...] = (fleets_health, fleets_observations, thresholds, alerts)
