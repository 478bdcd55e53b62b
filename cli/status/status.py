"""Defines `status` and `healthcheck`, and watches the status: redrawn at a terminal, one line at each change elsewhere."""

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from cli import health, render
from cli.agent import Agent, for_terminal, pass_agent

from . import machinelook, statustext

_CLEAR, _UNWRAPPED, _WRAPPED = "\x1b[2J\x1b[H", "\x1b[?7l", "\x1b[?7h"
"""Clears the screen; lets the terminal cut long lines, and wrap them again."""
WATCH_S = 2


@click.command()
@click.option("--watch", is_flag=True, help="Show it again and again until Ctrl-C; without a terminal a line at each change.")
@click.option(
    "--every", type=click.IntRange(1, 3600), default=WATCH_S, show_default=True, metavar="S", help="With --watch: seconds."
)
@pass_agent
def status(agent: Agent, watch: bool, every: int) -> None:
    """Say whether the agent works, and show its licenses, secrets, TPM and server."""
    if watch:
        # A key on a token may want a touch for each signature.
        with agent.reading() if agent.signs else contextlib.nullcontext():
            ends = _watched(agent, every, time.sleep)
        sys.exit(ends)
    reply = agent.ask_health()
    found, machine = health.health_of(reply), machinelook.look(agent, reply)
    shown = {"health": found, **reply} if machine is None else {"health": found, "machine": machine, **reply}
    agent.show(shown, _whole(found, reply, machine or []))
    sys.exit(health.exit_status(found))


@click.command()
@pass_agent
def healthcheck(agent: Agent) -> None:
    """Say in one line whether the agent works, for scripts and monitoring; see EXIT STATUS in license-agent-cli(8)."""
    found = health.health_of(agent.ask_health())
    agent.show(found, health.line(found))
    sys.exit(health.exit_status(found))


def _whole(found: health.Health, reply: dict[str, Any], machine: machinelook.Found) -> str:
    details = statustext.status_text(reply) if "mode" in reply else ""
    return "\n\n".join(filter(None, (health.lines(found), machinelook.text(machine), details)))


def _watched(agent: Agent, every: int, sleep: Callable[[float], None]) -> int:
    """Shows the status until Ctrl-C; returns the exit status of what was shown last."""
    screen = sys.stdout.isatty() and not agent.as_json
    last: object = None
    ends = health.EXIT_NO_ANSWER
    try:
        while True:
            reply = agent.ask_health()
            found = health.health_of(reply)
            ends = health.exit_status(found)
            if screen:
                _redraw(_whole(found, reply, []), every)
            else:
                state = statustext.watch_line(reply)
                # Not the texts: they have counts and times that move by themselves.
                codes = [finding["code"] for finding in found["findings"]]
                if (found["verdict"], codes, state) != last:
                    _print_change(agent, found, state)
                last = found["verdict"], codes, state
            sleep(every)
    except KeyboardInterrupt:
        return ends
    finally:
        if screen:
            sys.stdout.write(f"{_WRAPPED}\n")
            sys.stdout.flush()


def _print_change(agent: Agent, found: health.Health, state: str) -> None:
    now = int(time.time())
    if agent.as_json:
        click.echo(json.dumps({"time": now, "health": found, "state": state}))
    else:
        line = f"{render.utc(now)} {health.line(found)}"
        click.echo(for_terminal(f"{line}; {state}" if state else line))
    sys.stdout.flush()


def _redraw(text: str, every: int) -> None:
    rows = shutil.get_terminal_size().lines
    lines = for_terminal(text).splitlines()
    if len(lines) > rows - 2:
        lines = [*lines[: rows - 3], f"({len(lines) - rows + 3} more lines: a taller window shows them)"]
    foot = f"{render.utc(int(time.time()))}, every {every} s; Ctrl-C ends"
    # Through click for the colors alone: it takes them out where they are not wanted.
    sys.stdout.write(_UNWRAPPED + _CLEAR)
    click.echo("\n".join([*lines, "", foot]), nl=False)
    sys.stdout.flush()
