"""Looks for `status` at what the agent cannot see from its sandbox: units, profiles, files, sockets, room, link to the metrics.

These are the checks of `doctor` that cost next to nothing; the verdict of `status` is the agent's own all the same.
"""

import os
import time
from typing import TYPE_CHECKING, Any

import click

from cli.agent import Agent
from ipc.posclient.trust import DEFAULT_ADMIN_SOCKET

if TYPE_CHECKING:
    from cli.doctor.machine import Machine

CHECKS = frozenset({
    "units.active", "units.sandbox", "units.apparmor", "files.modes", "files.sockets", "disk.room", "metrics.collected",
    "tpm.device",
})  # fmt: skip
"""Of `doctor`. They start no program but systemctl, and read nothing that grows."""
UNIT = "/usr/lib/systemd/system/license-agent.service"

Found = list[dict[str, str]]
"""`check`, `cause` and `fix` of each thing that is broken."""


def look(agent: Agent, reply: dict[str, Any]) -> Found | None:
    """What is broken on this machine; None where that is not looked at: for others than root, and without the package.

    Args:
        agent: whose status was asked for.
        reply: its reply.
    """
    if os.geteuid() != 0 or agent.path != DEFAULT_ADMIN_SOCKET or not os.path.exists(UNIT):
        return None
    # `status` imports what it needs for that only where it is needed.
    from cli.doctor.machine import Machine

    machine = Machine(agent, time.time(), agent_uid=agent.agent_uid)
    return broken(machine, reply)


def broken(machine: "Machine", reply: dict[str, Any]) -> Found:
    """What the quick checks say of a machine; what could not be looked at is left to `doctor`.

    Args:
        machine: asks its agent nothing more.
        reply: the agent's reply to `status`.
    """
    from cli.doctor.table import CHECKS as ALL
    from cli.doctor.verdict import State

    machine.status = reply
    # An agent that does not work writes no metrics; that it does not work is said already.
    works = reply.get("mode", "unprovisioned") != "unprovisioned"
    wanted = CHECKS if works else CHECKS - {"metrics.collected"}
    return [
        {"check": check.id, "cause": finding.cause, "fix": finding.fix}
        for check in ALL
        if check.id in wanted
        for finding in check.make(machine).findings
        if finding.state is State.FAIL
    ]


def text(found: Found) -> str:
    """A section of `status`; empty if nothing is broken."""
    if not found:
        return ""
    rows = [f"  {click.style(each['check'], fg='red')}  {each['cause']}{_fix(each['fix'])}" for each in found]
    return "\n".join([click.style("machine", bold=True), *rows])


def _fix(fix: str) -> str:
    return f"\n    -> {fix}" if fix else ""
