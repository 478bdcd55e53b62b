"""`license-server devices` and `fleets`, as an operator meets them."""

import csv
import io
import json
from pathlib import Path

import pytest

from tests.server.cli.test_commands import Run, enrolled, place, run

__all__ = ["enrolled", "place", "run"]


@pytest.fixture
def url() -> None:
    """SQLite: what the commands do in the registry is tested with the acts, on both."""


@pytest.fixture(autouse=True)
def nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())


def test_devices_are_labelled_found_and_shown(enrolled: Path, run: Run) -> None:
    assert run("devices", "tag", "beta", "till-1").err == "1 device with the tag beta\n"
    run("devices", "set", "till-1", "lane=7", "floor=ground floor")
    run("devices", "change", "till-1", "--name", "Till 1", "--zone", "Europe/Berlin")
    shown = run("devices", "show", "till-1").out
    for line in (
        "device:       till-1", "name:         Till 1", "kind:         agent", "status:       active", "connection:   never",
        "zone:         Europe/Berlin", "certificate:  -", "tags:         beta",
        "attribute:    floor=ground floor, from the operator",
    ):  # fmt: skip
        assert line in shown, shown
    assert json.loads(run("devices", "show", "till-1", "--json").out)["attributes"][1]["value"] == "7"
    (row,) = run("devices", "list", "--where", 'tag=beta and attr.floor="ground floor"', "--json").json()
    assert row["device_id"] == "till-1"
    assert run("devices", "list", "--where", "not tag=beta", "--json").json() == []
    table = run("devices", "list").out.splitlines()
    assert table[0].split()[:3] == ["device", "kind", "status"] and table[2].split()[:3] == ["till-1", "agent", "active"]
    (line,) = csv.DictReader(io.StringIO(run("devices", "list", "--csv").out))
    assert (line["device"], line["zone"], line["tags"], line["last_contact"]) == ("till-1", "Europe/Berlin", "beta", "")
    run("devices", "untag", "beta", "till-1")
    run("devices", "unset", "till-1", "lane", "floor")
    assert run("devices", "list", "--where", "tag=beta or attr.lane=7", "--json").json() == []


def test_what_is_wrong_with_a_selection_is_said(enrolled: Path, run: Run) -> None:
    said = run("devices", "list", "--where", "pos.version<new", code=1).err
    assert "the selection is malformed at column 13: expected a version" in said
    assert (
        "there is no device 'nobody'; 'license-server devices list' lists them" in run("devices", "show", "nobody", code=1).err
    )
    assert "Give --csv or --json" in run("devices", "list", "--csv", "--json", code=2).err
    assert "not of the form NAME=VALUE" in run("devices", "set", "till-1", "lane", code=2).err


def test_a_device_is_blocked_by_one_command_and_unblocked(enrolled: Path, run: Run) -> None:
    assert run("devices", "block", "till-1").err == "till-1 is blocked\n"
    assert run("agents", "list", "--json").json()[0]["status"] == "revoked"
    assert "nobody answered yes" in run("devices", "unblock", "till-1", code=1).err
    said = run("devices", "unblock", "till-1", "--yes").err
    assert said == "till-1 is active; provision it again, for its certificates stay revoked\n"
    assert "active already" in run("devices", "unblock", "till-1").err


def test_a_fleet_is_tried_made_changed_and_deleted(enrolled: Path, run: Run) -> None:
    matched = run("fleets", "match", "id=till-*")
    assert (matched.out, matched.err) == ("till-1\n", "1 device\n")
    assert "rank:          10" in run("fleets", "add", "pilot", "--where", "tag=beta", "--name", "Pilot shops").out
    assert run("fleets", "members", "add", "pilot", "till-1").err == "put 1 device into pilot\n"
    assert run("devices", "list", "--fleet", "pilot", "--json").json()[0]["device_id"] == "till-1"
    assert "fleets:       pilot" in run("devices", "show", "till-1").out
    shown = run("fleets", "show", "pilot").out
    assert "selection:     tag=beta" in shown and "put in:        1 device" in shown
    changed = run("fleets", "change", "pilot", "--where", "", "--tag", "north", "--rank", "3").out
    assert "selection:     -" in changed and "tags:          north" in changed
    assert run("fleets", "list").out.splitlines()[2].split()[:4] == ["3", "pilot", "Pilot", "shops"]
    assert "Nothing to change" in run("fleets", "change", "pilot", code=2).err
    assert run("fleets", "members", "remove", "pilot", "till-1").err == "took 1 device out of pilot\n"
    assert "nobody answered yes" in run("fleets", "delete", "pilot", code=1).err
    assert run("fleets", "delete", "pilot", "--yes").err == "deleted fleet pilot\n"
    assert run("fleets", "list", "--json").json() == []
