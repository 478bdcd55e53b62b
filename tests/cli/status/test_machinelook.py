"""`status` names what the agent cannot see from its sandbox, and the agent's verdict stays what it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from cli.agent import Agent
from cli.doctor.table import CHECKS
from cli.main import main
from cli.status import machinelook
from ipc.posclient.trust import DEFAULT_ADMIN_SOCKET
from tests.support.madeup import CORE, ETC, MANAGE, RUN, STATE, STATUS, MadeUp, unit
from tests.support.outputs import assert_fits


@pytest.fixture
def machine(tmp_path: Path) -> MadeUp:
    return MadeUp(tmp_path)


def test_the_quick_checks_are_checks_of_doctor() -> None:
    assert machinelook.CHECKS.issubset(check.id for check in CHECKS)


def test_a_machine_in_order_says_nothing(machine: MadeUp) -> None:
    assert machinelook.broken(machine, STATUS) == [] and machinelook.text([]) == ""


@pytest.mark.parametrize(
    ("check", "cause", "put"),
    [
        ("metrics.collected", "license-agent.prom is missing", lambda machine: machine.links.clear()),
        ("units.active", f"{MANAGE} has failed", lambda m: m.units.update({MANAGE: unit(MANAGE, ActiveState="failed")})),
        (
            "units.sandbox",
            "NoNewPrivileges= of license-agent.service",
            lambda m: m.put(f"/etc/systemd/system/{CORE}.d/x.conf", "[Service]\nNoNewPrivileges=no\n"),
        ),
        ("units.apparmor", "runs as 'unconfined'", lambda m: m.put("/proc/4711/attr/current", "unconfined\n")),
        ("files.modes", "has mode 0644", lambda machine: machine.change(f"{ETC}/config.toml", mode=0o644)),
        ("files.sockets", "link.sock is missing", lambda machine: machine.stats.pop(f"{RUN}/link.sock")),
        ("tpm.device", "/dev/tpmrm0 is not there", lambda machine: machine.stats.pop("/dev/tpmrm0")),
        ("disk.room", "no room is left", lambda m: m.rooms.update({STATE: m.rooms[STATE].__class__(0, 9, False)})),
    ],
)
def test_what_is_broken_is_named(machine: MadeUp, check: str, cause: str, put: Callable[[MadeUp], None]) -> None:
    put(machine)
    found = machinelook.broken(machine, STATUS)
    assert {each["check"] for each in found} == {check}
    assert any(cause in each["cause"] for each in found) and all(each["fix"] for each in found)
    shown = click.unstyle(machinelook.text(found))
    assert shown.startswith("machine\n  ") and cause in shown and f"-> {found[0]['fix']}" in shown


def test_what_only_needs_a_look_is_left_to_doctor(machine: MadeUp) -> None:
    machine.rooms[STATE] = machine.rooms[STATE].__class__(100 * 2**20, 10**6, False)
    assert machinelook.broken(machine, STATUS) == []


@pytest.mark.parametrize("reply", [{"health": {}}, {"mode": "unprovisioned"}])
def test_an_agent_that_does_not_work_is_not_blamed_for_its_metrics(machine: MadeUp, reply: dict[str, Any]) -> None:
    machine.stats.pop(f"{STATE}/metrics.prom")
    machine.links.clear()
    assert machinelook.broken(machine, reply) == []
    assert [each["check"] for each in machinelook.broken(machine, STATUS)] == ["metrics.collected"] * 2


def test_the_agent_is_not_asked_again(machine: MadeUp) -> None:
    machine.says = {}
    assert machinelook.broken(machine, {"backend": {"available": False, "detail": "locked out"}})[0]["check"] == "tpm.device"


def test_another_agents_machine_is_not_looked_at() -> None:
    # This is a checkout: the package is not installed, and a stand has a socket of its own.
    assert machinelook.look(Agent("/elsewhere/admin.sock", False, None), STATUS) is None
    if not Path(machinelook.UNIT).exists():
        assert machinelook.look(Agent(DEFAULT_ADMIN_SOCKET, False, None), STATUS) is None


def test_status_shows_it_below_the_verdict(machine: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.links.clear()
    monkeypatch.setattr(machinelook, "look", lambda _agent, _reply: machinelook.broken(machine, STATUS))
    monkeypatch.setattr(Agent, "ask_health", lambda _agent: {"health": STATUS["health"]})
    done = CliRunner().invoke(main, ["status"])
    assert done.exit_code == 0, "the verdict and the exit status are the agent's"
    assert done.stdout.startswith("fine: the agent validates licenses\n\nmachine\n  metrics.collected  ")
    shown = json.loads(CliRunner().invoke(main, ["--json", "status"]).stdout)
    assert_fits("status", shown)
    assert [each["check"] for each in shown["machine"]] == ["metrics.collected"] and shown["health"]["verdict"] == "fine"
