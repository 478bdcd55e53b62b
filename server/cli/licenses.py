"""Commands for licenses and the audit log."""

import sys
import uuid
from datetime import tzinfo
from pathlib import Path

import click
from sqlalchemy.orm import Session

from server.agents.registry import enrolled
from server.licensing.license_list import LicenseRow, listed
from server.licensing.licenses import Order
from server.registry import audit as audit_log
from server.registry.audit import Record
from server.registry.paging import pages

from .listing import limit_option, show_pages
from .options import TimeType, agent_option, directory_option, json_option, now, opened, reading, utc, writing, zone_option
from .output import handing_out, out_option
from .times import told


def _pairs(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, sign, rest = value.partition("=")
        if not sign or not name:
            raise click.BadParameter(f"{value!r} is not of the form NAME=VALUE")
        pairs[name] = rest
    return pairs


@click.command()
@directory_option
@agent_option
@click.option("--feature", "features", multiple=True, metavar="NAME", help="A licensed feature; may be repeated.")
@click.option(
    "--metadata", multiple=True, metavar="NAME=VALUE", callback=_pairs, help="For the POS application; may be repeated."
)
@click.option("--not-before", type=TimeType(), default="now", show_default=True, help="When the license begins.")
@click.option(
    "--expires",
    type=TimeType(ends=True),
    required=True,
    help="When it ends: +30d, 2027-01-31 (the end of that day), 2027-01-31T12:00:00Z.",
)
@zone_option
@click.option("--subject", default="unnamed", show_default=True, help="Who the license is for.")
@click.option("--license-id", help="The license's id.  [default: a new one]")
@click.option("--secret-version", type=click.IntRange(1), help="Issue it under this secret version instead of the newest.")
@out_option
def issue(
    directory: Path,
    agent_id: str,
    features: tuple[str, ...],
    metadata: dict[str, str],
    not_before: int,
    expires: int,
    zone: tzinfo,
    subject: str,
    license_id: str | None,
    secret_version: int | None,
    out: Path | None,
) -> None:
    """Issue a license and print its token."""
    order = Order(license_id or str(uuid.uuid4()), subject, features, metadata, not_before, expires)
    lost = f"the license {order.jti} is issued; 'license-server reissue --agent {agent_id}' prints its token"
    with handing_out(out, lost) as hand, writing(directory) as (server, session):
        hand(server.licenses.issue(session, agent_id, order, now(), secret_version))
    click.echo(f"license {order.jti}: valid from {told(not_before, zone)} until {told(expires, zone)}", err=True)
    if not all(text.isprintable() for text in (subject, *features, *metadata, *metadata.values())):
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
    """List licenses."""


@licenses.command("list")
@directory_option
@click.option("--agent", "agent_id", metavar="ID", help="Only licenses of this agent.")
@click.option("--status", type=click.Choice(["revoked", "issued"]), help="Only those that are revoked, or those that are not.")
@click.option("--after", default="", metavar="LICENSE_ID", help="Only licenses behind this one.")
@limit_option
@json_option
def licenses_list(
    directory: Path, agent_id: str | None, status: str | None, after: str, limit: int | None, as_json: bool
) -> None:
    """List licenses by id: all of them, or those that the options name. Never a token."""
    moment = now()

    def line(row: LicenseRow) -> tuple[object, ...]:
        state = row.state.replace("_", " ")
        return row.license_id, row.agent_id, state, row.subject, utc(row.not_before), utc(row.expires), ", ".join(row.features)

    def page(session: Session, last: LicenseRow | None, most: int) -> list[LicenseRow]:
        revoked = None if status is None else status == "revoked"
        return listed(session, moment, agent_id, after if last is None else last.license_id, most, revoked=revoked)

    with opened(directory) as server:
        if agent_id is not None:
            with server.database.read() as session:
                enrolled(session, agent_id, lock=False)
        headers = ("license", "agent", "state", "subject", "valid from", "valid until", "features")
        show_pages(pages(server.database, page, limit), headers, line, as_json)


@click.command()
@directory_option
@click.argument("license_id")
def revoke(directory: Path, license_id: str) -> None:
    """Revoke the license LICENSE_ID for good. Its agent learns of it at its next contact."""
    with writing(directory) as (server, session):
        server.licenses.revoke(session, license_id, now())


@click.command()
@directory_option
@click.option("--verify", "check", is_flag=True, help="Verify the whole chain instead of printing records.")
@click.option(
    "-n", "--lines", type=click.IntRange(1, 100_000), default=20, show_default=True, help="How many of the newest records."
)
@json_option
def audit(directory: Path, check: bool, lines: int, as_json: bool) -> None:
    """Print the server's audit log, or verify that nobody has changed it."""

    def line(row: Record) -> tuple[object, ...]:
        return row.seq, utc(row.at), row.actor, row.event, row.outcome, ", ".join(f"{k}={v}" for k, v in row.fields.items())

    if not check:
        with opened(directory) as server:
            with server.database.read() as session:
                newest = audit_log.newest(session)

            def page(session: Session, last: Record | None, most: int) -> list[Record]:
                return audit_log.listed(session, newest - lines if last is None else last.seq, most)

            headers = ("record", "time", "who", "what", "outcome", "details")
            show_pages(pages(server.database, page, lines), headers, line, as_json)
        return
    with reading(directory) as (server, session):
        held, problem = audit_log.verify(session, server.cipher.audit_key())
        first = audit_log.first_kept(session)
    if problem is not None:
        click.echo(f"{held} records hold, then: {problem}", err=True)
        sys.exit(1)
    if first > 1:
        click.echo(f"records {first} to {held} hold; retention has removed the {first - 1} before them")
    else:
        click.echo(f"{held} records hold")


COMMANDS: tuple[click.Command, ...] = (issue, reissue, licenses, revoke, audit)
