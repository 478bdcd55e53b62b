"""Serves the core's orders, one at a time, and exits when idle. Clock and process are touched here."""

import argparse
import contextlib
import logging
import os
import pwd
import resource
import socket
import sys
import time

from common.files import os_problem
from common.listening import ListenError, passed_sockets
from common.logqueue import LogQueue, PrefixFormatter, StreamSink, encoder, install
from confine.errors import ConfineError
from confine.noexec import forbid_exec
from ipc.errors import RemoteProtocolError
from ipc.frames import FrameDecoder
from ipc.installermessages import INSTALLER_MAX_FRAME_BYTES, ORDER_TIMEOUT_S, Progress, encode_installer
from ipc.peer import peer_of
from ipc.posclient.trust import AGENT_USER
from updatetrust.trustfile import read_trust

from . import VERSION
from .config import load_config
from .jobs import JOBS, UPGRADES, Jobs
from .machine import Machine, backend_of
from .orders import answer, refusal
from .staged import STAGING
from .state import DIRECTORY, StateFile

log = logging.getLogger("installer")

EXIT_OK, EXIT_UNAVAILABLE = 0, 69
IDLE_S = 90.0
"""Longer than the core asks the license server in vain before it orders the switch: an order that comes while this process
leaves is lost, and repeated only after a pause and after another question to the server."""


def _inherited() -> socket.socket | None:
    """The one socket that systemd passed; None if it passed none, or something else."""
    try:
        passed = passed_sockets()
    except ListenError as error:
        log.error("%s", error)
        return None
    return passed[0][1] if len(passed) == 1 else None


def serve(listener: socket.socket, core_uid: int, idle_s: float, machine: Machine) -> None:
    """Answers the core's orders until none has come for `idle_s` seconds.

    Args:
        listener: a Unix stream socket.
        core_uid: the only user whose orders are answered.
        idle_s: seconds.
        machine: what the orders are carried out on.
    """
    listener.settimeout(idle_s)
    while True:
        try:
            sock, _ = listener.accept()
        except TimeoutError:
            return
        with sock:
            try:
                _serve_one(sock, core_uid, machine)
            except OSError as error:  # a peer that is slow or gone must not affect the next one
                log.warning("a connection failed: %s", error.strerror or error)


def _serve_one(sock: socket.socket, core_uid: int, machine: Machine) -> None:
    uid = peer_of(sock, sure_of_pid=False).uid
    if uid != core_uid:
        log.warning("refused a connection from uid %d; only uid %d may use the installer's socket", uid, core_uid)
        sock.settimeout(ORDER_TIMEOUT_S)
        sock.sendall(encode_installer(refusal(0, "not-allowed", "only the agent may use the installer's socket")))
        return
    ends = time.monotonic() + ORDER_TIMEOUT_S
    decoder = FrameDecoder(INSTALLER_MAX_FRAME_BYTES)
    while (left := ends - time.monotonic()) > 0:
        sock.settimeout(left)
        data = sock.recv(INSTALLER_MAX_FRAME_BYTES)
        if not data:
            return
        try:
            frames = decoder.receive_data(data, 1)
        except RemoteProtocolError as error:
            sock.sendall(encode_installer(refusal(0, "malformed", str(error))))
            return
        if frames:
            sock.settimeout(ORDER_TIMEOUT_S)
            sock.sendall(encode_installer(answer(frames[0], machine, _Reporter(sock))))
            return
    raise TimeoutError(f"the order was not complete within {ORDER_TIMEOUT_S:g} s")


class _Reporter:
    """Sends progress, a hundred times at the most. A core that has gone is no reason to stop: it will ask again."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock: socket.socket | None = sock
        self._percent = -1

    def __call__(self, progress: Progress) -> None:
        percent = progress.done * 100 // max(progress.total, 1)
        if self._sock is None or percent <= self._percent:
            return
        self._percent = percent
        try:
            self._sock.sendall(encode_installer(progress))
        except OSError:
            self._sock = None


def this_machine() -> Machine:
    """Returns the machine as it is installed.

    Raises:
        OSError: the directories for copies and jobs cannot be made.
    """
    work = DIRECTORY / "work"
    for directory in (work, JOBS, UPGRADES):
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
    upgrades = Jobs(UPGRADES, time.monotonic, time.sleep, unit="license-agent-upgrade")
    jobs = Jobs(JOBS, time.monotonic, time.sleep)
    return Machine(
        config=load_config,
        trust=read_trust,
        state=StateFile(),
        staging=STAGING,
        work=work,
        jobs=jobs,
        upgrades=upgrades,
        backend=lambda product: backend_of(product, jobs, upgrades),
    )


def entry() -> None:
    """The console script."""
    parser = argparse.ArgumentParser(
        prog="license-agent-installer",
        description="Carries out the license agent's orders as root. systemd starts it with its socket.",
        epilog=f"Exit status: 0 success, 2 wrong usage, {EXIT_UNAVAILABLE} no socket from systemd, no user {AGENT_USER}, or no "
        "confinement.",
    )
    parser.add_argument("--version", action="version", version=f"license-agent-installer {VERSION}")
    parser.parse_args()
    lines = LogQueue(encoder(PrefixFormatter()), StreamSink())
    install(lines)
    try:
        status = _run()
    finally:
        lines.finish()
    sys.exit(status)


def _run() -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    try:
        forbid_exec()
    except ConfineError as error:
        log.error("%s", error)
        return EXIT_UNAVAILABLE
    try:
        core_uid = pwd.getpwnam(AGENT_USER).pw_uid
    except KeyError:
        log.error("the user %s does not exist; the package license-agent creates it", AGENT_USER)
        return EXIT_UNAVAILABLE
    listener = _inherited()
    if listener is None:
        log.error("systemd passed no socket; start license-agent-installer.socket, which starts this program")
        return EXIT_UNAVAILABLE
    try:
        machine = this_machine()
    except OSError as error:
        log.error("%s", os_problem(error, str(DIRECTORY)))
        return EXIT_UNAVAILABLE
    with listener:
        serve(listener, core_uid, IDLE_S, machine)
    return EXIT_OK
