"""Defines the command `doctor`."""

import sys
import time
from pathlib import Path

import click

from ..agent import Agent


@click.group(invoke_without_command=True)
@click.option(
    "--config",
    envvar="LICENSE_AGENT_CONFIG",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The agent's configuration file.  [default: /etc/license-agent/config.toml]",
)
@click.option("--deep", is_flag=True, help="Check the whole audit log, which may take minutes.")
@click.pass_context
def doctor(ctx: click.Context, config: Path | None, deep: bool) -> None:
    """Find out what is wrong with the agent and its machine, and say what to do; the agent need not be running."""
    if ctx.invoked_subcommand is not None:
        return
    # Only here: no other command should wait for these to be imported.
    from . import report
    from .machine import Machine
    from .table import CHECKS

    agent: Agent = ctx.obj
    machine = Machine(agent, time.time(), agent_uid=agent.agent_uid, deep=deep)
    if config is not None:
        machine.config = config.absolute()
    results = [check.make(machine) for check in CHECKS]
    agent.show(report.view(results), report.text(results))
    sys.exit(report.exit_status(results))
