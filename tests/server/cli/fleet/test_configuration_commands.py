"""`license-server fleets configure`, `configuration`, `drift`, `opens` and `certificates`, as an operator meets them."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from contracts.contact.configuration import NAMES
from server.registry.models.core import Certificate
from tests.server.cli.test_commands import Run, enrolled, place, run
from tests.support.serverside import open_server

__all__ = ["enrolled", "place", "run"]


@pytest.fixture
def url() -> None:
    """SQLite: what the commands do in the registry is tested with the acts, on both."""


@pytest.fixture(autouse=True)
def nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())


@pytest.fixture
def north(enrolled: Path, run: Run) -> Path:
    run("fleets", "add", "north")
    run("fleets", "members", "add", "north", "till-1")
    return enrolled


def sets(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("fleets", "configuration", "north", "--json").out)["members"]
    return found


def test_settings_are_made_changed_listed_and_ended(north: Path, run: Run, tmp_path: Path) -> None:
    done = run(
        "fleets", "configure", "north", "--set", "updates.window=mon-fri 22:00-05:00 Europe/Berlin", "--set",
        "updates.freeze=2026-12-20..2027-01-06, 2027-05-01", "--set", "updates.notice_h=24", "--set", "updates.consent=quiet",
    )  # fmt: skip
    assert done.err == "fleet north has configuration 1; 'fleets drift north' shows who has not applied it\n"
    window = {"zone": "Europe/Berlin", "days": ["mon", "tue", "wed", "thu", "fri"], "start": "22:00", "end": "05:00"}
    freeze = ["2026-12-20..2027-01-06", "2027-05-01"]
    assert sets(run) == {
        "updates.window": window, "updates.freeze": freeze, "updates.notice_h": 24, "updates.consent": "quiet"
    }  # fmt: skip
    run("fleets", "configure", "north", "--set", "updates.notice_h=48", "--unset", "updates.consent", "--expect", "1")
    shown = run("fleets", "configuration", "north").out
    assert "configuration 2 of fleet north" in shown and "agents: 0 applied, 0 limited, 0 refused, 0 not answered" in shown
    assert "mon,tue,wed,thu,fri 22:00-05:00 Europe/Berlin" in shown and "updates.consent" not in shown
    file = tmp_path / "whole.json"
    file.write_text(run("fleets", "configuration", "north", "--json").out)
    run("fleets", "configure", "north", "--set", "updates.notice_h=72")
    run("fleets", "configure", "north", "--file", file)
    assert sets(run)["updates.notice_h"] == 48, "what was printed can be given back"
    rows = run("fleets", "configuration", "north", "--history", "--json").json()
    assert [row["number"] for row in rows] == [4, 3, 2, 1]
    assert "updates.notice_h=72" in run("fleets", "configuration", "north", "--history").out
    assert run("fleets", "configure", "north", "--end", "--yes").err == "fleet north sets nothing any more\n"
    assert "fleet 'north' has no configuration" in run("fleets", "configuration", "north", code=1).err


def test_drift_names_the_agent_that_has_not_asked_yet(north: Path, run: Run) -> None:
    run("fleets", "configure", "north", "--set", "updates.notice_h=48")
    (row,) = run("fleets", "drift", "north", "--json").json()
    assert (row["device_id"], row["state"], row["fleet_id"], row["sent_at"]) == ("till-1", "never", None, None)
    table = run("fleets", "drift", "north").out.splitlines()
    assert table[0].split()[:2] == ["agent", "state"] and table[2].split()[:3] == ["till-1", "never", "-"]


def test_certificates_that_are_to_be_renewed_are_listed_with_their_times(north: Path, run: Run) -> None:
    assert run("fleets", "certificates", "north", "--json").json() == []
    server = open_server(north)
    with server.database.write() as session:
        dates = {"issued_at": 1_700_000_000, "not_after": 1_702_592_000}
        session.add(Certificate(fingerprint="f" * 64, agent_id="till-1", number="1", state="active", **dates))
    server.close()
    (row,) = run("fleets", "certificates", "north", "--late", "--json").json()
    assert (row["device_id"], row["state"], row["ends"], row["fleet_id"]) == ("till-1", "ended", 1_702_592_000, None)
    table = run("fleets", "certificates", "north").out.splitlines()
    assert table[0].split()[:3] == ["agent", "state", "renews"] and table[2].split()[:2] == ["till-1", "ended"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "Nothing to set: give --file, --set or --unset, or --end."),
        (["--end", "--set", "updates.notice_h=1"], 2, "--end goes with none of --file, --set, --unset and --expect."),
        (["--end"], 1, "--yes"),
        (["--set", "server.url=https://evil"], 2, f"must be NAME=VALUE; the names are {', '.join(NAMES)}"),
        (["--set", "updates.notice_h"], 2, "must be NAME=VALUE"),
        (["--set", "updates.notice_h=many"], 2, "updates.notice_h: invalid literal"),
        (["--set", "updates.window=at night"], 2, "is not a window; write it as 'mon-fri 22:00-05:00 Europe/Berlin'"),
        (["--set", "updates.window={"], 2, "updates.window: "),
        (["--set", "updates.window=daily 22:00-05:00 Mars/Olympus"], 1, "names the time zone 'Mars/Olympus'"),
        (["--set", "updates.notice_h=0"], 1, "updates.notice_h"),
        (["--set", "updates.freeze=2026-02-30"], 1, "there is no such day"),
        (["--unset", "updates.window"], 1, "fleet 'north' does not set updates.window"),
        (["--set", "updates.notice_h=1", "--expect", "3"], 1, "fleet 'north' has configuration 0, not 3"),
        (["--file", __file__], 2, "is not JSON"),
    ],
)
def test_what_cannot_be_set_is_said(north: Path, run: Run, arguments: list[str], code: int, said: str) -> None:
    assert said in " ".join(run("fleets", "configure", "north", *arguments, code=code).err.split())
    assert "has no configuration" in run("fleets", "configuration", "north", code=1).err


def test_what_opens_when_is_printed_in_the_zones_of_window_and_devices(north: Path, run: Run) -> None:
    run("fleets", "configure", "north", "--set", "updates.window=daily 22:00-04:00 Europe/Berlin")
    done = run("fleets", "opens", "north", "--days", "2")
    assert "Europe/Berlin (0 devices)" in done.out and "22:00 +0" in done.out and "04:00 +0" in done.out
    assert "NOTE: 1 devices: no time zone is known of these devices" in done.err
    run("devices", "change", "till-1", "--zone", "America/New_York")
    done = run("fleets", "opens", "north", "--days", "2")
    assert "America/New_York (1 devices)" in done.out and done.err == ""
    found = json.loads(run("fleets", "opens", "north", "--json").out)
    assert found["zone"] == "Europe/Berlin" and len(found["openings"]) in (14, 15) and found["number"] == 1
    run("fleets", "configure", "north", "--end", "--yes")
    assert "the fleet sets no window: any time will do" in run("fleets", "opens", "north").out
