"""Commands for licenses, one at a time: issue, list, suspend, renew, upgrade, move, revoke."""

from datetime import tzinfo
from pathlib import Path

import click
from sqlalchemy.orm import Session

from server.base.times import told
from server.licensing import history as past
from server.licensing import lifecycle
from server.licensing.history import ChangeRow
from server.licensing.license_list import Filter, LicenseRow, listed, one
from server.licensing.license_states import State
from server.licensing.orders import Wish, order_of
from server.registry.paging import pages

from .bulk import export, import_, issue_many
from .licensefilter import filter_options, which
from .listing import limit_option, show_one, show_pages
from .options import (
    DurationType,
    TimeType,
    agent_option,
    directory_option,
    json_option,
    now,
    opened,
    pairs,
    reading,
    reason_option,
    utc,
    writing,
    zone_option,
)
from .output import handing_out, out_option

expires_option = click.option(
    "--expires",
    type=TimeType(ends=True),
    help="When it ends: +30d, 2027-01-31 (the end of that day), 2027-01-31T12:00:00Z.",
)


@click.command()
@directory_option
@click.option("--agent", "agent_id", metavar="ID", help="The agent's id. Without it, the license is on no machine yet.")
@click.option("--policy", metavar="ID", help="The policy that says what is licensed, and for how long.")
@click.option("--customer", metavar="ID", help="Whose license it is.")
@click.option("--site", metavar="ID", help="Where it is used; it names its customer.")
@click.option("--feature", "features", multiple=True, metavar="NAME", help="A licensed feature; may be repeated.")
@click.option(
    "--metadata", multiple=True, metavar="NAME=VALUE", callback=pairs, help="For the POS application; may be repeated."
)
@click.option("--not-before", type=TimeType(), default="now", show_default=True, help="When the license begins.")
@expires_option
@zone_option
@click.option("--subject", help="Who the license is for.  [default: the customer's id, else unnamed]")
@click.option("--license-id", help="The license's id.  [default: a new one]")
@click.option("--secret-version", type=click.IntRange(1), help="Issue it under this secret version instead of the newest.")
@reason_option
@out_option
def issue(
    directory: Path,
    agent_id: str | None,
    policy: str | None,
    customer: str | None,
    site: str | None,
    features: tuple[str, ...],
    metadata: dict[str, str],
    not_before: int,
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
    wish = Wish(license_id, policy, customer, site, subject, features, metadata, not_before, expires)
    lost = "the license is issued; 'license-server licenses list' shows it"
    if agent_id is not None:
        lost = f"the license is issued; 'license-server reissue --agent {agent_id}' prints its token"
    with handing_out(out, lost) as hand, writing(directory, reason) as (server, session):
        order = order_of(session, wish, now())
        if agent_id is None:
            server.licenses.stock(session, order, now())
            hand(order.jti)
        else:
            hand(server.licenses.issue(session, agent_id, order, now(), secret_version))
    click.echo(f"license {order.jti}: valid from {told(order.not_before, zone)} until {told(order.expires, zone)}", err=True)
    texts = (order.subject, *order.features, *order.metadata, *order.metadata.values())
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
@directory_option
@filter_options
@click.option(
    "--status",
    type=click.Choice(["revoked", "issued", *(state.value for state in State if state is not State.REVOKED)]),
    help="Only those in this state; 'issued': all but revoked ones.",
)
@click.option("--after", default="", metavar="LICENSE_ID", help="Only licenses behind this one.")
@limit_option
@json_option
def licenses_list(directory: Path, filters: Filter, status: str | None, after: str, limit: int | None, as_json: bool) -> None:
    """List licenses by id: all of them, or those that the options name. Never a token."""
    moment, named = now(), which(filters, status)

    def page(session: Session, last: LicenseRow | None, most: int) -> list[LicenseRow]:
        return listed(session, moment, after=after if last is None else last.license_id, limit=most, which=named)

    with opened(directory) as server:
        with server.database.read() as session:
            named.check(session)
        headers = ("license", "agent", "state", "subject", "customer", "valid from", "valid until", "features")
        show_pages(pages(server.database, page, limit), headers, _line, as_json)


def _line(row: LicenseRow) -> tuple[object, ...]:
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
@directory_option
@click.argument("license_id")
@json_option
def licenses_show(directory: Path, license_id: str, as_json: bool) -> None:
    """Print everything about a license; never its token."""
    with reading(directory) as (_server, session):
        row = one(session, license_id, now())
    show_one(row, as_json)


@licenses.command("history")
@directory_option
@click.argument("license_id")
@json_option
def licenses_history(directory: Path, license_id: str, as_json: bool) -> None:
    """List what has happened to a license since this release, the oldest first."""

    def line(row: ChangeRow) -> tuple[object, ...]:
        return row.number, utc(row.at), row.event, row.state, ", ".join(f"{name}={value}" for name, value in row.fields.items())

    def page(session: Session, last: ChangeRow | None, most: int) -> list[ChangeRow]:
        return past.history(session, license_id, 0 if last is None else last.number, most)

    with opened(directory) as server:
        show_pages(pages(server.database, page), ("change", "time", "what", "state", "details"), line, as_json)


@licenses.command("suspend")
@directory_option
@click.argument("license_id")
@reason_option
@json_option
def licenses_suspend(directory: Path, license_id: str, reason: str, as_json: bool) -> None:
    """Suspend a license until it is reinstated. Its time runs on."""
    with writing(directory, reason) as (_server, session):
        lifecycle.suspend(session, license_id, now())
        row = one(session, license_id, now())
        said = _how_it_leaves(session, row.agent_id, "suspends it")
    show_one(row, as_json)
    _say(said)


@licenses.command("reinstate")
@directory_option
@click.argument("license_id")
@reason_option
@json_option
def licenses_reinstate(directory: Path, license_id: str, reason: str, as_json: bool) -> None:
    """End the suspension of a license."""
    with writing(directory, reason) as (_server, session):
        lifecycle.reinstate(session, license_id, now())
        row = one(session, license_id, now())
    show_one(row, as_json)


@licenses.command("renew")
@directory_option
@click.argument("license_id")
@expires_option
@click.option("--duration", type=DurationType(), help="How much longer: 365d, 52w.  [default: that of its policy]")
@zone_option
@reason_option
@json_option
def licenses_renew(
    directory: Path, license_id: str, expires: int | None, duration: int | None, zone: tzinfo, reason: str, as_json: bool
) -> None:
    """Give a license a later end: behind its present one, or, if it has expired, behind now."""
    _ = zone
    if expires is not None and duration is not None:
        raise click.UsageError("Give --expires or --duration, not both.")
    with writing(directory, reason) as (_server, session):
        lifecycle.renew(session, license_id, now(), expires=expires, duration=duration)
        row = one(session, license_id, now())
    show_one(row, as_json)


@licenses.command("upgrade")
@directory_option
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
    directory: Path,
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
    with writing(directory, reason) as (_server, session):
        lifecycle.upgrade(
            session, license_id, now(), to=policy, features=features, without=without, metadata=metadata
        )  # fmt: skip
        row = one(session, license_id, now())
    show_one(row, as_json)


@licenses.command("assign")
@directory_option
@click.argument("license_id")
@agent_option
@reason_option
@json_option
def licenses_assign(directory: Path, license_id: str, agent_id: str, reason: str, as_json: bool) -> None:
    """Give a license that is on no machine to an agent."""
    with writing(directory, reason) as (_server, session):
        lifecycle.assign(session, license_id, agent_id, now())
        row = one(session, license_id, now())
        said = _how_it_arrives(session, agent_id)
    show_one(row, as_json)
    _say(said)


@licenses.command("transfer")
@directory_option
@click.argument("license_id")
@agent_option
@reason_option
@json_option
def licenses_transfer(directory: Path, license_id: str, agent_id: str, reason: str, as_json: bool) -> None:
    """Move a license to another agent."""
    with writing(directory, reason) as (_server, session):
        moved = lifecycle.transfer(session, license_id, agent_id, now())
        row = one(session, license_id, now())
        said = _how_it_arrives(session, agent_id), _how_it_leaves(session, moved.was, "drops it")
    show_one(row, as_json)
    _say(*said)


@licenses.command("release")
@directory_option
@click.argument("license_id")
@reason_option
@json_option
def licenses_release(directory: Path, license_id: str, reason: str, as_json: bool) -> None:
    """Take a license from its machine, so that another one can get it later."""
    with writing(directory, reason) as (_server, session):
        moved = lifecycle.release(session, license_id, now())
        row = one(session, license_id, now())
        said = _how_it_leaves(session, moved.was, "drops it")
    show_one(row, as_json)
    _say(said)


def _how_it_arrives(session: Session, agent_id: str) -> str:
    """What is to be done so that an agent gets a license."""
    if lifecycle.is_told(session, agent_id):
        return f"agent {agent_id} gets it at its next contact"
    return f"next: 'license-server reissue --agent {agent_id}' prints its token, which this agent does not fetch by itself"


def _how_it_leaves(session: Session, agent_id: str | None, outcome: str) -> str:
    """When an agent stops accepting a license."""
    if agent_id is None:
        return ""
    if lifecycle.is_told(session, agent_id):
        return f"agent {agent_id} {outcome} at its next contact"
    return (
        f"NOTICE: agent {agent_id} does not say that it learns of this: it accepts the token that it has until the grace of "
        "its secret ends, or the license does; revoke the agent if its machine is out of service"
    )


def _say(*texts: str) -> None:
    for text in texts:
        if text:
            click.echo(text, err=True)


@click.command()
@directory_option
@click.argument("license_id")
@reason_option
def revoke(directory: Path, license_id: str, reason: str) -> None:
    """Revoke the license LICENSE_ID for good. Its agent learns of it at its next contact."""
    with writing(directory, reason) as (server, session):
        server.licenses.revoke(session, license_id, now())


licenses.add_command(issue)
licenses.add_command(revoke)
for _command in (issue_many, import_, export):
    licenses.add_command(_command)
COMMANDS: tuple[click.Command, ...] = (issue, reissue, licenses, revoke)
