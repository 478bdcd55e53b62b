"""Faults, each put into a machine that is in order: the check that is meant names it, and no other check complains."""

import re
from pathlib import Path
from typing import Any

import pytest

from cli.doctor.machine import Machine, Ran
from cli.doctor.report import exit_status, text, view
from cli.doctor.system import unit_checks
from cli.doctor.table import CHECKS
from cli.doctor.verdict import Result, State
from ipc.errors import ErrorCode
from ipc.posclient.policy import AgentRefused
from tests.cli.doctor.faults import CORE, FAULTS, Fault, rooted
from tests.support.madeup import ETC, LOG, MANAGE, NOW, STATE, MadeUp, unit


def looked(machine: MadeUp) -> dict[str, Result]:
    return {check.id: check.make(machine) for check in CHECKS}


@pytest.fixture
def machine(tmp_path: Path) -> MadeUp:
    return MadeUp(tmp_path)


def test_a_machine_in_order_passes_every_check(machine: MadeUp) -> None:
    found = looked(machine)
    assert {name: result.findings for name, result in found.items() if result.state is not State.PASS} == {}
    assert exit_status(list(found.values())) == 0
    assert view(list(found.values()))["verdict"] == "pass"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.check}: {fault.cause}")
def test_a_fault_is_named(machine: MadeUp, fault: Fault) -> None:
    fault.put(machine)
    found = looked(machine)
    assert found[fault.check].state is fault.state, found[fault.check]
    causes = [finding.cause for finding in found[fault.check].findings if finding.state is fault.state]
    assert any(fault.cause in each for each in causes), causes
    assert {name for name, result in found.items() if result.state is not State.PASS} == {fault.check, *fault.also}
    assert exit_status(list(found.values())) == (1 if fault.state is State.FAIL else 5)
    assert fault.cause in text(list(found.values()))


def test_the_faults_try_every_check() -> None:
    never_alone = {"agent.store"}  # tried below, with an agent that does not answer
    assert {fault.check for fault in FAULTS} | never_alone == {check.id for check in CHECKS}


def test_an_agent_that_does_not_answer_leaves_its_own_files_to_look_at(machine: MadeUp) -> None:
    machine.says = {
        "health": {
            "verdict": "not_working",
            "findings": [
                {
                    "code": "no_answer",
                    "verdict": "not_working",
                    "text": "connection refused",
                    "action": "Run 'systemctl status license-agent'.",
                }
            ],
        }
    }
    machine.ran[f"license-agent --config {ETC}/config.toml recover show --json"] = Ran(
        69, '{"state": "foreign", "text": "another TPM", "advice": "license-agent recover reinitialize"}'
    )
    found = looked(machine)
    assert found["agent.verdict"].findings[0].cause == "connection refused"
    assert found["agent.store"].findings[0].cause == "the sealed store cannot be opened (foreign): another TPM"
    assert found["agent.certificate"].state is State.PASS, "its end is in metrics.prom"
    assert found["server.contact"].state is State.UNKNOWN
    for name in ("agent.version", "agent.confinement", "agent.administrators"):
        assert found[name].state is State.UNKNOWN
    good = {name for name, result in found.items() if result.state is State.PASS}
    assert {"config.agent", "units.active", "units.sandbox", "files.modes", "audit.log", "machine.clock"} <= good
    assert exit_status(list(found.values())) == 1


def test_what_only_root_may_see_is_not_a_pass_for_others(machine: MadeUp) -> None:
    machine.uid = 1000
    machine.forbidden = {f"{ETC}/config.toml", "/sys/kernel/security/apparmor/profiles", f"{STATE}/secrets.store"}
    found = looked(machine)
    for name in (
        "agent.verdict",
        "agent.version",
        "units.apparmor",
        "files.modes",
        "package.files",
        "server.contact",
        "agent.store",
    ):
        assert found[name].state is State.UNKNOWN, found[name]
        assert any("as root" in finding.fix for finding in found[name].findings), found[name]
    for name in ("config.agent", "config.link", "disk.room", "units.sandbox", "audit.log"):
        assert found[name].state is State.UNKNOWN, found[name]
    assert exit_status(list(found.values())) == 5


def test_a_file_of_the_kernel_and_a_long_one_are_read(tmp_path: Path) -> None:
    machine = Machine(None, 0.0)
    assert machine.text("/proc/sys/fs/suid_dumpable").strip().isdigit()
    (tmp_path / "long").write_bytes(b"x" * 200_000)
    assert (len(machine.bytes(tmp_path / "long")), len(machine.bytes(tmp_path / "long", 100_000))) == (200_000, 100_000)


def test_a_link_that_points_elsewhere_is_named(machine: MadeUp) -> None:
    machine.links["/var/lib/prometheus/node-exporter/license-agent.prom"] = "../metrics.prom"
    assert "points elsewhere" in looked(machine)["metrics.collected"].findings[0].cause
    machine.links["/var/lib/prometheus/node-exporter/license-agent.prom"] = f"{STATE}/metrics.prom"
    assert looked(machine)["metrics.collected"].state is State.PASS


