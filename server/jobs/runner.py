"""Does the timed work that is due, one job after the other, in the thread of its caller."""

import logging
from collections.abc import Callable, Mapping

from sqlalchemy.exc import SQLAlchemyError

from server.base.jsonlog import place_of
from server.registry.database import brief

from .queue import Jobs

_log = logging.getLogger("license_server")


class Runner:
    """Does jobs.

    Args:
        jobs: what is due.
        work: by the name of a job, what does it; is given the time, and may raise anything.
        wall: seconds since 1970 UTC.
    """

    def __init__(self, jobs: Jobs, work: Mapping[str, Callable[[int], None]], wall: Callable[[], float]) -> None:
        self._jobs = jobs
        self._work = work
        self._wall = wall
        self._down = False

    def run(self) -> int:
        """Does what is due, each job once at most; returns how many ended well. Raises nothing: the next call tries again."""
        done = 0
        try:
            for _ in self._work:
                plan = self._jobs.claim(int(self._wall()))
                if plan is None:
                    break
                try:
                    self._work[plan.name](int(self._wall()))
                except Exception as problem:  # noqa: BLE001 - one job that fails stops no other, and is tried again
                    fields = {"job": plan.name, "kind": type(problem).__name__, "at": place_of(problem)}
                    _log.error("a job failed", extra={"fields": fields})
                    self._jobs.failed(plan, int(self._wall()))
                    continue
                self._jobs.finished(plan, int(self._wall()))
                done += 1
        except SQLAlchemyError as problem:
            self._down = True
            fields = {"kind": type(problem).__name__, "text": f"the database does not answer: {brief(problem)}"}
            _log.error("jobs could not be claimed", extra={"fields": fields})
        else:
            if self._down:
                self._down = False
                _log.info("the database answers again")
        return done
