"""Commands for rollouts: updates of a fleet, group by group."""

from pathlib import Path
from typing import Any

import click
from tabulate import tabulate

from common.text import quantity, shown
from server.cli.base.acting import asking, listed, perform
from server.cli.base.listing import limit_option, show_pages
from server.cli.base.options import confirm, json_option, members, reason_option, utc, where_option, yes_option

from .automatic import automatic
from .policyoptions import policy_given, policy_options


@click.group()
def rollouts() -> None:
    """Update the devices of a fleet, group by group."""


@rollouts.command("create")
@where_option
@click.argument("rollout_id", metavar="ID")
@click.option("--fleet", "fleet_id", required=True, metavar="ID", help="Whose devices it updates.")
@click.option("--package", "target", required=True, metavar="PATH", help="What they are to install.")
@click.option("--where", "selection", metavar="SELECTION", help="Only devices of the fleet that this selects.")
@policy_options
@reason_option
@json_option
def create(
    directory: Path | None,
    rollout_id: str,
    fleet_id: str,
    target: str,
    selection: str | None,
    reason: str,
    as_json: bool,
    **given: Any,
) -> None:
    """Make the rollout ID as a draft: its devices are in groups, and nothing is ordered. Two people start it."""
    wanted = {"rollout_id": rollout_id, "fleet_id": fleet_id, "target": target, "selection": selection}
    row = perform("rollouts.create", directory, **wanted, policy=policy_given(given))
    _show(row, as_json)


@rollouts.command("rehearse")
@where_option
@click.argument("rollout_id", metavar="ID")
@json_option
def rehearse(directory: Path | None, rollout_id: str, as_json: bool) -> None:
    """Say which devices it hits, when they may begin, what they fetch, and who is left out and why. Changes nothing."""
    found = perform("rollouts.rehearse", directory, rollout_id=rollout_id)
    if as_json:
        click.echo(found.model_dump_json(indent=2))
        return
    for group in found.groups:
        click.echo(
            shown(
                f"group {group.number} ({group.name}): {quantity(group.devices, 'device')}, {group.hit} hit, "
                f"{group.already} up to date"
            )
        )
        for opening in group.openings:
            where = opening.zone or "time zone unknown"
            click.echo(shown(f"  {quantity(opening.devices, 'device')} ({where}) may begin at {utc(opening.at)}"))
        for each in group.obstacles:
            how = "left out" if each.for_good else "waiting"
            click.echo(shown(f"  {quantity(each.devices, 'device')} {how}, such as {each.example}: {each.reason}"))
    rows = [(each.site or "-", each.devices, f"{each.bytes / 1e6:,.1f}") for each in found.sites]
    click.echo(shown(tabulate(rows, headers=("site", "devices", "MB"))))


@rollouts.command("list")
@where_option
@click.option("--fleet", "fleet_id", metavar="ID", help="Only those of this fleet.")
@click.option("--state", metavar="STATE", help="Only those in this state.")
@limit_option
@json_option
def list_rollouts(directory: Path | None, fleet_id: str | None, state: str | None, limit: int | None, as_json: bool) -> None:
    """List rollouts."""

    def line(row: Any) -> tuple[object, ...]:
        what = f"takes back {row.rolls_back}" if row.rolls_back else f"{row.product} {row.version}"
        return row.rollout_id, row.fleet_id, what, row.state, utc(row.started_at), utc(row.ended_at), row.detail

    headers = ("rollout", "fleet", "update", "state", "started", "ended", "detail")
    show_pages(listed("rollouts.list", directory, limit, fleet_id=fleet_id, state=state), headers, line, as_json, members)