def test_a_log_directory_that_may_not_be_listed_is_no_pass(machine: MadeUp) -> None:
    machine.forbidden = {LOG}
    assert looked(machine)["audit.rotation"].state is State.UNKNOWN


def test_a_tpm_that_came_back_under_another_number_wants_a_restart(machine: MadeUp) -> None:
    machine.stats.pop("/dev/tpmrm0")
    assert looked(machine)["tpm.device"].findings[0].fix == "udevadm trigger --subsystem-match=tpmrm"
    machine.at("/sys/class/tpm/tpm0").rename(machine.at("/sys/class/tpm/tpm1"))
    found = looked(machine)["tpm.device"].findings[0]
    assert "the kernel has a TPM (tpm1), but /dev/tpmrm0 is not there" in found.cause and "restart the machine" in found.fix


def test_a_rest_interface_that_is_off_is_in_order(machine: MadeUp) -> None:
    off = unit(MANAGE, ActiveState="inactive", UnitFileState="disabled", MainPID="0")
    machine.units[MANAGE] = off
    machine.put(f"{ETC}/config.toml", "")
    assert causes(machine) == ["it is switched off"]
    machine.stats.pop(f"{ETC}/manage.toml")
    assert causes(machine) == ["it is off: there is no manage.toml"]
    machine.at(f"/usr/lib/systemd/system/{MANAGE}").unlink()
    del machine.units[MANAGE]
    machine.put("/sys/kernel/security/apparmor/profiles", "\n".join(f"{name} (enforce)" for name in unit_checks.PROFILES))
    assert causes(machine) == ["license-agent-manage is not installed"]
    machine.put("/sys/kernel/security/apparmor/profiles", "")
    assert "license-agent-manage" not in text([looked(machine)["units.apparmor"]])


def causes(machine: MadeUp) -> list[str]:
    found = looked(machine)
    assert {name for name, result in found.items() if result.state is not State.PASS} == set()
    return [finding.cause for finding in found["manage.service"].findings]


def test_an_unprovisioned_device_is_told_so(machine: MadeUp) -> None:
    machine.says = {
        "mode": "unprovisioned",
        "confinement": {"exec_forbidden": True, "landlock_abi": 2},
        "health": {
            "verdict": "not_working",
            "findings": [{"code": "not_provisioned", "verdict": "not_working", "text": "no agent yet", "action": "x"}],
        },
    }
    found = looked(machine)
    assert (found["agent.verdict"].state, found["server.contact"].state) == (State.FAIL, State.UNKNOWN)
    assert found["agent.store"].state is State.PASS


def test_a_check_that_breaks_is_not_a_pass_and_does_not_cost_the_others(machine: MadeUp) -> None:
    machine.says["time"] = "noon"
    found = looked(machine)
    assert found["server.contact"].state is State.UNKNOWN and "not as expected" in found["server.contact"].findings[0].cause
    assert found["units.active"].state is State.PASS


def test_an_older_release_lacks_members_of_status(machine: MadeUp) -> None:
    for name in ("health", "confinement", "server_time"):
        machine.says.pop(name, None)
    found = looked(machine)
    assert found["agent.verdict"].state is State.WARN and "older release" in found["agent.verdict"].findings[0].cause
    assert found["agent.confinement"].state is State.UNKNOWN


def test_what_an_administrator_is_meant_to_change_passes(machine: MadeUp) -> None:
    machine.put(f"{ETC}/config.toml", '[paths]\nlog_dir = "/srv/log"\n')
    machine.put(f"/etc/systemd/system/{CORE}.d/paths.conf", "[Service]\nReadWritePaths=/srv/log\nRestartSec=2s\n")
    machine.put(f"/etc/systemd/system/{CORE}.d/note.txt", "[Service]\nNoNewPrivileges=no\n")
    machine.put("/etc/systemd/system/license-agent-link.service.d/net.conf", "[Service]\nIPAddressAllow=198.51.100.0/24\n")
    assert looked(machine)["units.sandbox"].state is State.PASS


def test_a_root_that_was_followed_by_a_later_one_may_end(machine: MadeUp) -> None:
    rooted("2027-01-14T08:00:00Z")(machine)
    machine.says["updates"]["signed"] = {"role": "targets", "until": NOW + 31 * 86_400}
    found = looked(machine)
    assert (found["updates.allowed"].state, found["updates.state"].state) == (State.PASS, State.PASS)


def test_what_root_alone_reads_may_be_kept_from_others(machine: MadeUp) -> None:
    machine.change(f"{ETC}/installer.toml", mode=0o600)
    assert looked(machine)["files.modes"].state is State.PASS


def test_a_masked_dropin_does_not_count(machine: MadeUp) -> None:
    machine.put(f"/run/systemd/system/{CORE}.d/a.conf", "[Service]\nNoNewPrivileges=no\n")
    assert looked(machine)["units.sandbox"].state is State.FAIL
    machine.put(f"/etc/systemd/system/{CORE}.d/a.conf", "")
    machine.links[f"/etc/systemd/system/{CORE}.d/a.conf"] = "/dev/null"
    assert looked(machine)["units.sandbox"].state is State.PASS


