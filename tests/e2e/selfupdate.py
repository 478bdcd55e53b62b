"""Updates of the agent itself in the booted guest: its own package, by a directive of the license server and the repository.

systemd, dpkg and the profiles are real. Packages are made from the one that was built: the next version of it, and versions
that do not work. Vendor, web server and license server are those of updates.py.
"""

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from installer.agentpackage.debfile import named
from tests.e2e import updates
from tests.e2e.agentpackages import Change, appended, programs_of, repacked, version_of
from tests.e2e.vendor import AGENT, Vendor

if TYPE_CHECKING:
    from tests.e2e.scenario import Scenario

OWN = "/var/lib/license-agent-installer"
PRODUCTS = f'\n[product.{AGENT}]\nbackend = "deb"\n'
PAUSE_S = 1.0
"""Between two validations."""
UPGRADE, RESCUE = "license-agent-upgrade", "license-agent-rescue"
_ILL = """
def _on_purpose(reply):
    return _single(NOT_WORKING, "test", "this version fails its check on purpose", "")
health_of = of_verdict = _on_purpose
"""


@dataclass(frozen=True)
class Bad:
    """A version of the agent that does not work.

    Attributes:
        name: for the report.
        reason: a part of what the register says of it.
        change: what is other than in a good one; None if it is the postinst.
        postinst: lines at that script's end.
    """

    name: str
    reason: str
    change: Change | None = None
    postinst: str = ""


DEAD = Bad("does not start", "does not start", appended("agentd/main.py", "def entry():\n    sys.exit('it does not start')"))
BAD = (
    Bad("fails its functional check", "fails its check on purpose", appended("cli/health.py", _ILL)),
    Bad("hangs when it starts", "does not start", appended("agentd/main.py", "def entry():\n    import time; time.sleep(1e6)")),
)
BROKEN = (
    Bad("has a script that fails", "dpkg ended with status 1", None, 'if [ "$1" = configure ]; then exit 1; fi'),
    Bad("is no Python that loads", "does not start", appended("common/files.py", "def (:")),
)


