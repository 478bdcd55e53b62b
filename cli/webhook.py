"""Commands for the webhook that alerts go to: its keys, a test, its dead letters."""

import os
import sys
from pathlib import Path
from typing import Any

import click
from tabulate import tabulate

from . import inputs, render
from .agent import EXIT_NEGATIVE, Agent, pass_agent


@click.group()
def webhook() -> None:
    """Look at the webhook that alerts go to, and test it."""


@webhook.command("status")
@pass_agent
def status(agent: Agent) -> None:
    """Show its keys (never a key itself), what waits, and what its receiver has not taken."""
    reply = agent.ask("webhook_status")
    agent.show(reply, _status_text(reply))


@webhook.command("test")
@pass_agent
def test(agent: Agent) -> None:
    """Send an alert 'webhook.test' now, and say how that ended; it is not tried again."""
    reply = agent.ask("webhook_test")
    if reply["taken"]:
        agent.show(reply, f"the receiver took the test: it answered {reply['status']}")
        return
    if agent.as_json:
        agent.show(reply, "")
    else:
        click.echo(f"license-agent-cli: the test did not reach the webhook: {_text(reply['problem'])}", err=True)
    sys.exit(EXIT_NEGATIVE)


@webhook.command("retry")
@pass_agent
def retry(agent: Agent) -> None:
    """Send all dead letters once more, and what waits at once."""
    reply = agent.ask("webhook_retry")
    agent.show(reply, f"dead letters to be sent again: {reply['revived']}; alerts that wait: {reply['waiting']}")


@click.group("webhook-key")
def webhook_key() -> None:
    """Make, list and end the keys that alerts are signed with."""


@webhook_key.command("new")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the key to this new file, mode 0600."
)
@pass_agent
def new(agent: Agent, out: Path | None) -> None:
    """Make a key and show it once. Alerts are signed with the former key too, until 'webhook-key end'."""
    if out is None and not sys.stdout.isatty():
        raise click.UsageError("the key is shown at a terminal only; use --out FILE to write it to a file")
    # The file first: a key that could not be kept would sign alerts that nobody can check.
    descriptor = None if out is None else _private_file(out)
    try:
        reply = agent.ask("webhook_key_new")
        if descriptor is not None:
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(reply["key"].encode() + b"\n")
            os.fsync(descriptor)
    except BaseException:
        if out is not None:
            out.unlink(missing_ok=True)
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)
    two = " Alerts are signed with the former key too; end it with 'webhook-key end' once the receiver has the new one."
    more = two if reply["keys"] > 1 else ""
    if out is not None:
        agent.show(
            {"key_id": reply["key_id"], "file": str(out), "keys": reply["keys"]},
            f"key {reply['key_id']}: written to {out}.{more}",
        )
        return
    agent.show(reply, f"key {reply['key_id']}, shown this once:\n\n    {reply['key']}\n\nGive it to the receiver.{more}")


@webhook_key.command("show-id")
@pass_agent
def show_id(agent: Agent) -> None:
    """List the keys by their ids, the present one first; never a key itself."""
    keys = agent.ask("webhook_status")["keys"]
    agent.show({"keys": keys}, _keys_text(keys))


@webhook_key.command("end")
@click.option("--id", "key", default="", metavar="ID", help="End this key, not the former of two.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_agent
def end(agent: Agent, key: str, yes: bool) -> None:
    """End the former of two keys: nothing is signed with it any more."""
    if not yes:
        which = f"Key {key}" if key else "The former key"
        inputs.confirm(f"{which} ends: a receiver that has no other key refuses every alert. Continue?")
    reply = agent.ask("webhook_key_end", key=key)
    left = "" if reply["keys"] else " No key is left: alerts wait until there is one."
    agent.show(reply, f"key {reply['key_id']} signs nothing any more.{left}")


COMMANDS = (webhook, webhook_key)


def _private_file(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _text(problem: str) -> str:
    return problem or "no reason was given"


def _keys_text(keys: list[dict[str, Any]]) -> str:
    if not keys:
        return "there is no key; 'license-agent-cli webhook-key new' makes one"
    rows = [
        (key["id"], render.utc(key["created_at"]), "present" if number == 0 else "former") for number, key in enumerate(keys)
    ]
    return tabulate(rows, headers=("key", "made", ""), disable_numparse=True)


def _status_text(reply: dict[str, Any]) -> str:
    lines = [
        f"webhook           {'on' if reply['enabled'] else 'off: set webhook = true in [alerts], then reload'}",
        f"from severity     {reply['min_severity']}",
        f"waiting           {reply['waiting']}",
        f"dropped           {reply['dropped']}",
    ]
    if reply["problem"]:
        since = "" if reply["failing_since"] is None else f" since {render.utc(reply['failing_since'])}"
        lines.append(f"failing{since}: {reply['problem']}")
    lines += ["", _keys_text(reply["keys"])]
    if reply["dead_letters"]:
        rows = [
            (dead["id"], dead["alert"], dead["state"], render.utc(dead["at"]), dead["problem"])
            for dead in reply["dead_letters"]
        ]
        lines += ["", tabulate(rows, headers=("dead letter", "alert", "state", "put aside", "why"), disable_numparse=True)]
    return "\n".join(lines)
