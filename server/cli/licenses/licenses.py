"""Commands for licenses, one at a time: issue, list, suspend, renew, upgrade, move, revoke."""

from datetime import tzinfo
from pathlib import Path
from typing import Any

import click

from server.base.times import told
from server.cli.base.acting import listed, perform
from server.cli.base.listing import limit_option, show_one, show_pages
from server.cli.base.options import (
    DurationType,
    TimeType,
    agent_option,
    directory_option,
    json_option,
    now,
    pairs,
    reason_option,
    utc,
    where_option,
    writing,
    zone_option,
)
from server.cli.base.output import handing_out, out_option

from .bulk import export, import_, issue_many
from .licensefilter import filter_options, status_option

expires_option = click.option(
    "--expires",
    type=TimeType(ends=True),
    help="When it ends: +30d, 2027-01-31 (the end of that day), 2027-01-31T12:00:00Z.",
)


@click.command()
@where_option
@click.option("--agent", "agent_id", metavar="ID", help="The agent's id. Without it, the license is on no machine yet.")
@click.option("--policy", metavar="ID", help="The policy that says what is licensed, and for how long.")
@click.option("--customer", metavar="ID", help="Whose license it is.")
@click.option("--site", metavar="ID", help="Where it is used; it names its customer.")
@click.option("--feature", "features", multiple=True, metavar="NAME", help="A licensed feature; may be repeated.")
@click.option(
    "--metadata", multiple=True, metavar="NAME=VALUE", callback=pairs, help="For the POS application; may be repeated."
)
@click.option("--not-before", type=TimeType(), help="When the license begins.  [default: now]")
@expires_option
@zone_option
@click.option("--subject", help="Who the license is for.  [default: the customer's id, else unnamed]")
@click.option("--license-id", help="The license's id.  [default: a new one]")
@click.option("--secret-version", type=click.IntRange(1), help="Issue it under this secret version instead of the newest.")
@reason_option
@out_option
def issue(
    directory: Path | None,
    agent_id: str | None,
    policy: str | None,
    customer: str | None,
    site: str | None,
    features: tuple[str, ...],
    metadata: dict[str, str],
    not_before: int | None,
    expires: int | None,
    zone: tzinfo,
    subject: str | None,
    license_id: str | None,
    secret_version: int | None,
    reason: str,
    out: Path | None,
) -> None:
    """Issue a license and print its token; for no machine yet, print its id.

    A policy, or --expires, says when it ends.
    """
    if agent_id is None and secret_version is not None:
        raise click.UsageError("--secret-version needs --agent: only a license on a machine has a token.")
    which = "the license" if license_id is None else f"the license {license_id}"
    lost = f"{which} is issued; 'license-server licenses list' shows it"
    if agent_id is not None:
        lost = f"{which} is issued; 'license-server reissue --agent {agent_id}' prints its token"
    with handing_out(out, lost) as hand:
        row = perform(
            "licenses.issue", directory, lambda done: hand(done.token or done.license.license_id), agent_id=agent_id,
            policy=policy, customer=customer, site=site, features=list(features), metadata=metadata, not_before=not_before,
            expires=expires, subject=subject, license_id=license_id, secret_version=secret_version,
        ).license  # fmt: skip
    click.echo(f"license {row.license_id}: valid from {told(row.not_before, zone)} until {told(row.expires, zone)}", err=True)
    texts = (row.subject, *row.features, *row.metadata, *row.metadata.values())
    if not all(text.isprintable() for text in texts):
        text = "NOTICE: agents of release 0.1.0 refuse this license: one of its characters is not printable to them"
        click.echo(text, err=True)


@click.command()
@directory_option
@agent_option
@out_option
def reissue(directory: Path, agent_id: str, out: Path | None) -> None:
    """Print new tokens, one on each line, for all licenses of an agent that have not expired, under its newest secret."""
    with handing_out(out) as hand, writing(directory) as (server, session):
        hand("\n".join(server.licenses.reissue_all(session, agent_id, now())))


@click.group()
def licenses() -> None:
    """Issue, list and change licenses, one or many."""


@licenses.command("list")
@where_option
@filter_options
@status_option
@click.option("--after", default="", metavar="LICENSE_ID", help="Only licenses behind this one.")
@limit_option
@json_option
def licenses_list(
    directory: Path | None, filters: dict[str, Any], status: dict[str, Any], after: str, limit: int | None, as_json: bool
) -> None:
    """List licenses by id: all of them, or those that the options name. Never a token."""
    headers = ("license", "agent", "state", "subject", "customer", "valid from", "valid until", "features")
    show_pages(listed("licenses.list", directory, limit, since=after or None, **filters, **status), headers, _line, as_json)


def _line(row: Any) -> tuple[object, ...]:
    dates = utc(row.not_before), utc(row.expires)
    return (
        row.license_id,
        row.agent_id or "-",
        row.state.replace("_", " "),
        row.subject,
        row.customer or "-",
        *dates,
        ", ".join(row.features),
    )


@licenses.command("show")
@where_option
@click.argument("license_id")
@json_option
def licenses_show(directory: Path | None, license_id: str, as_json: bool) -> None:
    """Print everything about a license; never its token."""
    show_one(perform("licenses.show", directory, license_id=license_id), as_json)


