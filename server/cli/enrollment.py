"""Commands that enroll agents: by hand, and enrollment tokens."""

import json
from pathlib import Path

import click
from sqlalchemy.orm import Session

from server.agents.enrollment_tokens import DEFAULT_LIFETIME_S, EnrollmentTokenRow
from server.base.errors import RegistryError
from server.enrollment.by_hand import read_request
from server.registry.paging import pages

from .listing import limit_option, show_pages
from .options import directory_option, json_option, now, opened, utc, writing
from .output import handing_out, out_option


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
@directory_option
@click.option("--hw-id", metavar="HEX", help="The only device that may use it; without it, the first device that does.")
@click.option(
    "--lifetime",
    type=click.IntRange(60, 10**9),
    default=DEFAULT_LIFETIME_S,
    show_default=True,
    help="Seconds until it expires.",
)
@click.option("--factory-only", is_flag=True, help="For factory tests: the agent gets no licenses.")
@out_option
def enrollment_token_make(directory: Path, hw_id: str | None, lifetime: int, factory_only: bool, out: Path | None) -> None:
    """Make a token for one device and print it."""
    if hw_id is not None and (len(hw_id) != 64 or set(hw_id) - set("0123456789abcdef")):
        raise RegistryError("a hardware id has 64 characters 0-9 and a-f; 'license-agent hardware-id' prints it")
    lost = (
        "nobody can use that token; make another, and revoke this one ('license-server enrollment-token list' has its number)"
    )
    with handing_out(out, lost) as hand, writing(directory) as (server, session):
        hand(server.enrollment_tokens.create(session, hw_id, factory_only, lifetime, now()))


@enrollment_token.command("list")
@directory_option
@click.option("--status", "state", type=click.Choice(["open", "used", "revoked"]), help="Only tokens in this state.")
@click.option("--after", type=click.IntRange(1), metavar="NUMBER", help="Only tokens behind this one, with smaller numbers.")
@limit_option
@json_option
def enrollment_token_list(directory: Path, state: str | None, after: int | None, limit: int | None, as_json: bool) -> None:
    """List tokens, the newest first; never their texts."""

    def line(row: EnrollmentTokenRow) -> tuple[object, ...]:
        return row.claim_id, row.state, row.agent_id or "-", (row.hw_id or "any")[:16], utc(row.created_at), utc(row.expires_at)

    def page(session: Session, last: EnrollmentTokenRow | None, most: int) -> list[EnrollmentTokenRow]:
        return server.enrollment_tokens.listed(session, state, after if last is None else last.claim_id, most)

    with opened(directory) as server:
        headers = ("number", "state", "agent", "hardware", "made", "ends")
        show_pages(pages(server.database, page, limit), headers, line, as_json)


@enrollment_token.command("revoke")
@directory_option
@click.argument("number", type=click.IntRange(1))
def enrollment_token_revoke(directory: Path, number: int) -> None:
    """Revoke the token with this NUMBER, from the list."""
    with writing(directory) as (server, session):
        server.enrollment_tokens.revoke(session, number, now())


COMMANDS: tuple[click.Command, ...] = (enroll, enrollment_token)
