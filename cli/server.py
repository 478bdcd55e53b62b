"""Defines the commands that concern the license server: provisioning, contacts, rotations, degraded mode."""

import sys

import click

from . import render
from .agent import EXIT_NEGATIVE, SERVER_DEADLINE_S, Agent, pass_agent
from .inputs import enrollment_token
from .progress import waiting
from .status import statustext


@click.command()
@click.option("--server", "url", required=True, metavar="URL", help="Where the license server is: https://HOST[:PORT].")
@click.option("--root", required=True, metavar="PIN", help="Pin of its offline root, from 'license-server root-pin'.")
@click.option(
    "--claim",
    required=True,
    metavar="TOKEN",
    callback=enrollment_token,
    help="From 'license-server enrollment-token make'; '-' reads it from standard input, '@FILE' from a file.",
)
@pass_agent
def provision(agent: Agent, url: str, root: str, claim: str) -> None:
    """Make this device an agent of a license server. Run it again if it was interrupted."""
    with waiting("provisioning"):
        reply = agent.ask("provision", deadline=SERVER_DEADLINE_S, url=url, root=root, claim=claim)
    agent.show(reply, f"this device is agent {reply['agent_id']}, serial {reply['serial']} ({reply['attestation']})")


@click.command()
@pass_agent
def rotate(agent: Agent) -> None:
    """Get a new secret from the license server now."""
    with waiting("rotating"):
        reply = agent.ask("rotate", deadline=SERVER_DEADLINE_S)
    agent.show(reply, render.rotation_text(reply))
    if reply["secret_version"] == reply["before"]:
        sys.exit(EXIT_NEGATIVE)


@click.command()
@pass_agent
def contact(agent: Agent) -> None:
    """Contact the license server now, and do what it asks."""
    with waiting("contacting the license server"):
        reply = agent.ask("contact", deadline=SERVER_DEADLINE_S)
    agent.show(reply, statustext.server_text(reply))


@click.group()
def certificate() -> None:
    """Manage the TLS client certificate."""


@certificate.command("renew")
@pass_agent
def certificate_renew(agent: Agent) -> None:
    """Get a certificate for a new key, and use it from now on."""
    reply = agent.ask("certificate_renew", deadline=SERVER_DEADLINE_S)
    agent.show(reply, f"the certificate in use ends at {render.utc(reply['certificate_ends'])}")


@click.group()
def degraded() -> None:
    """Show and switch degraded mode, in which the agent works without its server ([agent] degraded_switch = "allowed")."""


@degraded.command("show")
@pass_agent
def degraded_show(agent: Agent) -> None:
    """Show the mode, and since when."""
    status = agent.ask("status")
    reply = {"mode": status["mode"], "since": status["degraded_since"], "held": bool((status["server"] or {}).get("held"))}
    since = "" if reply["since"] is None else f" since {render.utc(reply['since'])}"
    agent.show(reply, f"{reply['mode']}{since}" + (", switched on by an administrator" if reply["held"] else ""))


@degraded.command("on")
@pass_agent
def degraded_on(agent: Agent) -> None:
    """Stop contacting the server. No license becomes valid for longer."""
    reply = agent.ask("degraded_switch", on=True)
    agent.show(reply, f"the agent is {reply['mode']}; 'license-agent-cli degraded off' ends it")


@degraded.command("off")
@pass_agent
def degraded_off(agent: Agent) -> None:
    """Start contacting the server again."""
    reply = agent.ask("degraded_switch", on=False)
    agent.show(reply, f"the agent is {reply['mode']}")


COMMANDS = (provision, rotate, contact, certificate, degraded)
