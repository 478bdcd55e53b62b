"""`license-server`: the command line. Reads the clock and the kernel's randomness for the rest of the server."""

import json
import os
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import click
from tabulate import tabulate

from .licensing import DEFAULT_GRACE_S, DEFAULT_INTERVAL_S, Licensing, Order, new_server_settings
from .registry import Registry, RegistryError
from .times import parse_time

_directory = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="LICENSE_SERVER_DIR",
    required=True,
    help="The server's directory (or LICENSE_SERVER_DIR).",
)
_agent = click.option("--agent", "agent_id", required=True, metavar="ID", help="The agent's id.")


def _writable(_ctx: click.Context, _param: click.Parameter, out: Path | None) -> Path | None:
    """Opens the output before anything is done: a secret that was made and not written would be lost."""
    if out is not None:
        try:
            out.open("a").close()
        except OSError as error:
            raise click.BadParameter(f"{out} cannot be written: {error.strerror}") from None
    return out


_out = click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_writable,
    help="Write here instead of standard output.",
)


class _Time(click.ParamType[int]):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_time(str(value), int(time.time()))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _licensing(directory: Path) -> Licensing:
    return Licensing(Registry(directory), os.urandom)


def _write(text: str, out: Path | None) -> None:
    if out is None:
        click.echo(text.rstrip("\n"))
    else:
        out.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Issue licenses and secrets to agents."""


@main.command()
@_directory
@click.option("--issuer", default="license-server", show_default=True, help="The name that licenses carry as their issuer.")
def init(directory: Path, issuer: str) -> None:
    """Make a new server: its signing keys and an empty registry."""
    Registry.create(directory, new_server_settings(issuer))
    click.echo(f"made {directory / 'server.db'}; next: license-server trust, then enroll an agent", err=True)


@main.command()
@_directory
@_out
def trust(directory: Path, out: Path | None) -> None:
    """Print the public keys that agents trust (the input of 'license-agent init --trust')."""
    _write(_licensing(directory).trust().decode(), out)


@main.command()
@_directory
@click.option(
    "--request", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True, help="From 'license-agent init'."
)
def enroll(directory: Path, request: Path) -> None:
    """Register an agent by its enrolment request."""
    try:
        content = json.loads(request.read_text("utf-8"))
    except ValueError:
        raise RegistryError(f"{request} is not an enrolment request (not JSON)") from None
    if not isinstance(content, dict):
        raise RegistryError(f"{request} is not an enrolment request")
    agent_id = _licensing(directory).enroll(content, int(time.time()))
    click.echo(f"enrolled {agent_id}; next: license-server rotate --agent {agent_id}", err=True)


@main.command()
@_directory
@_agent
@click.option(
    "--interval",
    type=click.IntRange(1, 10**9),
    default=DEFAULT_INTERVAL_S,
    show_default=True,
    help="Seconds until the next one is due.",
)
@click.option(
    "--grace", type=click.IntRange(0, 10**9), default=DEFAULT_GRACE_S, show_default=True, help="Seconds of grace after that."
)
@_out
def rotate(directory: Path, agent_id: str, interval: int, grace: int, out: Path | None) -> None:
    """Make an agent's next secret and print its delivery: signed, and encrypted to that agent."""
    _write(_licensing(directory).rotate(agent_id, int(time.time()), interval, grace), out)


@main.command("sign-time")
@_directory
@_agent
@click.option("--challenge", required=True, metavar="HEX", help="From 'license-agent-cli clock challenge' on the machine.")
@_out
def sign_time(directory: Path, agent_id: str, challenge: str, out: Path | None) -> None:
    """Print the server's time, signed, for an agent whose clock went wrong."""
    _write(_licensing(directory).sign_time(agent_id, challenge, int(time.time())), out)


def _pairs(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, sign, rest = value.partition("=")
        if not sign or not name:
            raise click.BadParameter(f"{value!r} is not of the form NAME=VALUE")
        pairs[name] = rest
    return pairs


@main.command()
@_directory
@_agent
@click.option("--feature", "features", multiple=True, metavar="NAME", help="A licensed feature; may be repeated.")
@click.option(
    "--metadata", multiple=True, metavar="NAME=VALUE", callback=_pairs, help="For the POS application; may be repeated."
)
@click.option("--not-before", type=_Time(), default="now", show_default=True, help="Begin of the license.")
@click.option("--expires", type=_Time(), required=True, help="End: +30d, 2027-01-31, 2027-01-31T12:00:00Z.")
@click.option("--subject", default="unnamed", show_default=True, help="Who the license is for.")
@click.option("--license-id", help="The license's id; a new one if not given.")
@click.option("--secret-version", type=click.IntRange(1), help="Use this version instead of the newest.")
@_out
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
    _write(_licensing(directory).issue(agent_id, order, int(time.time()), secret_version), out)


@main.command()
@_directory
@_agent
@_out
def reissue(directory: Path, agent_id: str, out: Path | None) -> None:
    """Print new tokens, one a line, for all running licenses of an agent, under its newest secret."""
    _write("\n".join(_licensing(directory).reissue(agent_id, int(time.time()))), out)


@main.command()
@_directory
def agents(directory: Path) -> None:
    """List the enrolled agents."""
    rows = [(name, backend, _utc(when)) for name, backend, when in Registry(directory).agents()]
    click.echo(tabulate(rows, headers=["agent", "backend", "enrolled at"]))


@main.command()
@_directory
@_agent
def secrets(directory: Path, agent_id: str) -> None:
    """List an agent's secret versions and their dates (never a secret)."""
    rows = [
        (row.version, _utc(row.valid_from), _utc(row.valid_until), _utc(row.grace_until))
        for row in Registry(directory).secrets(agent_id)
    ]
    click.echo(tabulate(rows, headers=["version", "valid from", "valid until", "grace until"]))


def _utc(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))


def entry() -> None:
    """The console script."""
    try:
        main()
    except RegistryError as error:
        click.echo(f"license-server: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        click.echo(f"license-server: {error.filename}: {error.strerror}", err=True)
        sys.exit(1)
