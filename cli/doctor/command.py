"""Defines the command `doctor`. What it needs is imported when it runs: no other command waits for it."""

import pwd
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..agent import Agent

if TYPE_CHECKING:
    from .machine import Machine

LINK_USER = "license-agent-link"


@click.group(invoke_without_command=True)
@click.option(
    "--config",
    envvar="LICENSE_AGENT_CONFIG",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The agent's configuration file.  [default: /etc/license-agent/config.toml]",
)
@click.option("--deep", is_flag=True, help="Check the whole audit log, which may take minutes.")
@click.option("--host", is_flag=True, help="Check the network rules of the host too: nftables, SSH, accounts, keys, Wi-Fi.")
@click.pass_context
def doctor(ctx: click.Context, config: Path | None, deep: bool, host: bool) -> None:
    """Find out what is wrong with the agent and its machine, and say what to do; the agent need not be running."""
    from .machine import Machine

    agent: Agent = ctx.obj
    machine = Machine(agent, time.time(), agent_uid=agent.agent_uid, deep=deep)
    if config is not None:
        machine.config = config.absolute()
    if ctx.invoked_subcommand is None:
        _make_checks(agent, machine, host)
    elif deep or host:
        raise click.UsageError("--deep and --host belong to 'doctor' alone")
    ctx.obj = (agent, machine)


def _make_checks(agent: Agent, machine: "Machine", host: bool) -> None:
    from ..render import terminal_columns
    from . import report
    from .table import CHECKS, HOST_CHECKS

    results = [check.make(machine) for check in (*CHECKS, *(HOST_CHECKS if host else ()))]
    agent.show(report.view(results), report.text(results, terminal_columns()))
    sys.exit(report.exit_status(results))


@doctor.command()
@click.option("--address", "addresses", multiple=True, metavar="HOST=ADDRESS", help="A server's address; may be repeated.")
@click.option("--dns", multiple=True, metavar="ADDRESS", help="A resolver; may be repeated.  [default: those of resolv.conf]")
@click.option("--ntp", multiple=True, metavar="ADDRESS", help="A time server; may be repeated.")
@click.option("--ssh-from", multiple=True, metavar="NETWORK", help="Who may come in by SSH; may be repeated.")
@click.option("--allow-in", multiple=True, metavar="RULE", help="Who else may come in: PROTOCOL:NETWORK:PORT; may be repeated.")
@click.option(
    "--allow-out", multiple=True, metavar="RULE", help="What else may be reached: PROTOCOL:NETWORK:PORT; may be repeated."
)
@click.option("--link-uid", type=click.IntRange(0), metavar="UID", help="The link's UID if its user is not license-agent-link.")
@click.pass_obj
def nftables(
    objects: "tuple[Agent, Machine]",
    addresses: tuple[str, ...],
    dns: tuple[str, ...],
    ntp: tuple[str, ...],
    ssh_from: tuple[str, ...],
    allow_in: tuple[str, ...],
    allow_out: tuple[str, ...],
    link_uid: int | None,
) -> None:
    """Print rules for nftables: inbound closed but for what is listed, outbound open to what link.toml and the options name."""
    from .host import nftables as rules

    agent, machine = objects
    try:
        outbound = rules.of_link(machine.destinations(), _known(machine, addresses), _uid_of_link(link_uid))
        for address in dns or rules.nameservers(_resolvers(machine)):
            outbound.append(rules.Allowed(rules.network(address), "", rules.DNS_PORT, "DNS"))
        outbound += [rules.Allowed(rules.network(address), "udp", rules.NTP_PORT, "NTP") for address in ntp]
        outbound += [rules.allowed(text) for text in allow_out]
        inbound = [rules.Allowed(rules.network(text), "tcp", rules.SSH_PORT, "SSH") for text in ssh_from]
        inbound += [rules.allowed(text) for text in allow_in]
    except rules.BadRule as error:
        raise click.UsageError(str(error)) from None
    for missing in (
        "" if ntp else "no time server is listed: give --ntp, or the clock is never corrected",
        "" if ssh_from else "nobody may come in by SSH: give --ssh-from, if that is how you manage this machine",
    ):
        if missing:
            click.echo(f"license-agent-cli: note: {missing}", err=True)
    text = rules.rule_set(outbound, inbound, str(machine.layout.link))
    agent.show({"rules": text}, text.rstrip("\n"))


def _known(machine: "Machine", addresses: tuple[str, ...]) -> dict[str, list[str]]:
    """The addresses of names: those that are given, then those of /etc/hosts."""
    given: dict[str, list[str]] = {}
    for text in addresses:
        host, equals, address = text.partition("=")
        if not equals or not host:
            raise click.UsageError(f"--address: '{text}' is not HOST=ADDRESS")
        given.setdefault(host.lower(), []).append(address)
    return {**machine.hosts(), **given}


def _resolvers(machine: "Machine") -> str:
    # The file that systemd-resolved writes names the real ones; /etc/resolv.conf names only itself then.
    return machine.text_or("/run/systemd/resolve/resolv.conf") or machine.text_or("/etc/resolv.conf")


def _uid_of_link(given: int | None) -> int:
    if given is not None:
        return given
    try:
        return pwd.getpwnam(LINK_USER).pw_uid
    except KeyError:
        raise click.UsageError(f"there is no user {LINK_USER}: is the package installed? --link-uid names another") from None