@rollouts.command("show")
@where_option
@click.argument("rollout_id", metavar="ID")
@click.option("--devices", is_flag=True, help="List its devices, in place of its groups.")
@click.option("--state", metavar="STATE", help="With --devices: only those in this state, such as failed.")
@click.option("--group", type=click.IntRange(1), metavar="N", help="With --devices: only those of this group.")
@limit_option
@json_option
def show(
    directory: Path | None,
    rollout_id: str,
    devices: bool,
    state: str | None,
    group: int | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Show the rollout ID: the counters of its groups, and why devices failed; or its devices."""
    if not devices:
        if state is not None or group is not None or limit is not None:
            raise click.UsageError("--state, --group and --limit are for --devices.")
        _show(perform("rollouts.show", directory, rollout_id=rollout_id), as_json)
        return

    def line(row: Any) -> tuple[object, ...]:
        return row.device_id, row.group, row.state, row.before or "-", utc(row.updated_at), utc(row.deadline), row.detail

    headers = ("device", "group", "state", "before", "since", "until", "detail")
    pages = listed("rollouts.devices", directory, limit, rollout_id=rollout_id, state=state, group=group)
    show_pages(pages, headers, line, as_json, members)


@rollouts.command("start")
@where_option
@click.argument("rollout_id", metavar="ID")
@yes_option
@reason_option
def start(directory: Path | None, rollout_id: str, yes: bool, reason: str) -> None:
    """Start the rollout ID. A second person must approve; it begins when its notice is over."""
    with asking(directory) as server:
        found = server.perform("rollouts.show", rollout_id=rollout_id)
        count = quantity(sum(group.total for group in found.groups), "device")
        confirm(f"Rollout {rollout_id} brings {found.product} {found.version} to {count}. Continue?", yes=yes)
        _say(server.perform("rollouts.start", rollout_id=rollout_id))


@rollouts.command("pause")
@where_option
@click.argument("rollout_id", metavar="ID")
@reason_option
def pause(directory: Path | None, rollout_id: str, reason: str) -> None:
    """Pause the rollout ID: no device gets its order, and no group starts. What was ordered goes on."""
    _say(perform("rollouts.pause", directory, rollout_id=rollout_id))


@rollouts.command("resume")
@where_option
@click.argument("rollout_id", metavar="ID")
@reason_option
def resume(directory: Path | None, rollout_id: str, reason: str) -> None:
    """Let the rollout ID go on."""
    _say(perform("rollouts.resume", directory, rollout_id=rollout_id))


@rollouts.command("stop")
@where_option
@click.argument("rollout_id", metavar="ID")
@yes_option
@reason_option
def stop(directory: Path | None, rollout_id: str, yes: bool, reason: str) -> None:
    """Stop the rollout ID for good: what a device has not begun is withdrawn at its next contact."""
    confirm(f"Rollout {rollout_id} stops, and cannot go on. Continue?", yes=yes)
    _say(perform("rollouts.stop", directory, rollout_id=rollout_id, why=reason))


@rollouts.command("rollback")
@where_option
@click.argument("rollout_id", metavar="ID")
@click.argument("back_id", metavar="NEW-ID")
@policy_options
@yes_option
@reason_option
def roll_back(directory: Path | None, rollout_id: str, back_id: str, yes: bool, reason: str, **given: Any) -> None:
    """Take the rollout ID back by the new rollout NEW-ID: each device gets the version that it ran before.

    A second person must approve. Without options, all devices go back at once, outside of any window of the rollout.
    """
    policy = policy_given(given)
    confirm(f"The devices that rollout {rollout_id} has updated go back to what they ran before. Continue?", yes=yes)
    _say(perform("rollouts.roll_back", directory, rollout_id=rollout_id, back_id=back_id, policy=policy))


@rollouts.command("policy")
@where_option
@click.argument("fleet_id", metavar="FLEET")
@policy_options
@click.option("--clear", is_flag=True, help="Forget what was set.")
@reason_option
@json_option
def policy(directory: Path | None, fleet_id: str, clear: bool, reason: str, as_json: bool, **given: Any) -> None:
    """Show what rollouts of FLEET do where they do not say otherwise, or change what is given of it."""
    changed = policy_given(given)
    with asking(directory) as server:
        found = server.perform("rollouts.show_policy", fleet_id=fleet_id)
        if changed or clear:
            known = {} if clear else found.policy.model_dump(mode="json", exclude_none=True)
            found = server.perform("rollouts.set_policy", fleet_id=fleet_id, policy={**known, **changed})
    text = found.model_dump_json(indent=2) if as_json else _policy_text(found.policy)
    click.echo(shown(text) if not as_json else text)


def _policy_text(found: Any) -> str:
    lines = [f"{name.replace('_', ' ')}: {_cell(value)}" for name, value in found.model_dump(exclude_none=True).items()]
    return "\n".join(lines) or "nothing is set: rollouts go by the documented policy"


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return f"{','.join(value['days'])} {value['start']}-{value['end']} {value['zone']}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _say(row: Any) -> None:
    until = f", announced until {utc(row.notice_until)}" if row.state == "announced" else ""
    click.echo(shown(f"rollout {row.rollout_id} is {row.state}{until}"), err=True)


def _show(row: Any, as_json: bool) -> None:
    if as_json:
        click.echo(row.model_dump_json(indent=2))
        return
    what = f"takes back {row.rolls_back}" if row.rolls_back else f"{row.product} {row.version} (build {row.build_id})"
    click.echo(shown(f"rollout {row.rollout_id} of fleet {row.fleet_id}: {what}, {row.state}"))
    if row.detail:
        click.echo(shown(row.detail))
    click.echo(f"created {utc(row.created_at)}, started {utc(row.started_at)}, ended {utc(row.ended_at)}")
    headers = ("group", "devices of", "state", "total", "waiting", "under way", "proved", "failed", "left out")
    rows = [
        (each.number, each.name, each.state, each.total, each.waiting, each.under_way, each.proved, each.failed, each.left_out)
        for each in row.groups
    ]
    click.echo(shown(tabulate(rows, headers=headers, disable_numparse=[1])))
    for reason in row.reasons:
        count = quantity(reason.devices, "device")
        click.echo(shown(f"{count} {reason.state}, such as {reason.example}: {reason.text or 'no reason given'}"))


rollouts.add_command(automatic)

COMMANDS: tuple[click.Command, ...] = (rollouts,)