_FOR_PROGRAMS = ("credential", "via")
"""What a table of history leaves out: how somebody signed in. `--json` and the audit log have it."""
_TIMES = ("expires", "was_until", "not_before")


def _detail(name: str, value: object) -> object:
    return utc(value) if name in _TIMES and isinstance(value, int) else value


@licenses.command("history")
@where_option
@click.argument("license_id")
@json_option
def licenses_history(directory: Path | None, license_id: str, as_json: bool) -> None:
    """List what has happened to a license since this release, the oldest first."""

    def line(row: Any) -> tuple[object, ...]:
        said = ", ".join(f"{name}={_detail(name, value)}" for name, value in row.fields.items() if name not in _FOR_PROGRAMS)
        return row.number, utc(row.at), row.event, row.state, said

    headers = ("change", "time", "what", "state", "details")
    show_pages(listed("licenses.history", directory, None, license_id=license_id), headers, line, as_json)


@licenses.command("suspend")
@where_option
@click.argument("license_id")
@reason_option
@json_option
def licenses_suspend(directory: Path | None, license_id: str, reason: str, as_json: bool) -> None:
    """Suspend a license until it is reinstated. Its time runs on."""
    show_one(perform("licenses.suspend", directory, license_id=license_id), as_json)


@licenses.command("reinstate")
@where_option
@click.argument("license_id")
@reason_option
@json_option
def licenses_reinstate(directory: Path | None, license_id: str, reason: str, as_json: bool) -> None:
    """End the suspension of a license."""
    show_one(perform("licenses.reinstate", directory, license_id=license_id), as_json)


@licenses.command("renew")
@where_option
@click.argument("license_id")
@expires_option
@click.option("--duration", type=DurationType(), help="How much longer: 365d, 52w.  [default: that of its policy]")
@zone_option
@reason_option
@json_option
def licenses_renew(
    directory: Path | None, license_id: str, expires: int | None, duration: int | None, zone: tzinfo, reason: str, as_json: bool
) -> None:
    """Give a license a later end: behind its present one, or, if it has expired, behind now."""
    _ = zone
    if expires is not None and duration is not None:
        raise click.UsageError("Give --expires or --duration, not both.")
    show_one(perform("licenses.renew", directory, license_id=license_id, expires=expires, duration=duration), as_json)


@licenses.command("upgrade")
@where_option
@click.argument("license_id")
@click.option("--policy", metavar="ID", help="The policy whose features and metadata it gets in place of its own.")
@click.option("--feature", "features", multiple=True, metavar="NAME", help="A feature that it gets besides; may be repeated.")
@click.option("--without", multiple=True, metavar="NAME", help="A feature that it loses; may be repeated.")
@click.option(
    "--metadata", multiple=True, metavar="NAME=VALUE", callback=pairs, help="For the POS application; may be repeated."
)
@reason_option
@json_option
def licenses_upgrade(
    directory: Path | None,
    license_id: str,
    policy: str | None,
    features: tuple[str, ...],
    without: tuple[str, ...],
    metadata: dict[str, str],
    reason: str,
    as_json: bool,
) -> None:
    """Give a license the terms of another policy, or other features. Its end stays, but for a trial that becomes a sale."""
    if not (policy or features or without or metadata):
        raise click.UsageError("Give what changes: --policy, --feature, --without or --metadata.")
    show_one(
        perform(
            "licenses.upgrade",
            directory,
            license_id=license_id,
            policy=policy,
            features=list(features),
            without=list(without),
            metadata=metadata,
        ),
        as_json,
    )


@licenses.command("assign")
@where_option
@click.argument("license_id")
@agent_option
@reason_option
@json_option
def licenses_assign(directory: Path | None, license_id: str, agent_id: str, reason: str, as_json: bool) -> None:
    """Give a license that is on no machine to an agent."""
    show_one(perform("licenses.assign", directory, license_id=license_id, agent_id=agent_id), as_json)


@licenses.command("transfer")
@where_option
@click.argument("license_id")
@agent_option
@reason_option
@json_option
def licenses_transfer(directory: Path | None, license_id: str, agent_id: str, reason: str, as_json: bool) -> None:
    """Move a license to another agent."""
    show_one(perform("licenses.transfer", directory, license_id=license_id, agent_id=agent_id), as_json)


@licenses.command("release")
@where_option
@click.argument("license_id")
@reason_option
@json_option
def licenses_release(directory: Path | None, license_id: str, reason: str, as_json: bool) -> None:
    """Take a license from its machine, so that another one can get it later."""
    show_one(perform("licenses.release", directory, license_id=license_id), as_json)


@click.command()
@where_option
@click.argument("license_id")
@reason_option
def revoke(directory: Path | None, license_id: str, reason: str) -> None:
    """Revoke the license LICENSE_ID for good. Its agent learns of it at its next contact."""
    perform("licenses.revoke", directory, license_id=license_id)


licenses.add_command(issue)
licenses.add_command(revoke)
for _command in (issue_many, import_, export):
    licenses.add_command(_command)
COMMANDS: tuple[click.Command, ...] = (issue, reissue, licenses, revoke)
