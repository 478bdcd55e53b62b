"""`license-server rollouts`, as an operator meets it."""

import io
from pathlib import Path
from typing import Any

import pytest

from server.ota import publishing
from server.ota.packages import Package
from server.ota.words import RELEASES
from server.registry.models.core import Agent
from tests.server.cli.test_commands import Run, enrolled, place, run
from tests.server.devices import NOW
from tests.server.ota.vendor import target_of
from tests.support.serverside import open_server

__all__ = ["enrolled", "place", "run"]
PACKAGE = "pos/pos-1.1.0-b2"


@pytest.fixture
def url() -> None:
    """SQLite: what the commands do in the registry is tested with the acts, on both."""


@pytest.fixture(autouse=True)
def nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())


@pytest.fixture
def shops(enrolled: Path, run: Run) -> Path:
    made = open_server(enrolled)
    with made.database.write() as session:
        publishing.record(session, [Package(RELEASES, target_of("1.1.0", "b2"))], NOW)
        session.get_one(Agent, "till-1").capabilities = "updates"
    made.close()
    run("fleets", "add", "shops", "--where", "kind=agent")
    return enrolled


def create(run: Run, *more: object, code: int | None = 0) -> Any:
    return run("rollouts", "create", "r1", "--fleet", "shops", "--package", PACKAGE, *more, code=code)


def test_a_rollout_from_the_draft_to_the_stop(shops: Path, run: Run) -> None:
    options = ("--group", "id=till-*", "--group", "rest", "--success", "95", "--failures", "25", "--notice", "1h")
    days = ("--window", "daily 22:00-05:00 device", "--freeze", "2020-12-20..2021-01-02", "--lasts", "under-way=2h")
    done = create(run, *options, *days)
    assert "rollout r1 of fleet shops: pos 1.1.0 (build b2), draft" in done.out and "id=till-*" in done.out
    shown = run("rollouts", "show", "r1", "--json").out
    for part in ('"success_percent": 95', '"failure_count": 25', '"notice": 3600', '"under_way": 7200', '"zone": "device"'):
        assert part in shown
    rehearsed = run("rollouts", "rehearse", "r1").out
    assert "group 1 (id=till-*): 1 device, 1 hit, 0 up to date" in rehearsed and "(time zone unknown) may begin at" in rehearsed
    done = run("rollouts", "start", "r1", code=1)
    assert "--yes" in done.err and '"state": "draft"' in run("rollouts", "show", "r1", "--json").out
    assert "rollout r1 is announced, announced until" in run("rollouts", "start", "r1", "--yes").err
    assert "till-1" in run("rollouts", "show", "r1", "--devices", "--state", "waiting").out
    assert run("rollouts", "pause", "r1").err == "rollout r1 is paused\n"
    assert "rollout r1 is announced" in run("rollouts", "resume", "r1").err
    assert run("rollouts", "stop", "r1", "--yes", "--reason", "printers").err == "rollout r1 is stopped\n"
    assert "printers" in run("rollouts", "list", "--state", "stopped").out
    done = run("rollouts", "rollback", "r1", "r1-back", "--yes", code=1)
    assert "no device of rollout 'r1' has had an order" in done.err and "'license-server rollouts stop'" not in done.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--failures", "10.5%"], "is not a limit; write 10% or 25"),
        (["--lasts", "forever=2h"], "the states are wait, ordered, under-way, installed"),
        (["--groups", "5%"], "end with 'rest'"),
        (["--groups", "rest", "--group", "rest"], "give one of them"),
        (["--window", "daily 22:00-05:00 Mars/Base"], "there is no time zone 'Mars/Base'"),
        (["--freeze", "2026-12-20..2020-01-01"], "is not a day or days"),
        (["--where", "color=red"], "color"),
    ],
)
def test_what_is_wrong_is_said(shops: Path, run: Run, options: list[str], said: str) -> None:
    done = create(run, *options, code=None)
    assert done.code in (1, 2) and said in done.err
    assert "r1" not in run("rollouts", "list").out


def test_the_policy_of_a_fleet(shops: Path, run: Run) -> None:
    assert "nothing is set" in run("rollouts", "policy", "shops").out
    text = run("rollouts", "policy", "shops", "--success", "70", "--window", "mon-fri 22:00-05:00 Europe/Berlin").out
    assert "success percent: 70" in text and "mon,tue,wed,thu,fri 22:00-05:00 Europe/Berlin" in text
    assert "success percent: 70" in run("rollouts", "policy", "shops", "--failures", "3").out, "the rest stays"
    assert '"success_percent": 70' in create(run, "--json").out
    assert "nothing is set" in run("rollouts", "policy", "shops", "--clear").out


def test_releases_go_to_a_fleet_by_themselves_until_it_is_turned_off(shops: Path, run: Run) -> None:
    refused = run("rollouts", "automatic", "on", "shops", "pos", code=1)
    assert "--yes" in refused.err and '"product"' not in run("rollouts", "automatic", "list", "--json").out
    run("rollouts", "policy", "shops", "--success", "80")
    done = run("rollouts", "automatic", "on", "shops", "pos", "--yes", "--notice", "1h")
    assert done.err == "releases of pos above 1.1.0 go to fleet shops by themselves\n"
    done = run("rollouts", "automatic", "on", "shops", "poss", "--yes")
    assert "none of that product is published yet: is 'poss' its name?" in done.err
    shown = run("rollouts", "automatic", "list", "--json").out
    assert '"success_percent": 80' in shown and '"notice": 3600' in shown, "what is not given is the fleet's"
    assert "when two people start a rollout" in run("rollouts", "automatic", "off", "shops", "poss").err
    listed = run("rollouts", "automatic", "list", "--fleet", "shops").out
    assert "pos " in listed and "poss" not in listed
