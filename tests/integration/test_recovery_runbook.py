"""Rehearses each scenario of the page about recovery: an agent is broken, and the page's commands, as they are, bring it back.

One stand with a TPM, a server and a link for all of them. What stands in for systemd is a program `systemctl` that knows the
page's calls alone, and starts and stops the stand's agent.
"""

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pyrage
import pytest
from license_agent_client import LicenseClient

from tests.support.runbook import Step, missing, scenarios, settings
from tests.support.stand import BIN, Stand, running_stand
from tests.support.waiting import READY_S

pytestmark = pytest.mark.system

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "guides" / "recovery.md").read_text("utf-8")
SCENARIOS = scenarios(PAGE)
WITHOUT_NETWORK = "The secrets are lost on a machine without a network"
SYSTEMCTL = """#!/bin/sh
set -eu
now=stop
! grep -q '"agent_pid": [1-9]' {root}/stand.json || now=start
case "$*" in
    "stop license-agent-pos.socket license-agent-admin.socket license-agent.service") wanted=stop ;;
    "start license-agent") wanted=start ;;
    "restart license-agent") wanted=start; [ $now = stop ] || exec license-stand restart --dir {root} ;;
    *) echo "systemctl: the rehearsal does not know: $*" >&2; exit 1 ;;
esac
[ $now = $wanted ] || exec license-stand agent $wanted --dir {root}
"""


class Rehearsal:
    """A stand, and a directory in which an administrator works on it.

    Args:
        stand: running.
        place: a new directory.
    """

    def __init__(self, stand: Stand, place: Path) -> None:
        self.stand, self.place = stand, place
        info = stand.info
        self.config, self.state, self.log = Path(info["config"]), Path(info["state_dir"]), stand.root / "log"
        self.tcti: str = info["tpm_tcti"]
        (place / "bin").mkdir()
        program = place / "bin" / "systemctl"
        program.write_text(SYSTEMCTL.format(root=stand.root))
        program.chmod(0o755)
        self._env = {**stand.env, "PATH": f"{place / 'bin'}:{BIN}:{os.environ['PATH']}"}
        identity = pyrage.x25519.Identity.generate()
        (place / "backup.key").write_text(f"{identity}\n")
        self._recipient = str(identity.to_public())
        self.agent = ""
        self.former = ""

    def agent_id(self) -> str:
        """The id that the machine has now."""
        with contextlib.suppress(FileNotFoundError):
            return str(json.loads((self.state / "agent.json").read_text())["agent_id"])
        return self.agent

    def run(self, commands: str, **values: str) -> str:
        """Runs commands as an administrator's shell does, and returns what they print.

        Raises:
            AssertionError: one of them failed.
        """
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=self.place,
            env={**self._env, **values},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=READY_S,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}"
        return done.stdout

    def prove(self) -> None:
        """A POS application finds the machine's license valid."""
        with LicenseClient(self.stand.info["pos_socket"], deadline=READY_S) as client:
            assert client.require("sales").valid

    def back_up(self) -> None:
        """Makes `agent.backup`, in place of an older one."""
        self.run(f"rm -f agent.backup; license-agent-cli backup create --to agent.backup --recipient {self._recipient}")

    def begin(self, steps: list[Step]) -> dict[str, str]:
        """Makes sure that the agent works, takes the newest backup, and returns the values of the page's variables."""
        self.agent = self.agent_id()
        for file in self.place.iterdir():
            if file.is_file() and file.name != "backup.key":
                file.unlink()
        self.prove()
        commands = "".join(step.commands for step in steps)
        if "agent.backup" in commands:
            self.back_up()
        versions = json.loads(self.run("license-agent-cli --json secrets"))["secrets"] if "$VERSION" in commands else []
        info = self.stand.info
        return {
            "SERVER": info["server_url"],
            "ROOT": info["root_pin"],
            "AGENT": self.agent,
            "STATE": str(self.state),
            "LOG": str(self.log),
            "FORMER": self.former,
            "VERSION": str(max((row["version"] for row in versions), default=0)),
        }

    def follow(self, steps: list[Step], values: dict[str, str]) -> None:
        """Runs the page's commands in their order and compares what it says that they print."""
        for step in steps:
            here = {**values, "SUCCESSOR": self.agent_id()}
            printed = self.run(settings(PAGE) + step.commands, **here)
            absent = missing(step.says, printed, here)
            assert absent is None, f"the page says {absent!r}, and this was printed:\n{printed}"

    def stop(self) -> None:
        self.run("systemctl stop license-agent-pos.socket license-agent-admin.socket license-agent.service")

    def change(self, pattern: str, by: str) -> None:
        """Changes the configuration, in place so that it keeps its owner."""
        text = self.config.read_text()
        assert re.search(pattern, text, re.MULTILINE), pattern
        self.config.write_text(re.sub(pattern, by, text, count=1, flags=re.MULTILINE))

    def lose_disk(self) -> None:
        """The state and the log are gone; TPM and configuration are as they were."""
        self.stop()
        self.run(f"find {self.state} {self.log} -mindepth 1 -delete")


def replaced_disk(machine: Rehearsal) -> None:
    machine.lose_disk()
    machine.config.write_text("# what the package installs\n")


