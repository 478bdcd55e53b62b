"""Commands that have to do with licenses, and with what was recorded."""

import sys
import uuid
from pathlib import Path

import click

from server.licensing.licenses import Order
from server.registry.audit import Record

from .options import TimeType, agent_option, directory_option, json_option, now, opened, out_option, show, utc, write


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
@click.option("--not-before", type=TimeType(), default="now", show_default=True, help="Begin of the license.")
@click.option("--expires", type=TimeType(), required=True, help="End: +30d, 2027-01-31, 2027-01-31T12:00:00Z.")
@click.option("--subject", default="unnamed", show_default=True, help="Who the license is for.")
@click.option("--license-id", help="The license's id; a new one if not given.")
@click.option("--secret-version", type=click.IntRange(1), help="Use this version instead of the newest.")
@out_option
def issue(
    directory: Path,
    agent_id: str,
    features: tuple[str, ...],
    metadata: dict[str, str],
    not_before: int,
    expires: int,
    subject: str,
    license_id: str | None,
    secret_version: int | None,
    out: Path | None,
) -> None:
    """Issue a license and print its token."""
    order = Order(license_id or str(uuid.uuid4()), subject, features, metadata, not_before, expires)
    with opened(directory) as server:
        write(server.licenses.issue(agent_id, order, now(), secret_version), out)


@click.command()
@directory_option
@agent_option
@out_option
def reissue(directory: Path, agent_id: str, out: Path | None) -> None:
    """Print new tokens, one a line, for all running licenses of an agent, under its newest secret."""
    with opened(directory) as server:
        write("\n".join(server.licenses.reissue_all(agent_id, now())), out)


@click.command()
@directory_option
@click.argument("license_id")
def revoke(directory: Path, license_id: str) -> None:
    """Revoke the license LICENSE_ID for good; its agent learns of it at its next contact."""
    with opened(directory) as server:
        server.licenses.revoke(license_id, now())


@click.command()
@directory_option
@click.option("--verify", "check", is_flag=True, help="Check the whole chain instead of printing records.")
@click.option("-n", "--lines", type=click.IntRange(1, 100_000), default=20, show_default=True, help="How many, the newest.")
@json_option
def audit(directory: Path, check: bool, lines: int, as_json: bool) -> None:
    """Print what was done on this server, or check that nobody changed the record of it."""

    def line(row: Record) -> tuple[object, ...]:
        return row.seq, utc(row.at), row.actor, row.event, row.outcome, ", ".join(f"{k}={v}" for k, v in row.fields.items())

    with opened(directory) as server:
        if not check:
            show(server.audit.tail(lines), ("record", "time", "who", "what", "outcome", "details"), line, as_json)
            return
        held, problem = server.audit.verify()
    if problem is not None:
        click.echo(f"{held} records hold, then: {problem}", err=True)
        sys.exit(1)
    click.echo(f"{held} records hold")


COMMANDS: tuple[click.Command, ...] = (issue, reissue, revoke, audit)
