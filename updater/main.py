"""Confines the process and serves the core's orders until it is idle. Only here are clock and process touched."""

import argparse
import logging
import os
import pwd
import socket
import sys
from pathlib import Path

from common.listening import ListenError, passed_sockets
from common.logqueue import LogQueue, PrefixFormatter, StreamSink, encoder, install
from confine.basics import basic_rules
from confine.dumps import forbid_dumps
from confine.errors import ConfineError
from confine.landlock import Access, PathRule, restrict
from confine.noexec import forbid_exec
from ipc.posclient.trust import AGENT_USER

from . import VERSION
from .clock import SystemClock
from .orders import Places, Updater
from .service import Service

log = logging.getLogger("updater")

EXIT_OK, EXIT_UNAVAILABLE = 0, 69
IDLE_S = 30.0
LINK_USER = "license-agent-link"
STATE = Path("/var/lib/license-agent-updater")
LINK_SOCKET = Path("/run/license-agent/link.sock")
TRUST = Path("/etc/license-agent/update-trust.json")


def _inherited() -> socket.socket | None:
    """The one socket that systemd passed; None if it passed none, or something else."""
    try:
        passed = passed_sockets()
    except ListenError as error:
        log.error("%s", error)
        return None
    return passed[0][1] if len(passed) == 1 else None


def _uid(user: str) -> int | None:
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


def entry() -> None:
    """The console script."""
    parser = argparse.ArgumentParser(
        prog="license-agent-updater",
        description="Downloads and verifies updates for the license agent. systemd starts it with its socket.",
        epilog=f"Exit status: 0 success, 2 wrong usage, {EXIT_UNAVAILABLE} no socket from systemd, or no user {AGENT_USER}.",
    )
    parser.add_argument("--version", action="version", version=f"license-agent-updater {VERSION}")
    parser.parse_args()
    lines = LogQueue(encoder(PrefixFormatter()), StreamSink())
    install(lines, logging.WARNING)
    log.setLevel(logging.INFO)
    try:
        status = run(_uid(AGENT_USER), Places(TRUST, STATE, LINK_SOCKET), _uid(LINK_USER), IDLE_S)
    finally:
        lines.finish()
    sys.exit(status)


def run(core_uid: int | None, places: Places, link_uid: int | None, idle_s: float) -> int:
    """Confines the process and serves the socket that systemd passed; returns the exit status.

    Args:
        core_uid: whose orders are carried out; None if the machine has no such user.
        places: where things are.
        link_uid: as whom the link runs; None if the machine has no such user.
        idle_s: seconds without an order, after which it returns.
    """
    if core_uid is None:
        log.error("the user %s does not exist; the package license-agent creates it", AGENT_USER)
        return EXIT_UNAVAILABLE
    try:
        forbid_exec()
        os.umask(0o077)
        forbid_dumps()
        listener = _inherited()
        if listener is None:
            log.error("systemd passed no socket; start license-agent-updater.socket, which starts this program")
            return EXIT_UNAVAILABLE
        # The directory of root's file, since a rule for the file itself would stay with it when root replaces it.
        own = [PathRule(places.trust.parent, Access.READ), PathRule(places.state, Access.WRITE, required=True)]
        abi = restrict([*basic_rules(), *own], tcp=False)
    except ConfineError as error:
        log.error("%s", error)
        return EXIT_UNAVAILABLE
    files = "this kernel has no Landlock" if abi is None else f"Landlock ABI {abi}"
    log.info("confined: no program can be started; %s", files)
    trusted = frozenset({0, os.geteuid()} | ({link_uid} if link_uid is not None else set()))
    with listener:
        clock = SystemClock()
        Service(listener, core_uid, Updater(places, trusted, clock).carry_out, clock, idle_s).serve()
    return EXIT_OK
