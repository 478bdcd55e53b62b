"""The units of an upgrade fit the program, and no script of the package restarts what runs dpkg."""

import re
from pathlib import Path

import pytest

from installer.agentpackage.dpkg import DPKG_S, KILL_S
from installer.agentpackage.repack import PACK_S
from installer.agentpackage.rescue import OWN, SERVICE, TIMER, UNITS, Layout
from installer.agentpackage.trial import MAX_BOOTS
from installer.jobs import JOB, UPGRADES
from installer.machine import UPGRADE_WITHIN_S
from installer.programs import ASK_S
from installer.upgrade import LOOK_S, START_S

ROOT = Path(__file__).parents[2]
UPGRADE, UPGRADE_PATH = "license-agent-upgrade.service", "license-agent-upgrade.path"
LONGEST_S = PACK_S + 2 * (DPKG_S + 2 * KILL_S) + START_S + LOOK_S + 4 * ASK_S


def lines(name: str) -> dict[str, str]:
    """The last value of each key of a unit."""
    text = (ROOT / "systemd" / name).read_text("utf-8")
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


def test_the_units_name_what_the_program_writes() -> None:
    assert lines(SERVICE)["ExecStart"] == f"/usr/bin/python3 -IS {OWN}/rescue/run"
    assert lines(UPGRADE_PATH)["PathExists"] == str(UPGRADES / JOB) and lines(UPGRADE_PATH)["Unit"] == UPGRADE
    assert all((ROOT / "systemd" / name).exists() for name in UNITS)
    assert Layout().units == Path("/etc/systemd/system")  # before /usr/lib/systemd/system in systemd.unit(5)


@pytest.mark.parametrize("name", ["license-agent-apply", "license-agent-upgrade"])
def test_a_program_that_does_not_start_is_not_started_again_at_once(name: str) -> None:
    """The job stays then, and a path unit looks again as soon as its service is inactive or failed; while systemd waits to
    start the service again it is neither."""
    unit = lines(f"{name}.service")
    assert (unit["Type"], unit["Restart"]) == ("oneshot", "on-failure")
    assert int(unit["RestartSec"].removesuffix("s")) >= 5
    # It is started for each look at a product: a limit of starts would be hit by a trial, and end the path unit too.
    assert unit["StartLimitIntervalSec"] == "0" and "PathExists" in lines(f"{name}.path")


def test_no_unit_ends_dpkg_before_its_own_bound_does() -> None:
    assert int(lines(UPGRADE)["TimeoutStartSec"].removesuffix("s")) >= LONGEST_S
    assert int(lines(SERVICE)["TimeoutStartSec"].removesuffix("s")) >= DPKG_S + 2 * KILL_S
    assert LONGEST_S <= UPGRADE_WITHIN_S


def test_the_rescue_needs_nothing_that_the_package_brings() -> None:
    assert "AppArmorProfile" not in lines(SERVICE)
    assert not re.search(r"^(Requires|BindsTo|PartOf|Requisite)=", (ROOT / "systemd" / SERVICE).read_text(), re.MULTILINE)
    assert lines(TIMER)["OnBootSec"] == "10s" and MAX_BOOTS > 0


def test_no_script_of_the_package_touches_what_runs_dpkg() -> None:
    rules = (ROOT / "packaging/debian/rules").read_text("utf-8").replace("\\\n", " ")
    calls = [line for line in rules.splitlines() if "dh_installsystemd" in line and "-plicense-agent " in line]
    assert len(calls) >= 5
    # Without a unit's name it would take them all.
    assert all(re.search(r" license-agent[\w@-]*\.(service|socket|path|timer)", call) for call in calls)
    named = {name for call in calls for name in re.findall(r"license-agent[\w@-]*\.(?:service|socket|path|timer)", call)}
    assert not named & {UPGRADE, *UNITS, "license-agent-apply.service"}
    [call] = [call for call in calls if UPGRADE_PATH in call]
    assert "--no-stop-on-upgrade" in call and "--no-restart-after-upgrade" in call
    for script in (ROOT / "packaging/debian").glob("license-agent.*"):
        assert not re.search(r"(systemctl|deb-systemd-invoke) .*(upgrade|rescue)", script.read_text("utf-8")), script
