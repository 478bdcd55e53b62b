"""`license-server fleets health`, `observations`, `thresholds` and `alerts`, as an operator meets them."""

import time
from pathlib import Path

import pytest

from server.fleet.monitoring import observations
from server.fleet.monitoring.intervals import INTERVAL_S, SETTLED_S, settled_until
from server.fleet.monitoring.watch import Watch
from tests.server.cli.test_commands import Run, enrolled, place, run
from tests.support.serverside import open_server

__all__ = ["enrolled", "place", "run"]


@pytest.fixture
def url() -> None:
    """SQLite: what the commands do in the registry is tested with the acts, on both."""


@pytest.fixture
def north(enrolled: Path, run: Run) -> Path:
    run("fleets", "add", "north")
    return enrolled


def fail(directory: Path) -> None:
    """Lets an interval be judged in which 10 of 100 contacts failed."""
    server = open_server(directory)
    now = int(time.time())
    Watch(server.database).run(now)
    with server.database.write() as session:
        row = observations.row_of(session, "north", settled_until(now))
        row.contacts, row.failed = 100, 10
    Watch(server.database).run(settled_until(now) + INTERVAL_S + SETTLED_S)
    server.close()


def test_a_fleet_is_judged_and_its_alert_handled(north: Path, run: Run) -> None:
    assert run("fleets", "health", "north").err == "not judged yet: the server judges each fleet every 5 minutes\n"
    run("fleets", "thresholds", "set", "north", "--raise-after", "1", "--window", "1", "--error-rate", "0.1,0.5")
    fail(north)
    shown = run("fleets", "health", "north").out
    assert "contacts:       100\n" in shown and "failed:         10 %\n" in shown and "warning: error-rate is raised" in shown
    assert run("fleets", "health", "north", "--json").json()["error_rate"] == 0.1
    assert "10 % of the contacts failed; the threshold is 10 %" in run("fleets", "alerts", "list").out
    [row] = run("fleets", "alerts", "list", "--fleet", "north", "--json").json()
    assert (row["kind"], row["severity"], row["state"]) == ("error-rate", "warning", "raised")
    assert run("fleets", "alerts", "acknowledge", row["alert_id"]).err == f"acknowledged {row['alert_id']}\n"
    shown = run("fleets", "alerts", "show", row["alert_id"]).out
    assert "acknowledged" in shown and "sent:           yes" in shown
    newest = run("fleets", "observations", "north", "--json").json()[0]
    assert (newest["contacts"], newest["failed"], newest["latency_p95_s"]) == (100, 10, None)
    assert "latency (p95)" in run("fleets", "observations", "north", "--limit", "1").out


def test_thresholds_are_shown_as_they_are_set(north: Path, run: Run) -> None:
    usual = run("fleets", "thresholds", "show", "north").out
    assert "error rate:     warning 5 %, critical 20 %" in usual and "late:           warning -, critical -" in usual
    changed = run("fleets", "thresholds", "set", "north", "--late", "-,0.5", "--latency", "1", "--no-anomalies").out
    assert "late:           warning -, critical 50 %" in changed and "latency:        warning 1 s, critical -" in changed
    assert "anomalies:      off" in changed and "error rate:     warning 5 %, critical 20 %" in changed
    for arguments, problem in (
        ([], "Nothing to change"), (["--late", "x,y"], "must be WARNING"), (["--late", "1,2,3"], "must be WARNING"),
        (["--error-rate", "0.5,0.1"], "must be greater than 'warning'"), (["--zone", "Mars/Olympus"], "does not exist"),
    ):  # fmt: skip
        assert problem in run("fleets", "thresholds", "set", "north", *arguments, code=None).err


def test_a_silence_is_made_listed_and_ended(north: Path, run: Run) -> None:
    made = run("fleets", "alerts", "silence", "--fleet", "north", "--kind", "late", "--until", "+2h", "--comment", "we move")
    assert made.err.startswith("silenced late alerts of north until ")
    silence = made.out.strip()
    assert "we move" in run("fleets", "alerts", "silences").out
    assert run("fleets", "alerts", "unsilence", silence).err == f"ended {silence}\n"
    assert run("fleets", "alerts", "silences", "--json").json() == []
    assert "after 30 days at the latest" in run("fleets", "alerts", "silence", "--until", "+31d", code=None).err
