"""Updates of a POS application: one that works, one that goes back by itself, one that somebody forged."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from .scenario import Scenario
from .tills import Tills


def updated(scenario: Scenario, directory: Path) -> Iterator[str]:
    """Gives the stand updates, then publishes three versions; the agent's register says how each ended."""
    root = str(Path(scenario.info["state_dir"]).parent)
    scenario.tool("license-stand", "ota", "init", "--dir", root)

    def published(version: str, *how: str) -> dict[str, Any]:
        # Exit status 1 says that it ended otherwise than it should; the row then shows how.
        scenario.tool("license-stand", "ota", "publish", version, *how, "--dir", root, fine=(0, 1))
        return entry_of(scenario, version)

    with Tills(scenario, directory) as tills:
        line = published("1.1")
        tills.wait_for(20)
    yield f"{line['outcome']}, {tills.outcome()}"
    line = published("1.2", "--bad")
    click.echo(f"      {line['reason'][:100]}")
    yield f"{line['outcome']}: {line['reason'].partition(':')[0]}"
    # Nothing was begun, so the register has no line of it.
    said = scenario.tool("license-stand", "ota", "publish", "1.3", "--forged", "--dir", root, fine=(0, 1)).strip()
    click.echo(f"      {said[:100]}")
    yield f"{said.partition(':')[0]}: {said.rpartition('(')[2].rstrip(')')}"
    (running,) = json.loads(scenario.tool("license-agent-cli", "--json", "ota", "status"))["running"]
    yield f"{running['product']} {running['version']}"


def entry_of(scenario: Scenario, version: str) -> dict[str, Any]:
    """The line of the agent's maintenance register about a version."""
    lines = json.loads(scenario.tool("license-agent-cli", "--json", "ota", "history"))["entries"]
    return next((line for line in lines if line["version"] == version), {"outcome": "no line of the register", "reason": ""})