def test_swap_matters_where_the_unit_may_use_it(machine: MadeUp) -> None:
    machine.put(f"/etc/systemd/system/{CORE}.d/a.conf", "[Service]\nMemorySwapMax=infinity\nLimitCORE=infinity\n")
    causes = [finding.cause for finding in looked(machine)["machine.memory"].findings]
    assert any("may be swapped to /dev/sda2" in cause for cause in causes)
    assert any("may write core dumps" in cause for cause in causes)
    machine.put("/proc/swaps", "Filename\n/dev/zram0 partition 9 0 -2\n")
    assert not any("swapped" in finding.cause for finding in looked(machine)["machine.memory"].findings)


def test_a_name_that_only_a_resolver_knows_passes_while_contacts_succeed(machine: MadeUp) -> None:
    machine.put(f"{ETC}/link.toml", '[upstream.server]\nurl = "https://other.example"\n')
    assert looked(machine)["units.reach"].state is State.PASS
    machine.says["server"].update(failures=1)
    assert looked(machine)["units.reach"].state is State.UNKNOWN


def test_through_a_proxy_the_proxys_address_counts(machine: MadeUp) -> None:
    machine.put(f"{ETC}/link.toml", '[upstream.server]\nurl = "https://other.example"\nproxy = "http://192.0.2.77:3128"\n')
    assert "does not name 192.0.2.77" in looked(machine)["units.reach"].findings[0].cause


def test_texts_for_people_and_programs(machine: MadeUp) -> None:
    machine.change(f"{ETC}/config.toml", mode=0o644)
    machine.ran["timedatectl show"] = Ran(1)
    results = list(looked(machine).values())
    shown = re.sub("\x1b\\[[0-9;]*m", "", text(results))
    lines = shown.splitlines()
    words = f"FAIL files.modes {ETC}/config.toml has mode 0644, so that others may do more than they should"
    assert " ".join(lines[0].split()) == words
    assert lines[1].strip() == f"-> chmod 0600 {ETC}/config.toml"
    assert lines[2].startswith("not checked  machine.clock ")
    assert lines[-1] == f"1 fails, 1 not checked, {len(results) - 2} pass"
    narrow = re.sub("\x1b\\[[0-9;]*m", "", text(results, 80)).splitlines()
    assert all(len(line) <= 80 for line in narrow if "->" not in line)
    assert f"-> chmod 0600 {ETC}/config.toml" in {line.strip() for line in narrow}
    assert " ".join(" ".join(narrow).split()) == " ".join(" ".join(lines).split())
    found = view(results)
    assert found["counts"] == {"pass": len(results) - 2, "unknown": 1, "warn": 0, "fail": 1}
    assert [each["id"] for each in found["checks"]] == [check.id for check in CHECKS]
    (bad,) = [each for each in found["checks"] if each["state"] == "fail"]
    assert bad["findings"] == [
        {
            "state": "fail",
            "cause": f"{ETC}/config.toml has mode 0644, so that others may do more than they should",
            "fix": f"chmod 0600 {ETC}/config.toml",
        }
    ]


def test_error_codes_that_say_nothing_of_the_health_are_not_a_pass(machine: MadeUp) -> None:
    class Refuses:
        def ask_health(self) -> dict[str, Any]:
            raise AgentRefused(ErrorCode.FORBIDDEN, "not for you")

    machine.agent = Refuses()  # type: ignore[assignment]
    assert looked(machine)["agent.verdict"].state is State.UNKNOWN


def test_ids_are_unique_and_never_change() -> None:
    assert [check.id for check in CHECKS] == [
        "config.agent", "config.link", "agent.verdict", "agent.version", "agent.confinement", "agent.administrators",
        "agent.store", "agent.certificate", "server.contact", "units.active", "units.sandbox", "units.apparmor",
        "units.reach", "files.modes", "files.sockets", "disk.room", "audit.log", "audit.rotation", "metrics.collected",
        "backup.timed",
        "tpm.device", "machine.clock", "machine.memory", "package.files", "manage.service",
        "updates.allowed", "updates.state", "updates.products",
    ]  # fmt: skip


def test_an_audit_log_that_is_being_written_is_no_fault(machine: MadeUp) -> None:
    """Of a record that the agent writes meanwhile, the check may see any part: none of them is a sign of tampering."""
    log = machine.at(f"{LOG}/audit.log")
    *before, last = log.read_bytes().splitlines(keepends=True)
    for cut in (1, len(last) // 2, len(last) - 1):
        log.write_bytes(b"".join([*before, last[:cut]]))
        found = looked(machine)["audit.log"]
        assert found.state is State.PASS and "was not finished" in found.findings[0].cause, found
    # A whole line that is wrong still is, and so is a part of a line that others follow.
    for wrong in (b"".join([*before, b"x\n"]), b"".join([*before[:-1], before[-1][:-9], last])):
        log.write_bytes(wrong)
        assert looked(machine)["audit.log"].state is State.FAIL
