"""Notes what was tried on the stand, what was expected, and what the agent made of it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from stand.programs import READY_S

BIN = Path(sys.executable).parent


@dataclass
class Row:
    """One line of the table."""

    what: str
    expected: str
    found: str

    @property
    def agrees(self) -> bool:
        """Whether the agent did what it should."""
        return self.expected == self.found


class Scenario:
    """The stand, and what has been seen on it."""

    def __init__(self, info: dict[str, Any]) -> None:
        self.info = info
        self.tokens: dict[str, str] = info["tokens"]
        self.env = {**os.environ, **info["env"]}
        self.rows: list[Row] = []

    def see(self, what: str, expected: str, act: Callable[[], str]) -> None:
        """Does something and notes what the agent made of it."""
        try:
            found = act()
        except Exception as error:  # noqa: BLE001 - whatever it is, it stands in the table
            found = f"{type(error).__name__}: {error}"
        row = Row(what, expected, found)
        self.rows.append(row)
        mark = click.style("ok ", fg="green") if row.agrees else click.style("BAD", fg="red")
        click.echo(f"  {mark} {what}: {found}")

    def tool(self, name: str, *arguments: str, fine: tuple[int, ...] = (0,)) -> str:
        """Runs one of the installed commands on the stand, without a terminal: the demo asks nothing."""
        done = subprocess.run(
            [str(BIN / name), *arguments],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=READY_S,
        )
        if done.returncode not in fine:
            raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def ask(self, token: str) -> dict[str, Any]:
        """The verdict, by the command for shells."""
        reply: dict[str, Any] = json.loads(self.tool("license-agent-client", "validate", token, fine=(0, 1)))
        return reply

    def verdict(self, token: str) -> str:
        """The verdict as the table shows it."""
        reply = self.ask(token)
        word = "valid" if reply["valid"] else "refused"
        return f"{word}: {reply['reason']}" + (" (secret in GRACE)" if reply["secret_state"] == "GRACE" else "")


def restart_agent(scenario: Scenario) -> None:
    """Kills the agent; returns when the stand has started another."""
    pid = stand_info(scenario)["agent_pid"]
    os.kill(pid, signal.SIGKILL)
    ends = time.monotonic() + READY_S
    while stand_info(scenario)["agent_pid"] == pid and time.monotonic() < ends:
        time.sleep(0.05)


def stand_info(scenario: Scenario) -> dict[str, Any]:
    """stand.json as it is now."""
    info: dict[str, Any] = json.loads((Path(scenario.info["state_dir"]).parent / "stand.json").read_text())
    return info