class Machine:
    """The machine whose agent is updated.

    Args:
        scenario: the guest, provisioned, and with a license.
        till: what is asked and done in updates of any product.
        vendor: of the agent.
    """

    def __init__(self, scenario: "Scenario", till: updates.Till, vendor: Vendor) -> None:
        self.scenario, self.till, self.vendor = scenario, till, vendor
        self.guest, self.server = scenario.guest, scenario.server
        self.check, self.same = scenario.check, scenario.same
        self.sh, self.out = scenario.sh, scenario.out
        directory = scenario.server.directory.parent
        (self.built,) = (directory / "payload" / "new").glob("license-agent_*.deb")
        self.made = directory / "agents"

    def set_up(self) -> None:
        """Root says that the agent's package comes in this way, and the vendor that there is such a product."""
        if self.sh(f"grep -q 'product.{AGENT}' /etc/license-agent/installer.toml", check=False).status:
            self.vendor.allow(AGENT, "0.0.1")
            self.sh(f"printf %s {shlex.quote(PRODUCTS)} >>/etc/license-agent/installer.toml")

    # What one sees

    def installed(self) -> str:
        """The version that dpkg knows."""
        return self.out(f"dpkg-query -W -f '${{Version}}' {AGENT}")

    def runs(self) -> str:
        """The version whose tree the agent's process has mapped, not what a file says."""
        maps = f"/proc/{self.scenario.pid()}/maps"
        return self.out(f"grep -ao '/usr/lib/license-agent/[^/]*' {maps} | sort -u | sed 's,.*/,,'", check=False)

    def shown(self) -> dict[str, Any]:
        """What `ota status` says of the agent."""
        found = {each["product"]: each for each in self.till.status()["running"]}
        return dict(found[AGENT])

    def in_order(self, version: str, when: str) -> None:
        """One version is installed and runs, nothing is on trial, and the till is served."""
        self.scenario.active("license-agent")
        self.same(f"{when}: the package", version, self.installed())
        self.same("its agent runs", version, self.runs())
        self.same("ota status: no trial", (named(version).version, False), (self.shown()["version"], self.shown()["in_trial"]))
        self.scenario.till_is_served(when)

    # What is done

    def package(self, number: int, word: str, bad: Bad | None = None) -> Path:
        """A version after the one that was built."""
        base, _, release = version_of(self.built).partition("~")
        version = f"{named(base).version}.{number}+{number}.{word}~{release}"
        if bad is None:
            return repacked(self.built, self.made, version)
        return repacked(self.built, self.made, version, bad.change, bad.postinst)

    def order(self, package: Path) -> str:
        """Publishes a package and orders it; returns its version."""
        version = version_of(package)
        says = named(version)
        target = self.vendor.publish_deb(package, says.version, says.build_id)
        self.till.settle()
        self.server.run("ota", "assign", self.scenario.agent_id, target, "--notice", "0")
        self.till.ask_server()
        return version

    def ended(self) -> dict[str, Any]:
        """The register's newest line, once no update is under way."""
        ends = time.monotonic() + updates.WITHIN_S
        while (step := self.till.journal().get("step")) not in ("idle", "locked") and time.monotonic() < ends:
            time.sleep(1)
        self.check("the update ends", step in ("idle", "locked"), self.evidence() if step not in ("idle", "locked") else step)
        return self.till.newest()

    def evidence(self) -> str:
        units = " ".join(f"-u {unit}" for unit in (UPGRADE, RESCUE, "license-agent-installer", "license-agent"))
        return self.out(f"journalctl -b --no-pager -o cat {units} | tail -30", check=False)

    def good(self, number: int, word: str) -> str:
        """A version that works."""
        before = self.installed()
        version = self.order(self.package(number, word))
        line = self.ended()
        found = (line["product"], line["version"], line["outcome"], line["before"], line["reason"])
        self.same(f"{before} updates itself", (AGENT, named(version).version, "installed", named(before).version, ""), found)
        self.in_order(version, "after the update")
        # Not after a bad version: a module that was changed has no bytecode, and root's command leaves some behind.
        self.check("the tree of the version before is gone", self.sh(f"test -e {programs_of(before)}", check=False).status == 1)
        self.same("the license server says so", ("proved", ""), self.till.said_by_server())
        return version

    def bad(self, number: int, bad: Bad) -> None:
        """A version that does not."""
        before = self.installed()
        self.order(self.package(number, "bad", bad))
        line = self.ended()
        self.same(f"a version that {bad.name}: it is taken back", "rolled-back", line["outcome"])
        self.check(f"the register says why: {bad.reason}", bad.reason in line["reason"], line["reason"])
        self.in_order(before, "after that")
        state, detail = self.till.said_by_server()
        self.check("the license server says why", state in ("rolled-back", "locked") and bad.reason in detail, (state, detail))
        if self.till.journal()["step"] == "locked":
            self.sh('license-agent-cli ota unlock --why "tried on purpose"')

    def back(self) -> None:
        """An administrator goes back after the commit."""
        before, now = self.shown()["previous"], self.installed()
        self.sh(f"license-agent-cli ota rollback {AGENT} --yes", timeout=updates.WITHIN_S)
        line = self.ended()
        self.same("ota rollback", ("rolled-back", named(now).version), (line["outcome"], line["version"]))
        self.check("the register names who", line["reason"].startswith("operator: "), line["reason"])
        self.same("it leads to the version before", before, named(self.installed()).version)
        self.in_order(self.installed(), "after the way back")

    def busy(self, number: int) -> None:
        """Another program holds dpkg's lock: nothing begins, it is no failed attempt, and afterward the update goes on."""
        attempts = self.till.journal()["attempts"]
        holder = (
            "import fcntl, time; f = open('/var/lib/dpkg/lock-frontend', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); time.sleep(1e5)"
        )
        held = self.guest.background(["python3", "-Ic", holder])
        version = self.order(self.package(number, "after-apt"))
        text = "another program is installing packages"
        self.till.until("while apt works, ota status says so", lambda: text in (self.till.status()["problem"] or ""))
        self.same("and it is no failed attempt", attempts, self.till.journal()["attempts"])
        held.signal(9)
        self.same("afterward it is installed", "installed", self.ended()["outcome"])
        self.in_order(version, "after apt has ended")

    def cut(self, number: int, moment: str, seen: str) -> None:
        """The plug is pulled; then the machine comes up with a version that runs."""
        self.scenario.no_denials()  # the journal of the boot that is cut short
        before = self.installed()
        version = self.order(self.package(number, "cut"))
        self.sh(f"until {seen}; do sleep 0.05; done", timeout=updates.WITHIN_S)
        self.guest.power_cut()
        self.guest.boot()
        self.guest.join_network()
        line = self.ended()
        expected = {"installed": version, "rolled-back": before, "failed": before}[line["outcome"]]
        self.in_order(expected, f"a power cut {moment}, which ended as {line['outcome']}")


@contextmanager
def machine(scenario: "Scenario") -> Iterator[Machine]:
    """The machine, with its agent as a product."""
    with updates.till(scenario) as till:
        assert scenario.vendor is not None
        made = Machine(scenario, till, scenario.vendor)
        made.set_up()
        yield made


def short(scenario: "Scenario") -> None:
    """A version that works, under a till without a failed request; and one that does not start."""
    with machine(scenario) as made:
        scenario.selling(lambda: made.good(1, "next") and None, "the agent's update of itself", PAUSE_S)
        scenario.no_denials()
        made.bad(2, DEAD)


def broken(scenario: "Scenario") -> None:
    """Packages that cannot be installed or loaded, a lock that somebody else holds, and power cuts."""
    with machine(scenario) as made:
        for number, bad in enumerate(BROKEN, 10):
            made.bad(number, bad)
        made.busy(12)
        made.cut(13, "while dpkg works", f"! dpkg-query -W -f '${{Status}}' {AGENT} | grep -q '^install ok installed$'")
        made.cut(14, "during the trial", f'grep -q \'"phase": "proving"\' {OWN}/state.json')
        made.till.closing()


def long(scenario: "Scenario") -> None:
    """The administrator's way back, and versions that run and do not work."""
    with machine(scenario) as made:
        scenario.selling(lambda: made.good(20, "later") and None, "another update of the agent", PAUSE_S)
        scenario.selling(made.back, "the administrator's way back", PAUSE_S)
        for number, bad in enumerate(BAD, 21):
            made.bad(number, bad)
        made.till.closing()
