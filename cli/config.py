"""Defines the commands that check and show the configuration."""

import json
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from tabulate import tabulate

from .agent import EXIT_NEGATIVE, EXIT_UNAVAILABLE, Agent, pass_agent

_UNSET = "-"
_ORIGINS = {"fleet": "the fleet", "file": "the file", "default": "default", "provisioning": "provisioning"}


@click.group()
def config() -> None:
    """Check and show the configuration."""


@config.command("check")
@click.option("--file", envvar="LICENSE_AGENT_CONFIG", metavar="PATH", help="The file (default: the agent's).")
@pass_agent
def config_check(agent: Agent, file: str | None) -> None:
    """Check the configuration file as the agent does when it starts; the agent need not be running."""
    program = Path(sys.argv[0]).resolve().with_name("license-agent")
    command = [str(program) if program.exists() else "license-agent"]
    command += ["--config", file] if file else []
    try:
        done = subprocess.run([*command, "check-config", "--json"], capture_output=True, text=True, check=False)
        reply = json.loads(done.stdout)
    except (OSError, ValueError):
        click.echo("license-agent-cli: the command license-agent cannot be run; is the package installed?", err=True)
        sys.exit(EXIT_UNAVAILABLE)
    agent.show(reply, "\n".join(reply["problems"]) or f"{reply['file']}: no problems found")
    if not reply["ok"]:
        sys.exit(EXIT_NEGATIVE)


@config.command("show")
@click.option("--changed", is_flag=True, help="Only what is not the default.")
@pass_agent
def config_show(agent: Agent, changed: bool) -> None:
    """Show the configuration that is in force: each key, its value, and where that comes from."""
    reply = agent.ask("config_show")
    if changed:
        reply["entries"] = [entry for entry in reply["entries"] if entry["origin"] != "default" or "after_restart" in entry]
    agent.show(reply, config_text(reply))


def config_text(reply: dict[str, Any]) -> str:
    """The reply to `config_show`."""
    rows = []
    for entry in reply["entries"]:
        value, default = (_value(entry["key"], entry[name]) for name in ("value", "default"))
        later = f"after a restart: {_value(entry['key'], entry['after_restart'])}" if "after_restart" in entry else ""
        other = f"default: {default}" if default not in (value, _UNSET) else ""
        origin = _ORIGINS.get(entry["origin"], entry["origin"])
        if entry["origin"] == "fleet" and (fleet := reply.get("fleet")):
            origin = f"fleet {fleet['id']}, number {fleet['number']}"
        rows.append((entry["key"], value, origin, ", ".join(filter(None, (other, later)))))
    text = f"in force, from {reply['file']}:\n\n" if reply["file"] else ""
    text += str(tabulate(rows, headers=["key", "value", "from", ""], tablefmt="simple", disable_numparse=True))
    notes = [*reply["problems"], *(f"the fleet's {text}" for text in reply.get("limited", ()))]
    if reply["problems"]:
        notes.append("the file on disk is refused: what is shown stays in force")
    elif reply["unloaded"]:
        notes.append("the file on disk was changed and not loaded: run 'systemctl reload license-agent'")
    if reply["needs_restart"]:
        notes.append(f"a restart is needed for {', '.join(reply['needs_restart'])}: run 'systemctl restart license-agent'")
    return "\n".join([text, *(click.style(f"NOTE: {note}", fg="yellow") for note in notes)])


def _value(key: str, value: Any) -> str:
    """A value as people read it, users with their names."""
    if value is None or value in ("", [], {}):
        return _UNSET
    if isinstance(value, bool):
        return "true" if value else "false"
    if key == "tpm.nv_base":
        return f"{value:#010x}"
    if key.endswith("allowed_uids"):
        return ", ".join(map(_user, value))
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if key == "updates.window":
        return f"{value['start']} to {value['end']} {value['zone']}, {', '.join(value['days'])}"
    if key == "fleet.limits":
        return "; ".join(f"{name}: {least} to {most}" for name, (least, most) in value.items())
    if isinstance(value, dict):
        return "; ".join(f"{_user(int(uid))}: {', '.join(products)}" for uid, products in value.items())
    return str(value)


def _user(uid: int) -> str:
    try:
        return f"{uid} ({pwd.getpwuid(uid).pw_name})"
    except KeyError:
        return str(uid)
