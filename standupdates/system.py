"""Does what systemd does on a till: runs apply for each job, and keeps the service of the POS application.

`perform` is apply's own, and the health command runs by `installer.pos.poscheck`, as the product's user. Not here: the
sandboxes of the units, and restarts of a POS application that ends by itself.
"""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from installer.apply import CHECK_UNIT, JOURNALCTL, LAST_LINES, perform
from installer.backends.slots import CURRENT
from installer.config import ProductConfig, load_config
from installer.jobs import JOB
from installer.programs import SYSTEMCTL, Ran
from installer.programs import run as run_program

POLL_S = 0.05
STOP_S = 10.0
"""How long the POS application may take to end, as TimeoutStopSec= of a unit."""
_CHECK = """
import sys
from pathlib import Path
from installer.pos.poscheck import main
sys.exit(main([sys.argv[1]], Path(sys.argv[2]), (int(sys.argv[3]),)))
"""


class System:
    """Serves jobs until a signal ends it.

    Args:
        options: `config` the installer's configuration, `own` the installer's directory, `start` whether the POS application is
            started at the beginning, as a unit that is enabled.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._config = Path(options["config"])
        self._jobs = Path(options["own"]) / "jobs"
        self._start = bool(options["start"])
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._wrote: dict[str, str] = {}
        self._statuses: dict[str, int | None] = {}

    def serve(self) -> int:
        """Returns when SIGTERM or SIGINT has come; what was started has ended then."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(0))
        try:
            if self._start:
                for product in self._products():
                    if os.path.lexists(product.directory / CURRENT):
                        self._restart(product)
            while True:
                if (self._jobs / JOB).exists():
                    perform(self._jobs, partial(load_config, self._config, (os.geteuid(),)), self._ask)
                time.sleep(POLL_S)
        finally:
            for process in self._running.values():
                _end(process)

    def _products(self) -> list[ProductConfig]:
        return list(load_config(self._config, (os.geteuid(),)).products.values())

    def _ask(self, command: list[str], within_s: float) -> Ran:
        """What systemctl and journalctl would do, for the calls of apply."""
        if command[0] == JOURNALCTL:
            (unit,) = [word.partition("=")[2] for word in command if word.startswith("_SYSTEMD_UNIT=")] or [""]
            return Ran(0, "\n".join(self._wrote.get(unit, "").splitlines()[-LAST_LINES:]))
        if command[:2] == [SYSTEMCTL, "reset-failed"]:
            return Ran(0, "")
        return self._systemctl(command, within_s)

    def _systemctl(self, command: list[str], within_s: float) -> Ran:
        for product in self._products():
            unit = product.unit
            process = self._running.get(unit)
            if command == [SYSTEMCTL, "restart", "--", unit]:
                return self._restart(product)
            if command == [SYSTEMCTL, "is-active", "--", unit]:
                runs = process is not None and process.poll() is None
                return Ran(0, "active") if runs else Ran(3, "inactive")
            check = CHECK_UNIT.format(product=product.name)
            if command == [SYSTEMCTL, "start", "--", check]:
                me = str(os.geteuid())
                ran = run_program([sys.executable, "-c", _CHECK, product.name, str(self._config), me], within_s)
                sys.stderr.write(f"health command of {product.name}: exit status {ran.status}: {ran.output}\n")
                # systemctl says only that the unit failed.
                self._wrote[check], self._statuses[check] = ran.output, ran.status
                return ran if ran.status == 0 else Ran(1, "")
            if command == [SYSTEMCTL, "show", "--property=ExecMainStatus", "--value", "--", check]:
                return Ran(0, str(self._statuses.get(check, 0)))
        return Ran(5, f"no such unit: {' '.join(command)}")

    def _restart(self, product: ProductConfig) -> Ran:
        """Runs `bin/NAME` of the current slot as the product's user, without what this process has open."""
        if (before := self._running.pop(product.unit, None)) is not None:
            _end(before)
        slot, other = product.directory / CURRENT, product.uid if product.uid != os.geteuid() else None
        try:
            self._running[product.unit] = subprocess.Popen(
                [slot / "bin" / product.name], cwd=slot, stdin=subprocess.DEVNULL, start_new_session=True,
                user=other, group=other, extra_groups=None if other is None else [],
            )  # fmt: skip
        except OSError as error:
            return Ran(1, f"{slot / 'bin' / product.name}: {error.strerror}")
        return Ran(0, "")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a service with all that it has started, as systemd does with a unit's processes."""
    for number, within_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
            process.wait(within_s)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
        return


def main(options: dict[str, Any]) -> int:
    """Becomes the system."""
    return System(options).serve()