def lost_secrets(machine: Rehearsal) -> None:
    machine.lose_disk()


def lost_without_network(machine: Rehearsal) -> None:
    machine.lose_disk()
    machine.change(r"^\[agent\]$", f'[agent]\nid = "{machine.agent}"')  # a machine that was enrolled by hand has it


def leaked_secret(machine: Rehearsal) -> None:
    """Somebody else knows it: nothing on the machine is different."""


def damaged_copy(machine: Rehearsal) -> None:
    machine.stop()
    store = machine.state / "secrets.store"
    store.write_bytes(store.read_bytes()[:100])


def older_store(machine: Rehearsal) -> None:
    store = machine.state / "secrets.store"
    older = store.read_bytes()
    machine.run("license-agent-cli rotate")
    machine.back_up()
    machine.stop()
    for copy in machine.state.glob("secrets.store*"):
        assert copy.read_bytes() != older
        copy.write_bytes(older)
    machine.run("systemctl start license-agent; ! license-agent-cli healthcheck")


def lost_configuration(machine: Rehearsal) -> None:
    machine.config.write_text("[agent\n")
    machine.run("systemctl restart license-agent; ! license-agent-cli healthcheck")


def damaged_log(machine: Rehearsal) -> None:
    machine.stop()
    log = machine.log / "audit.log"
    lines = log.read_bytes().splitlines(keepends=True)
    lines[-2] = lines[-2].replace(b'"outcome":"ok"', b'"outcome":"no"', 1).replace(b'"seq":', b'"seq":9', 1)
    log.write_bytes(b"".join(lines))
    machine.run("systemctl start license-agent; ! license-agent-cli healthcheck")


def damaged_state(machine: Rehearsal) -> None:
    machine.stop()
    (machine.state / "state.json").write_text('{"half": ')


def other_tpm(machine: Rehearsal) -> None:
    """New seeds for all hierarchies: nothing distinguishes it from another TPM."""
    import tpm2_pytss as tss

    machine.stop()
    with tss.ESAPI(machine.tcti) as esys:
        esys.change_eps(tss.ESYS_TR.RH_PLATFORM)
        esys.change_pps(tss.ESYS_TR.RH_PLATFORM)
        esys.clear(tss.ESYS_TR.RH_PLATFORM)


def dead_tpm(machine: Rehearsal) -> None:
    machine.former = machine.agent
    machine.stop()
    machine.change(r"^tcti = .*$", 'tcti = "swtpm:host=127.0.0.1,port=9"')


def repaired_tpm(machine: Rehearsal) -> None:
    machine.change(r"^tcti = .*$", f'tcti = "{machine.tcti}"')


FAILURES: dict[str, Callable[[Rehearsal], None]] = {
    "A disk was replaced, and there is a backup": replaced_disk,
    "The secrets are lost": lost_secrets,
    WITHOUT_NETWORK: lost_without_network,
    "A secret leaked": leaked_secret,
    "One copy of the store is damaged": damaged_copy,
    "The store is damaged, or an older one is in its place": older_store,
    "The configuration is lost": lost_configuration,
    "The audit log is damaged": damaged_log,
    "state.json is corrupt": damaged_state,
    "The TPM was replaced or cleared": other_tpm,
    "Continue without the TPM": dead_tpm,
    "Return to the TPM": repaired_tpm,
}
"""How an agent is broken that the scenario with this heading brings back."""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    with running_stand("tpm") as stand:
        machine = Rehearsal(stand, tmp_path_factory.mktemp("desk"))
        machine.change(r'^id = "pos-001"\n', "")  # as the package has it: the server names the agent
        yield machine


@pytest.mark.parametrize("scenario", sorted(SCENARIOS, key=lambda heading: heading == WITHOUT_NETWORK))
def test_a_scenario_by_the_commands_of_the_page(machine: Rehearsal, scenario: str) -> None:
    """In the page's order; an agent that was enrolled by hand has no server to provision it, and comes last."""
    values = machine.begin(SCENARIOS[scenario])
    FAILURES[scenario](machine)
    machine.follow(SCENARIOS[scenario], values)
    assert "fine: the agent validates licenses" in SCENARIOS[scenario][-1].says
    machine.prove()


def test_every_scenario_has_its_rehearsal() -> None:
    assert list(SCENARIOS) == list(FAILURES)


def test_every_failure_that_the_requirement_names_has_its_scenarios() -> None:
    row = next(line for line in (DOCS / "project" / "requirements.md").read_text("utf-8").splitlines() if "| LA-21 |" in line)
    named = re.split(r", ", row.split(" | ")[1].removeprefix("Recovery: ").partition(";")[0])
    table = re.findall(r"^\| ([a-z][\w ]+) \| (\[.*\)) \|$", PAGE, re.MULTILINE)
    assert [failure for failure, _ in table] == named
    listed = [heading for _, cell in table for heading in re.findall(r"\[(.+?)\]\(#", cell)]
    assert listed == list(SCENARIOS)
    for failure, cell in table:
        part = PAGE.partition(f"\n## {failure[0].upper()}{failure[1:]}\n")[2].partition("\n## ")[0]
        assert re.findall(r"^### (.+)$", part, re.MULTILINE) == re.findall(r"\[(.+?)\]\(#", cell)
