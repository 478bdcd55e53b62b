"""Commands that have to do with agents, their claims and their secrets."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from server.agents.enrollment_tokens import DEFAULT_LIFETIME_S, EnrollmentTokenRow
from server.agents.registry import ACTIVE, REVOKED, AgentRow
from server.base.errors import RegistryError
from server.enrollment.by_hand import read_request
from server.licensing.secrets import SecretRow

from .options import agent_option, directory_option, json_option, now, opened, out_option, show, utc, write


@click.command()
@directory_option
@click.option(
    "--request", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True, help="From 'license-agent init'."
)
def enroll(directory: Path, request: Path) -> None:
    """Register an agent by its enrollment request, carried by hand. For machines without a network."""
    try:
        content = json.loads(request.read_text("utf-8"))
    except ValueError:
        raise RegistryError(f"{request} is not an enrollment request (not JSON)") from None
    asked = read_request(content)
    with opened(directory) as server:
        server.agents.enroll_by_hand(asked.agent_id, asked.hw_id, asked.backend, asked.keys, now())
    click.echo(f"enrolled {asked.agent_id}; next: license-server rotate --agent {asked.agent_id}", err=True)


@click.group()
def claim() -> None:
    """Claims, with which devices are provisioned."""


@claim.command("make")
@directory_option
@click.option("--hw-id", metavar="HEX", help="The device that may use it; without it, the first one that does.")
@click.option("--lifetime", type=click.IntRange(60, 10**9), default=DEFAULT_LIFETIME_S, show_default=True, help="Seconds.")
@click.option("--factory-only", is_flag=True, help="For the factory's tests: such an agent gets no licenses.")
@out_option
def claim_make(directory: Path, hw_id: str | None, lifetime: int, factory_only: bool, out: Path | None) -> None:
    """Print a new claim for one device."""
    if hw_id is not None and (len(hw_id) != 64 or set(hw_id) - set("0123456789abcdef")):
        raise RegistryError("a hardware id has 64 characters 0-9 and a-f, as 'license-agent hardware-id' prints it")
    with opened(directory) as server:
        write(server.enrollment_tokens.create(hw_id, factory_only, lifetime, now()), out)


@claim.command("list")
@directory_option
@json_option
def claim_list(directory: Path, as_json: bool) -> None:
    """List all claims, never their texts."""

    def line(row: EnrollmentTokenRow) -> tuple[object, ...]:
        return row.claim_id, row.state, row.agent_id or "-", (row.hw_id or "any")[:16], utc(row.created_at), utc(row.expires_at)

    with opened(directory) as server:
        show(server.enrollment_tokens.listed(), ("claim", "state", "agent", "hardware", "made", "ends"), line, as_json)


@claim.command("revoke")
@directory_option
@click.argument("claim_id", type=click.IntRange(1))
def claim_revoke(directory: Path, claim_id: int) -> None:
    """End the claim with number CLAIM_ID."""
    with opened(directory) as server:
        server.enrollment_tokens.revoke(claim_id, now())


@click.group(invoke_without_command=True)
@click.option("--dir", "directory", type=click.Path(file_okay=False, path_type=Path), envvar="LICENSE_SERVER_DIR")
@click.pass_context
def agents(ctx: click.Context, directory: Path | None) -> None:
    """List the agents, revoke one, take that back."""
    if ctx.invoked_subcommand is None:
        if directory is None:
            raise click.UsageError("Missing option '--dir' (or LICENSE_SERVER_DIR).")
        _list_agents(directory, False)


def _list_agents(directory: Path, as_json: bool) -> None:
    def line(row: AgentRow) -> tuple[object, ...]:
        serial = "-" if row.serial is None else row.serial
        return row.agent_id, serial, row.status, row.attestation, row.backend, utc(row.created_at), utc(row.last_seen)

    headers = ("agent", "serial", "status", "attestation", "backend", "enrolled at", "last contact")
    with opened(directory) as server:
        show(server.agents.listed(), headers, line, as_json)


@agents.command("list")
@directory_option
@json_option
def agents_list(directory: Path, as_json: bool) -> None:
    """List all agents."""
    _list_agents(directory, as_json)


@agents.command("show")
@directory_option
@click.argument("agent_id")
@json_option
def agents_show(directory: Path, agent_id: str, as_json: bool) -> None:
    """Print all that is known of an agent; never a secret."""
    with opened(directory) as server:
        row = server.agents.by_id(agent_id)
        versions = () if row is None else server.secrets.listed(agent_id)
    if row is None:
        raise RegistryError(f"no agent {agent_id!r} is enrolled; 'license-server agents list' lists them")
    if as_json:
        click.echo(json.dumps({**asdict(row), "secrets": [asdict(version) for version in versions]}, indent=2))
        return
    shown = {
        "agent": row.agent_id,
        "serial": "-" if row.serial is None else row.serial,
        "status": row.status,
        "hardware": row.hw_id or "-",
        "attestation": row.attestation,
        "backend": row.backend,
        "enrolled at": utc(row.created_at),
        "changed at": utc(row.updated_at),
        "last contact": utc(row.last_seen),
        "secrets": ", ".join(f"{version.version} {version.state}" for version in versions) or "-",
    }
    click.echo("\n".join(f"{name + ':':<14}{value}" for name, value in shown.items()))


@agents.command("revoke")
@directory_option
@click.argument("agent_id")
def agents_revoke(directory: Path, agent_id: str) -> None:
    """Revoke an agent: it gets nothing any more from the next request on."""
    with opened(directory) as server:
        server.agents.set_status(agent_id, REVOKED, now())


@agents.command("reinstate")
@directory_option
@click.argument("agent_id")
@click.confirmation_option(prompt="The device will be able to get licenses again. Go on?")
def agents_reinstate(directory: Path, agent_id: str) -> None:
    """Take a revocation back. The device must be provisioned anew: its certificates stay revoked."""
    with opened(directory) as server:
        server.agents.set_status(agent_id, ACTIVE, now())


@click.group(invoke_without_command=True)
@click.option("--dir", "directory", type=click.Path(file_okay=False, path_type=Path), envvar="LICENSE_SERVER_DIR")
@click.option("--agent", "agent_id", metavar="ID", help="The agent's id.")
@click.pass_context
def secrets(ctx: click.Context, directory: Path | None, agent_id: str | None) -> None:
    """List an agent's secret versions and their dates (never a secret)."""
    if ctx.invoked_subcommand is None:
        if directory is None or agent_id is None:
            raise click.UsageError("Missing option '--dir' (or LICENSE_SERVER_DIR) or '--agent'.")
        _list_secrets(directory, agent_id, False)


