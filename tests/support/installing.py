"""An installer on a till in a directory: real state and slots, and apply's side with a systemctl that always answers."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.files import no_trace
from installer.agentpackage.dpkg import Dpkg
from installer.agentpackage.rescue import Layout, Rescue
from installer.apply import perform, perform_job
from installer.backends.slots import Slots
from installer.config import load_config
from installer.jobs import Jobs
from installer.machine import Machine
from installer.orders import answer
from installer.programs import Ran
from installer.state import State, StateFile
from installer.upgrade import Upgrader
from ipc.installermessages import (
    INSTALLER_VERSION,
    Commit,
    Prepare,
    ProductList,
    Products,
    Progress,
    Prove,
    RollBack,
    Switch,
    Withdraw,
    encode_installer,
)
from ipc.messages import Request
from tests.support.stagedupdates import trust
from updatetrust.trustfile import UpdateTrust, parse_trust_file

CONFIG = """
[product.pos]
backend = "slots"
directory = "{directory}"
unit = "pos.service"
user = 1001
health = ["bin/check"]
"""


class Till:
    """A till in a directory, which is made, or is there from an earlier process.

    Attributes:
        failing: systemctl's verbs that fail from now on.
        commands: what systemctl was called with.
        applies: whether apply's side works at all.
        trust: root's file.
        reported: the progress of the last order.
        broken: backends in place of a product's own.
    """

    def __init__(self, top: Path) -> None:
        self.top = top
        self.pos, self.staging = top / "pos", top / "staging"
        self._own = top / "own"
        for directory in (self.pos, self.staging, self._own, *(self._own / name for name in ("work", "jobs", "upgrades"))):
            directory.mkdir(mode=0o755 if directory == self.pos else 0o700, exist_ok=True)
        self._config = top / "installer.toml"
        self._config.write_text(CONFIG.format(directory=self.pos))
        self._config.chmod(0o644)
        self.failing: set[str] = set()
        self.commands: list[list[str]] = []
        self.applies = True
        self.trust: UpdateTrust = trust()
        self.reported: list[Progress] = []
        self._now = 0.0
        self.broken: dict[str, Any] = {}

    def _run(self, command: list[str], _within_s: float) -> Ran:
        self.commands.append(command[1:])
        return Ran(1, "it failed") if command[1] in self.failing else Ran(0, "")

    def _sleep(self, seconds: float) -> None:
        self._now += seconds
        if self.applies:
            perform(self._own / "jobs", lambda: load_config(self._config, (os.geteuid(),)), self._run)
            perform_job(self._own / "upgrades", lambda: load_config(self._config, (os.geteuid(),)), self._upgrader().do)

    def _upgrader(self) -> Upgrader:
        """The service that keeps configuration; it has no package to upgrade here."""
        dpkg = Dpkg()
        rescue = Rescue(Layout(own=self._own), dpkg)
        return Upgrader(rescue, dpkg, self._run, lambda: "", self.top, lambda: self.top, saves=self._own / "config")

    def keeps(self, config: Path) -> None:
        """Has root's configuration name the directory of the product's."""
        self._config.write_text(CONFIG.format(directory=self.pos) + f'config = "{config}"\n')

    def add(self, product: str, directory: Path) -> None:
        """Has root's configuration name another product."""
        section = CONFIG.format(directory=directory).replace("[product.pos]", f"[product.{product}]")
        with self._config.open("a") as file:
            file.write(section)

    def machine(self, trace: Callable[[str], None] = no_trace) -> Machine:
        """Makes the installer's side new each time, as after a restart."""
        return Machine(
            config=lambda: load_config(self._config, (os.geteuid(),)),
            trust=lambda: self.trust,
            state=StateFile(self._own, os.geteuid(), trace),
            staging=self.staging,
            work=self._own / "work",
            jobs=Jobs(self._own / "jobs", lambda: self._now, self._sleep, trace),
            upgrades=Jobs(self._own / "upgrades", lambda: self._now, self._sleep, trace),
            backend=lambda product: self.broken.get(product.name, Slots(product.name, product.directory, os.geteuid())),
            trace=trace,
        )

    def order(self, kind: type[Request], trace: Callable[[str], None] = no_trace, **fields: Any) -> Any:
        """Gives an order and returns its answer."""
        fields = {"product": "pos", **fields} if kind not in (Products, Withdraw) else fields
        frame = encode_installer(kind(v=INSTALLER_VERSION, id=7, **fields))[4:]
        self.reported = []
        found = answer(frame, self.machine(trace), self.reported.append)
        assert found.id == 7
        return found

    def prepare(self, sha256: str, **more: Any) -> Any:
        return self.order(Prepare, sha256=sha256, **more)

    def switch(self, sha256: str, **more: Any) -> Any:
        return self.order(Switch, sha256=sha256, **more)

    def prove(self, **more: Any) -> Any:
        return self.order(Prove, **more)

    def commit(self, **more: Any) -> Any:
        return self.order(Commit, **more)

    def roll_back(self, **more: Any) -> Any:
        return self.order(RollBack, reason="the test wants it", **more)

    def withdraw(self, directive: str, key_set: str, **more: Any) -> Any:
        return self.order(Withdraw, directive=directive, key_set=key_set, **more)

    def product(self) -> Any:
        """What the installer says of the product."""
        found = self.order(Products)
        assert isinstance(found, ProductList), found
        return found.products[0]

    def state(self) -> State:
        return StateFile(self._own, os.geteuid()).load()

    def runs(self) -> str | None:
        """The version that would start now, of a whole slot; None if there is none."""
        current = self.pos / "current"
        if not os.path.lexists(current):
            return None
        assert (current / "bin" / "check").read_bytes() == b"#!/bin/sh\n"
        assert (current / "data.txt").read_bytes() == b"hello" * 1000
        return (current / "version").read_text()

    def copy_to(self, top: Path) -> "Till":
        """Returns a till that has what this one has."""
        shutil.copytree(self.top, top, symlinks=True, dirs_exist_ok=True)
        return Till(top)

    def install(self, sha256: str) -> None:
        """A whole update that works."""
        for found in (self.prepare(sha256), self.switch(sha256), self.prove(), self.commit()):
            assert getattr(found, "code", None) is None, found


def _killed(at: int) -> Callable[[str], None]:
    left = [at]

    def trace(_step: str) -> None:
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    return trace


if __name__ == "__main__":  # TOP ORDER SHA256 STEP: a process that is killed after that write of that order
    order, sha256, step = sys.argv[2:5]
    till = Till(Path(sys.argv[1]))
    till.trust = parse_trust_file((till.top / "update-trust.json").read_bytes())
    answered = getattr(till, order)(*([sha256] if order in ("prepare", "switch") else []), trace=_killed(int(step)))
    sys.exit(f"not killed: {answered}")
