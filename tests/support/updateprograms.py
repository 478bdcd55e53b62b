"""The programs of updates as processes of a test: the real ones, whose places and users are the test's.

`updater` and `installer` serve a socket that they inherit, as from systemd. `system` does systemd's part: it runs apply for
each job, and what apply's `systemctl` would do: it starts the POS and the real health program.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from confine.noexec import forbid_exec
from installer.apply import Ran, perform
from installer.apply import run as run_program
from installer.backends.slots import Slots
from installer.config import load_config
from installer.jobs import JOB, Jobs
from installer.machine import Machine
from installer.main import serve
from installer.state import StateFile
from tests.support.waiting import PAUSE_S, READY_S
from updatetrust.trustfile import read_trust

ME = os.geteuid()
_HEALTH = """
import sys
from pathlib import Path
from installer.poscheck import main
sys.exit(main([sys.argv[1]], Path(sys.argv[2]), (int(sys.argv[3]),)))
"""


def updater(options: dict[str, Any]) -> int:
    """The updater's own `run`."""
    from updater.main import run
    from updater.orders import Places

    places = Places(Path(options["etc"]) / "update-trust.json", Path(options["staged"]), Path(options["link"]), frozenset({ME}))
    if options["fd"] != 3:
        os.dup2(options["fd"], 3, inheritable=True)
        os.close(options["fd"])
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="updater")
    return run(options["core_uid"], places, options["link_uid"], READY_S)


def installer(options: dict[str, Any]) -> int:
    """The installer's own service, which may start no program, as in production."""
    import socket

    forbid_exec()
    os.umask(0o077)
    etc, own = Path(options["etc"]), Path(options["own"])
    machine = Machine(
        config=partial(load_config, etc / "installer.toml", (ME,)),
        trust=partial(read_trust, etc / "update-trust.json", (ME,)),
        state=StateFile(own, ME),
        staging=Path(options["staged"]) / "staged",
        work=own / "work",
        jobs=Jobs(own / "jobs", time.monotonic, time.sleep),
        upgrades=Jobs(own / "upgrades", time.monotonic, time.sleep),
        backend=lambda product: Slots(product.name, product.directory, ME),
    )
    with socket.socket(fileno=options["fd"]) as listener:
        serve(listener, options["core_uid"], READY_S, machine)
    return 0


class System:
    """What systemd does on a till: it starts apply for a job, and units for apply."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._config = Path(options["etc"]) / "installer.toml"
        self._jobs = Path(options["own"]) / "jobs"
        self._pos: subprocess.Popen[bytes] | None = None

    def serve(self) -> int:
        """Until a signal ends it."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        try:
            while True:
                if (self._jobs / JOB).exists():
                    perform(self._jobs, partial(load_config, self._config, (ME,)), self._systemctl)
                time.sleep(PAUSE_S)
        finally:
            self._stop()

    def _systemctl(self, command: list[str], within_s: float) -> Ran:
        product = load_config(self._config, (ME,)).products["pos"]
        match command[1:]:
            case ["restart", "--", "pos.service"]:
                self._stop()
                slot = product.directory / "current"
                other = product.uid if product.uid != ME else None
                self._pos = subprocess.Popen(
                    [slot / "bin" / "pos"], cwd=slot, user=other, group=other, extra_groups=None if other is None else []
                )
                return Ran(0, "")
            case ["is-active", "--", "pos.service"]:
                runs = self._pos is not None and self._pos.poll() is None
                return Ran(0, "active") if runs else Ran(3, "inactive")
            case ["start", "--", "license-agent-pos-check@pos.service"]:
                return run_program([sys.executable, "-c", _HEALTH, "pos", str(self._config), str(ME)], within_s)
        return Ran(1, f"no such unit: {command}")

    def _stop(self) -> None:
        if self._pos is not None:
            self._pos.terminate()
            self._pos.wait()


def main() -> int:
    """Becomes the program that the options name."""
    logging.basicConfig(level=logging.INFO)
    options = json.loads(sys.argv[1])
    match options["name"]:
        case "updater":
            return updater(options)
        case "installer":
            return installer(options)
        case "system":
            return System(options).serve()
    return 2


if __name__ == "__main__":
    sys.exit(main())
