"""`license-agent-cli doctor` on a running agent: faults are put into it one after the other, and named."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.machine import Machine, furnished_machine
from tests.support.stand import Stand, running_stand

pytestmark = pytest.mark.system
OF_THE_AGENT = {
    "config.agent", "config.link", "agent.verdict", "agent.version", "agent.confinement", "agent.administrators",
    "agent.store", "agent.certificate", "server.contact", "files.modes", "disk.room", "audit.log", "audit.rotation",
    "metrics.collected", "tpm.device",
}  # fmt: skip
"""What a checkout has. The rest needs systemd, AppArmor and the package."""


class Doctor:
    """Runs the command on a stand."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        paths = {name: stand.root / name for name in ("state", "log", "keys", "etc")}
        self.state, self.log, self.keys, self.etc = paths["state"], paths["log"], paths["keys"], paths["etc"]

    def looks(self, *options: str) -> dict[str, Any]:
        """Every check by its id, and the exit status as `status`."""
        done = self.stand.run("license-agent-cli", "--json", "doctor", *options)
        assert not done.stderr, done.stderr
        reply = json.loads(done.stdout)
        found: dict[str, Any] = {check["id"]: check for check in reply["checks"]}
        states = {check["state"] for check in found.values()}
        wanted = 1 if "fail" in states else 5 if states & {"warn", "unknown"} else 0
        assert done.returncode == wanted and reply["counts"]["fail"] == sum(each["state"] == "fail" for each in found.values())
        return found

    def names(self, check: str, cause: str, state: str = "fail", *options: str) -> None:
        """The check is in that state and one of its causes has these words."""
        found = self.looks(*options)[check]
        assert found["state"] == state, found
        assert any(cause in finding["cause"] for finding in found["findings"]), found


@pytest.fixture(scope="module")
def doctor() -> Iterator[Doctor]:
    with running_stand("tpm") as stand:
        yield Doctor(stand)


def restored(path: Path) -> Iterator[Path]:
    """A file that is put back after the test, with its mode and owner."""
    content, info = path.read_bytes(), path.stat()
    yield path
    path.write_bytes(content)
    path.chmod(info.st_mode & 0o777)
    os.chown(path, info.st_uid, info.st_gid)


@pytest.fixture
def config(doctor: Doctor) -> Iterator[Path]:
    yield from restored(doctor.etc / "config.toml")


@pytest.fixture
def link(doctor: Doctor) -> Iterator[Path]:
    yield from restored(doctor.etc / "link.toml")


def test_an_agent_in_order_passes_its_checks(doctor: Doctor) -> None:
    found = doctor.looks("--deep")
    assert {name: found[name]["findings"] for name in OF_THE_AGENT if found[name]["state"] != "pass"} == {}
    assert "the whole log was checked" in found["audit.log"]["findings"][0]["cause"]
    # Without the package there is nothing to compare with, and that is no pass.
    assert {found[name]["state"] for name in ("units.sandbox", "units.reach", "files.sockets", "package.files")} == {"unknown"}


def test_an_unknown_key_in_the_configuration(doctor: Doctor, config: Path) -> None:
    config.write_text(config.read_text() + "\n[nonsense]\n")
    doctor.names("config.agent", "nonsense")


def test_a_configuration_that_others_may_read(doctor: Doctor, config: Path) -> None:
    config.chmod(0o644)
    doctor.names("config.agent", "0644")
    doctor.names("files.modes", f"{config} has mode 0644")


def test_a_link_configuration_with_a_bad_pin(doctor: Doctor, link: Path) -> None:
    link.write_text(link.read_text().replace("sha256:", "md5:"))
    doctor.names("config.link", "pins")


def test_a_rotated_audit_log(doctor: Doctor) -> None:
    copy = doctor.log / "audit.log.1"
    copy.touch()
    try:
        doctor.names("audit.rotation", "audit.log.1 lies beside it")
    finally:
        copy.unlink()


def test_a_server_that_is_cut_off(doctor: Doctor) -> None:
    doctor.stand.run("license-stand", "server", "stop", "--dir", str(doctor.stand.root))
    try:
        assert doctor.stand.run("license-agent-cli", "contact").returncode != 0
        found = doctor.looks()["server.contact"]
        # The agent tries by itself too, so that it may be more than one by now.
        assert found["state"] in ("warn", "fail") and "failed: " in found["findings"][0]["cause"], found
    finally:
        doctor.stand.run("license-stand", "server", "start", "--dir", str(doctor.stand.root))
    assert doctor.stand.run("license-agent-cli", "contact").returncode == 0
    assert doctor.looks()["server.contact"]["state"] == "pass"


def test_an_agent_that_hangs(doctor: Doctor) -> None:
    pid = doctor.stand.info["agent_pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        found = doctor.looks()
        assert found["agent.verdict"]["state"] == "fail"
        assert {found[name]["state"] for name in ("config.agent", "config.link", "files.modes", "audit.log")} == {"pass"}
        assert found["agent.store"]["state"] == "unknown", "the process that hangs still uses it"
    finally:
        os.kill(pid, signal.SIGCONT)


def test_an_agent_that_does_not_run() -> None:
    """What it has left says why; each fault is named without its help."""
    with furnished_machine("tpm") as machine:
        with machine.running():
            machine.give_secret()
        found = looks(machine)
        assert found["agent.verdict"]["state"] == "fail" and "does not exist" in causes(found["agent.verdict"])
        for name in ("config.agent", "agent.store", "audit.log", "disk.room"):
            assert found[name]["state"] == "pass", found[name]

        os.utime(machine.state / "metrics.prom", (1, 1))
        assert "was written" in causes(looks(machine)["metrics.collected"])

        assert machine.tpm is not None
        machine.tpm.stop()
        found = looks(machine)["agent.store"]
        assert found["state"] == "fail" and "(absent)" in causes(found)
        assert "group tss" in found["findings"][0]["fix"]

        log = machine.log / "audit.log"
        lines = log.read_bytes().splitlines(keepends=True)
        log.write_bytes(b"".join([*lines[:2], *lines[3:]]))
        assert "tampered with" in causes(looks(machine)["audit.log"])
        assert looks(machine, "--deep")["audit.log"]["state"] == "fail"


def looks(machine: Machine, *options: str) -> dict[str, Any]:
    reply = json.loads(machine.tool("license-agent-cli", "--json", "doctor", *options, fine=(0, 1, 5)))
    return {check["id"]: check for check in reply["checks"]}


def causes(check: dict[str, Any]) -> str:
    return "\n".join(finding["cause"] for finding in check["findings"])
