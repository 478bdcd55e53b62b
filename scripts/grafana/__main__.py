"""Writes the dashboards as JSON, or says which of them are out of date."""

import argparse
import json
from pathlib import Path

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import RowPanel

from . import agent, server

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "packaging" / "grafana"
DASHBOARDS = {"license-agent.json": agent.build, "license-server.json": server.build}


def text_of(board: Dashboard) -> str:
    """A dashboard's JSON, the same for the same dashboard."""
    built = board.build()
    number = 0
    for panel in built.panels or []:
        for each in (panel, *(panel.panels if isinstance(panel, RowPanel) else ())):
            number += 1
            each.id_val = number
    return json.dumps(built, cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/dashboards", description="Rewrite the Grafana dashboards.")
    parser.add_argument("--check", action="store_true", help="Change nothing; exit with 1 if a dashboard is out of date.")
    options = parser.parse_args()
    old = False
    for name, build in DASHBOARDS.items():
        path, text = PLACE / name, text_of(build())
        if path.exists() and path.read_text("utf-8") == text:
            continue
        old = True
        if options.check:
            print(f"{path.relative_to(ROOT)}: out of date; run scripts/dashboards")
        else:
            path.write_text(text, "utf-8")
            print(f"{path.relative_to(ROOT)}: rewritten")
    return int(old and options.check)


if __name__ == "__main__":
    raise SystemExit(main())