def _list_secrets(directory: Path, agent_id: str, as_json: bool) -> None:
    def line(row: SecretRow) -> tuple[object, ...]:
        return row.version, row.state, utc(row.valid_from), utc(row.valid_until), utc(row.grace_until)

    with opened(directory) as server:
        show(server.secrets.listed(agent_id), ("version", "state", "valid from", "valid until", "grace until"), line, as_json)


@secrets.command("list")
@directory_option
@agent_option
@json_option
def secrets_list(directory: Path, agent_id: str, as_json: bool) -> None:
    """List an agent's secret versions (never a secret)."""
    _list_secrets(directory, agent_id, as_json)


@secrets.command("rotate")
@directory_option
@click.option("--agent", "agent_id", metavar="ID", help="This agent.")
@click.option("--all", "everyone", is_flag=True, help="All agents.")
def secrets_rotate(directory: Path, agent_id: str | None, everyone: bool) -> None:
    """Have agents rotate at their next contact."""
    if (agent_id is None) != everyone:
        raise click.UsageError("Name one agent with --agent, or all with --all.")
    with opened(directory) as server:
        count = server.secrets.demand(agent_id, now())
    click.echo(f"{count} agents will rotate at their next contact", err=True)


@secrets.command("invalidate")
@directory_option
@agent_option
@click.argument("version", type=click.IntRange(1))
def secrets_invalidate(directory: Path, agent_id: str, version: int) -> None:
    """Destroy an agent's secret VERSION here; it is to rotate at its next contact."""
    with opened(directory) as server:
        server.secrets.invalidate(agent_id, version, now())


@click.command()
@directory_option
@agent_option
@click.option("--interval", type=click.IntRange(1, 10**9), help="Seconds until the next one is due.  [default: the server's]")
@click.option("--grace", type=click.IntRange(0, 10**9), help="Seconds of grace after that.  [default: the server's]")
@out_option
def rotate(directory: Path, agent_id: str, interval: int | None, grace: int | None, out: Path | None) -> None:
    """Make an agent's next secret and print its delivery, to be carried by hand: signed, and encrypted to that agent."""
    with opened(directory) as server:
        write(server.secrets.rotate_by_hand(agent_id, now(), interval, grace), out)


@click.command()
@directory_option
@click.option("--interval", type=click.IntRange(1, 10**9), help="Seconds until a secret's successor is due.")
@click.option("--grace", type=click.IntRange(0, 10**9), help="Seconds of grace after that.")
def periods(directory: Path, interval: int | None, grace: int | None) -> None:
    """Show how long secrets are good for, or change it for those that are made from now on."""
    with opened(directory) as server:
        if interval is not None or grace is not None:
            server.secrets.set_periods(interval, grace, now())
        found = server.secrets.periods()
    click.echo(f"a successor is due after {found[0]} s; licenses under the old one pass for {found[1]} s more")


@click.command("sign-time")
@directory_option
@agent_option
@click.option("--challenge", required=True, metavar="HEX", help="From 'license-agent-cli clock challenge' on the machine.")
@out_option
def sign_time(directory: Path, agent_id: str, challenge: str, out: Path | None) -> None:
    """Print the server's time, signed, for an agent whose clock went wrong."""
    with opened(directory) as server:
        write(server.secrets.sign_time(agent_id, challenge, now()), out)


COMMANDS: tuple[click.Command, ...] = (enroll, claim, agents, secrets, rotate, periods, sign_time)
