"""Serves the socket that was inherited with the updater's or the installer's own service, whose places and users are given."""

import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from common.listening import passed_sockets

IDLE_S = 86_400.0
"""On a till both exit when idle, and their sockets start them again; a stand keeps them."""


def updater(options: dict[str, Any]) -> int:
    """Serves as the updater.

    Args:
        options: `core_uid` whose orders are carried out, `link` the link's socket, `link_uid` who serves it, `trust` the file
            of trust, `owner` who owns that file, `staged` the updater's directory.
    """
    from updater.main import run
    from updater.orders import Places

    places = Places(Path(options["trust"]), Path(options["staged"]), Path(options["link"]), frozenset({options["owner"]}))
    return run(options["core_uid"], places, options["link_uid"], IDLE_S)


def installer(options: dict[str, Any]) -> int:
    """Serves as the installer, which may start no program.

    Args:
        options: `core_uid` whose orders are carried out, `trust` and `config` its files, `staged` the updater's directory,
            `own` its own one. All but `staged` belongs to who runs it.
    """
    from confine.noexec import forbid_exec
    from installer.backends.slots import Slots
    from installer.config import load_config
    from installer.jobs import Jobs
    from installer.machine import Machine
    from installer.main import serve
    from installer.state import StateFile
    from updatetrust.trustfile import read_trust

    forbid_exec()
    os.umask(0o077)
    me, own = os.geteuid(), Path(options["own"])
    machine = Machine(
        config=partial(load_config, Path(options["config"]), (me,)),
        trust=partial(read_trust, Path(options["trust"]), (me,)),
        state=StateFile(own, me),
        staging=Path(options["staged"]) / "staged",
        work=own / "work",
        jobs=Jobs(own / "jobs", time.monotonic, time.sleep),
        upgrades=Jobs(own / "upgrades", time.monotonic, time.sleep),
        backend=lambda product: Slots(product.name, product.directory, me),
    )
    passed = passed_sockets()
    if len(passed) != 1:
        sys.stderr.write("the installer of a stand needs one socket\n")
        return 69
    listener = passed[0][1]
    with listener:
        serve(listener, options["core_uid"], IDLE_S, machine)
    return 0
