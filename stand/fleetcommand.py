"""The command `license-stand fleet`: many virtual machines at the stand's server, which are agents to it.

The machines are in `standfleet`, which nothing imports: it is started as a process, and asks over the network as agents do.
"""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import click

from . import acts
from .commands import Commands
from .options import directory_option, running
from .programs import StandError, program
from .setup import Layout
from .updates import FIRST, HARDWARE

MOST = 5000
"""Devices that are enrolled one by one; more of them take a server of its own."""
TOKENS_AT_ONCE = 1000
_NAMES = "outage, slow, lies, cloned, clock, rolls-back"


@click.command()
@directory_option
@click.option("--devices", type=click.IntRange(1, MOST), required=True, metavar="N", help=f"How many, up to {MOST:,}.")
@click.option("--seed", type=click.IntRange(0, 10**9), default=1, show_default=True, help="Makes keys, faults and times.")
@click.option("--hours", type=click.FloatRange(0.1, 720), default=2.0, show_default=True, help="Of the machines' own time.")
@click.option(
    "--outage", type=click.IntRange(0), metavar="MINUTES", help="So long after the begin, no machine has a network for an hour."
)
@click.option(
    "--profile", "profiles", multiple=True, metavar="NAME=SHARE", help=f"So many percent of them fail in a way: {_NAMES}."
)
@click.option("--connections", type=click.IntRange(1, 512), default=32, show_default=True, help="At once.")
@click.option("--version", "runs", default=FIRST, show_default=True, help="Of the POS application that they run.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def fleet(
    directory: Path,
    devices: int,
    seed: int,
    hours: float,
    outage: int | None,
    profiles: tuple[str, ...],
    connections: int,
    runs: str,
    as_json: bool,
) -> None:
    """Enroll virtual machines at the stand's server, and let them contact it for some hours of their own time.

    They sign what they ask with keys of their own, do what rollouts order, and report how it went. Their time goes as fast as
    the server answers. The same seed makes the same machines, which are the same agents when the command runs again.
    """
    layout = running(directory)
    url = acts.info_of(layout)["server_url"]
    if url is None:
        raise StandError("this stand has no server: it was started with --by-hand, or 'license-stand server stop' has ended it")
    commands = Commands(layout.run)
    root = commands.run("license-server", "root-certificate", "--dir", str(layout.server)) + "\n"
    options = {
        "url": url, "root": root, "devices": devices, "seed": seed, "hours": hours, "outage": outage, "profiles": profiles,
        "connections": connections, "version": runs, "build": "b0", "hardware": HARDWARE, "json": as_json,
    }  # fmt: skip
    # Tokens go by standard input: a list of processes shows arguments to everybody.
    tokens = "\n".join(_tokens(commands, layout, devices))
    command = [program("python"), "-m", "standfleet", json.dumps(options)]
    sys.stdout.flush()
    done = subprocess.run(command, input=tokens, text=True, check=False)
    if done.returncode not in (0, 1):
        raise StandError(f"the fleet ended with status {done.returncode}")
    sys.exit(done.returncode)


def _tokens(commands: Commands, layout: Layout, count: int) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        most = min(TOKENS_AT_ONCE, count - len(found))
        text = commands.run(
            "license-server",
            "enrollment-token",
            "make",
            "--dir",
            str(layout.server),
            "--count",
            str(most),
            "--lifetime",
            "86400",
        )
        found += [row["token"] for row in csv.DictReader(io.StringIO(text))]
    return found
