"""Watches this machine's clock for the server: `ownclock` decides, this reads clocks and heartbeats and remembers.

Signing asks `check` each time. `serve` also calls `beat` once a minute, which leaves a heartbeat for the next start.
"""

import ipaddress
import logging
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from server.base.errors import RegistryError
from server.base.machineclock import Reading, is_synchronized, read_clocks
from server.base.ownclock import STEP_S, Evidence, Finding, Remote, describe, find

from .database import Database
from .dialect import own_clock
from .models.core import Heartbeat

OPERATOR = "operator"
"""The heartbeat that stands for an operator's word."""
WORD_S = 600
"""How long an operator's word counts on another machine than the one on which it was given."""
LOOK_AGAIN_S = 5.0
"""How often a process that does not trust its clock looks at it again."""
KEPT_S = 90 * 86_400
"""How long the heartbeat of a process that has ended is kept, beside the newest."""
_log = logging.getLogger("license_server")


class ClockNotTrusted(RegistryError):
    """Nothing is signed by a clock that may be wrong; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Status:
    """What an operator is shown.

    Attributes:
        finding: whether the clock is trusted, and why.
        text: the same in words.
        synchronized: whether the kernel says so.
        last: the last heartbeat, seconds since 1970 UTC; None without one.
    """

    finding: Finding
    text: str
    synchronized: bool
    last: int | None


@dataclass(frozen=True, slots=True)
class _Base:
    """When the clock was last trusted in this boot."""

    wall: float
    boot_s: float
    synchronized: bool


class ClockWatch:
    """Says whether this process may sign by the clock of its machine.

    Args:
        database: has the heartbeats.
        clocks: reads this machine's clocks.
        synchronized: whether the kernel calls the wall clock synchronized.
    """

    def __init__(
        self,
        database: Database,
        clocks: Callable[[], Reading] = read_clocks,
        synchronized: Callable[[], bool] = is_synchronized,
    ) -> None:
        self._database = database
        self._clocks = clocks
        self._synchronized = synchronized
        self._lock = threading.Lock()
        self._base: _Base | None = None
        self._trusted = False
        self._known = False
        self._problem = "the server's clock has not been checked"
        self._looked = float("-inf")
        self._synchronized_since: float | None = None
        self._process = f"{socket.gethostname()[:100]}/{os.getpid()}"

    def check(self) -> None:
        """Returns if the server may sign.

        Raises:
            ClockNotTrusted: it may not.
            SQLAlchemyError: the heartbeats cannot be read.
        """
        problem = self.problem()
        if problem is not None:
            raise ClockNotTrusted(problem)

    def surely_trusted(self) -> bool:
        """Whether the clock is trusted, as far as that is known without the database. Never waits."""
        base = self._base
        if not self._trusted or base is None:
            return False
        return abs(self._clocks().step_since(base.wall, base.boot_s)) <= STEP_S

    def problem(self) -> str | None:
        """Why the server must not sign; None if it may. Raises SQLAlchemyError."""
        with self._lock:
            now = self._clocks()
            base = self._base
            if self._trusted and base is not None:
                step = now.step_since(base.wall, base.boot_s)
                if abs(step) <= STEP_S:
                    self._base = _Base(now.wall, now.boot_s, base.synchronized)
                    return None
                _log.error("the clock has stepped", extra={"fields": {"seconds": round(step)}})
                self._trusted, self._synchronized_since = False, None
            elif now.boot_s - self._looked < LOOK_AGAIN_S:
                return self._problem
            return self._look(now)

    def status(self) -> Status:
        """What an operator is shown. Raises SQLAlchemyError."""
        with self._lock:
            now = self._clocks()
            evidence, last = self._evidence(now)
            finding = find(evidence)
            return Status(finding, describe(finding, evidence), evidence.synchronized_s is not None, last)

    def beat(self) -> None:
        """Leaves a heartbeat, if the clock is trusted. Raises SQLAlchemyError."""
        if self.problem() is None:
            with self._database.write() as session:
                self._write(session, self._process)
                session.execute(delete(Heartbeat).where(Heartbeat.at < int(self._clocks().wall) - KEPT_S))

    def accept(self, session: Session) -> list[int]:
        """Takes the clock as it is, on an operator's word; returns the times of heartbeats that were later, now deleted.

        Args:
            session: of a writing transaction.
        """
        now = int(self._clocks().wall)
        later = Heartbeat.at > now + STEP_S
        found = list(session.scalars(select(Heartbeat.at).where(later)))
        session.execute(delete(Heartbeat).where(later))
        self._write(session, OPERATOR)
        return found

    def _write(self, session: Session, process: str) -> None:
        now = self._clocks()
        session.merge(
            Heartbeat(
                process=process,
                at=int(now.wall),
                boot_id=now.boot_id,
                boot_ms=int(now.boot_s * 1000),
                synchronized=self._synchronized(),
            )
        )

    def _look(self, now: Reading) -> str | None:
        evidence, _last = self._evidence(now)
        finding = find(evidence)
        self._looked, self._trusted, self._problem = now.boot_s, finding.trusted, describe(finding, evidence)
        if finding.trusted:
            if self._known:
                _log.warning("the clock is trusted again", extra={"fields": {"why": self._problem}})
            self._base = _Base(now.wall, now.boot_s, evidence.synchronized_s is not None)
            self._known = False
            return None
        if not self._known:
            _log.error("nothing is signed", extra={"fields": {"why": self._problem}})
        self._known = True
        return self._problem

    def _evidence(self, now: Reading) -> tuple[Evidence, int | None]:
        with self._database.read() as session:
            rows = list(session.scalars(select(Heartbeat)))
        last = max((row.at for row in rows), default=None)
        ours = [row for row in rows if row.boot_id and row.boot_id == now.boot_id and row.boot_ms <= now.boot_s * 1000 + 1000]
        newest = max(ours, key=lambda row: (row.boot_ms, row.process == OPERATOR), default=None)
        base = self._base
        if newest is not None and (base is None or newest.boot_ms / 1000 >= base.boot_s):
            base = _Base(newest.at, newest.boot_ms / 1000, newest.synchronized)
        if self._synchronized():
            self._synchronized_since = now.boot_s if self._synchronized_since is None else self._synchronized_since
        else:
            self._synchronized_since = None
        step = None if base is None else now.step_since(base.wall, base.boot_s)
        known = (step is not None and abs(step) <= STEP_S) or (base is None and last is None)
        word = next((row for row in rows if row.process == OPERATOR), None)
        evidence = Evidence(
            step_s=step,
            gap_s=None if last is None else now.wall - last,
            synchronized_s=None if self._synchronized_since is None else now.boot_s - self._synchronized_since,
            was_synchronized=base is None or base.synchronized,
            remote=Remote.ABSENT if known else self._ask_database(),
            accepted=word is not None and word.boot_id != now.boot_id and 0 <= now.wall - word.at <= WORD_S,
        )
        return evidence, last

    def _ask_database(self) -> Remote:
        """What the database's clock says. It says nothing where it is this machine's own."""
        if _is_this_machine(self._database.url.host):
            return Remote.ABSENT
        try:
            with self._database.read() as session:
                theirs = own_clock(session)
        except SQLAlchemyError:
            return Remote.ABSENT
        if theirs is None:
            return Remote.ABSENT
        apart = abs(theirs - self._clocks().wall)
        return Remote.AGREES if apart <= STEP_S else Remote.CONTRADICTS


def _is_this_machine(host: str | None) -> bool:
    """Whether a database's host is this machine: a directory of a socket, a loopback address, or one that can be bound."""
    if not host or host.startswith("/"):
        return True
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except OSError:
        return True  # nothing is known of it, so its clock is no witness
    return all(_is_local(family, address) for family, _, _, _, address in found)


def _is_local(family: int, address: tuple[object, ...]) -> bool:
    if ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        return True
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address[0], 0, *address[2:]))
        except OSError:
            return False
    return True


class Heart:
    """Calls `beat` once a minute until it is stopped.

    Args:
        watch: whose heart it is.
        every_s: seconds between two beats.
    """

    def __init__(self, watch: ClockWatch, every_s: float = 60.0) -> None:
        self._watch = watch
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        while True:
            try:
                self._watch.beat()
            except SQLAlchemyError as problem:
                _log.error("no heartbeat could be written", extra={"fields": {"kind": type(problem).__name__}})
            if self._stop.wait(self._every_s):
                return
