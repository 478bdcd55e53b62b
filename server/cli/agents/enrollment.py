"""Commands that enroll agents: by hand, and enrollment tokens."""

import json
from pathlib import Path
from typing import Any

import click

from server.agents.enrollment_tokens import DEFAULT_LIFETIME_S
from server.base.errors import RegistryError
from server.cli.base.acting import listed, perform
from server.cli.base.listing import limit_option, show_pages
from server.cli.base.options import directory_option, json_option, now, utc, where_option, writing
from server.cli.base.output import handing_out, out_option
from server.enrollment.by_hand import read_request


@click.command()
@directory_option
@click.option(
    "--request", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True, help="From 'license-agent init'."
)
def enroll(directory: Path, request: Path) -> None:
    """Register an agent by its enrollment request, for machines without a network."""
    try:
        content = json.loads(request.read_text("utf-8"))
    except ValueError:
        raise RegistryError(f"{request} is not an enrollment request: it is not JSON") from None
    asked = read_request(content)
    with writing(directory) as (server, session):
        server.agents.enroll_by_hand(session, asked.agent_id, asked.hw_id, asked.backend, asked.keys, now())
    click.echo(f"enrolled {asked.agent_id}; next: license-server rotate --agent {asked.agent_id}", err=True)


@click.group("enrollment-token")
def enrollment_token() -> None:
    """Manage the tokens with which devices are provisioned. (Former name: claim.)"""


@enrollment_token.command("make")
@where_option
@click.option("--hw-id", metavar="HEX", help="The only device that may use it; without it, the first device that does.")
@click.option(
    "--lifetime",
    type=click.IntRange(60, 10**9),
    default=DEFAULT_LIFETIME_S,
    show_default=True,
    help="Seconds until it expires.",
)
@click.option("--factory-only", is_flag=True, help="For factory tests: the agent gets no licenses.")
@click.option(
    "--count", type=click.IntRange(1, 1000), metavar="N", help="Make so many, and print them as CSV: number and token."
)
@out_option
def enrollment_token_make(
    directory: Path | None, hw_id: str | None, lifetime: int, factory_only: bool, count: int | None, out: Path | None
) -> None:
    """Make a token for one device and print it; with --count, many. Nobody can read a token again."""
    if hw_id is not None and (len(hw_id) != 64 or set(hw_id) - set("0123456789abcdef")):
        raise RegistryError("a hardware id has 64 characters 0-9 and a-f; 'license-agent hardware-id' prints it")
    if hw_id is not None and count is not None:
        raise click.UsageError("Give --hw-id or --count, not both: a device needs one token.")
    lost = (
        "nobody can use that token; make another, and revoke this one ('license-server enrollment-token list' has its number)"
    )
    body = {"factory_only": factory_only, "lifetime_s": lifetime}
    with handing_out(out, lost, private=count is not None) as hand:
        if count is None:
            perform("enrollment_tokens.make", directory, lambda made: hand(made.text), hw_id=hw_id, **body)
        else:
            many = "enrollment_tokens.make_many"
            perform(many, directory, lambda made: hand(_table_of(made)), count=count, **body)


def _table_of(made: Any) -> str:
    """New tokens as CSV. A token may begin with a dash, and is written as it is: this file is for devices."""
    return "\n".join(["number,token", *(f"{each.claim_id},{each.text}" for each in made.items)])


@enrollment_token.command("list")
@where_option
@click.option("--status", "state", type=click.Choice(["open", "used", "revoked"]), help="Only tokens in this state.")
@click.option("--after", type=click.IntRange(1), metavar="NUMBER", help="Only tokens behind this one, with smaller numbers.")
@limit_option
@json_option
def enrollment_token_list(
    directory: Path | None, state: str | None, after: int | None, limit: int | None, as_json: bool
) -> None:
    """List tokens, the newest first; never their texts."""

    def line(row: Any) -> tuple[object, ...]:
        return row.claim_id, row.state, row.agent_id or "-", (row.hw_id or "any")[:16], utc(row.created_at), utc(row.expires_at)

    headers = ("number", "state", "agent", "hardware", "made", "ends")
    show_pages(listed("enrollment_tokens.list", directory, limit, state=state, since=after), headers, line, as_json)


@enrollment_token.command("revoke")
@where_option
@click.argument("number", type=click.IntRange(1))
def enrollment_token_revoke(directory: Path | None, number: int) -> None:
    """Revoke the token with this NUMBER, from the list."""
    perform("enrollment_tokens.revoke", directory, claim_id=number)


COMMANDS: tuple[click.Command, ...] = (enroll, enrollment_token)
