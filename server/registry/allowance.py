"""What an agent may ask of all processes together: a token bucket in the registry. Each process takes tokens from it in lots.

A process gives each agent one lot of its own, which fills up again within `LOT_REFILL_S`. A contact needs less than that, so an
ordinary agent never meets the registry's bucket. An agent that asks more has its process take another lot here. All processes
together therefore let an agent ask at most one lot each beyond what one process would.
"""

from collections.abc import Callable

from sqlalchemy import text
from sqlalchemy.orm import Session

from server.base.limits import AGENT_RATE, Rate

from .database import Database
from .dialect import locking, own_clock

LOT = 15
"""Requests of a lot."""
LOT_REFILL_S = 60.0
PROCESS_RATE = Rate(LOT / LOT_REFILL_S, LOT)
"""What a process lets an agent ask without a lot of the registry's."""
SHARED_RATE = Rate(AGENT_RATE.per_second, AGENT_RATE.burst - LOT)
"""What is in the registry: with one process, an agent has `AGENT_RATE`."""
CLOCK_TOLERANCE_S = 60
"""A bucket from further ahead was written while a clock was wrong: what it lacks comes back from now on."""
KEPT_S = 3600
"""How long a bucket is kept: it is full long before."""

_NEW = text("INSERT INTO allowance (name, level, at) VALUES (:name, :level, :now) ON CONFLICT (name) DO NOTHING")
_FIND = "SELECT level, at FROM allowance WHERE name = :name"
_TAKE = text("UPDATE allowance SET level = :level, at = :now WHERE name = :name")


class Allowance:
    """The buckets.

    Args:
        database: the registry's.
        clock: the time of the database's machine, which all processes have in common; None if it has none of its own.
    """

    def __init__(self, database: Database, clock: Callable[[Session], float | None] = own_clock) -> None:
        self._database = database
        self._clock = clock
        self._find = text(locking(_FIND, sqlite=database.is_sqlite))

    def take_lot(self, name: str, now: int) -> bool:
        """Takes a lot for a caller; returns False if its bucket has none.

        Args:
            name: whose bucket.
            now: seconds since 1970 UTC, where the database has no clock of its own.

        Raises:
            SQLAlchemyError: the database does not answer.
        """
        name = name[:96]
        with self._database.write() as session:
            now = int(self._clock(session) or now)
            session.execute(_NEW, {"name": name, "level": float(SHARED_RATE.burst), "now": now})
            level, at = session.execute(self._find, {"name": name}).one()
            # The clock may have been set back, for good or by a moment.
            reckoned = now if at > now + CLOCK_TOLERANCE_S else max(at, now)
            level = min(float(SHARED_RATE.burst), level + max(0, reckoned - at) * SHARED_RATE.per_second)
            if level < LOT:
                if at > reckoned:
                    session.execute(_TAKE, {"name": name, "level": level, "now": reckoned})
                return False
            session.execute(_TAKE, {"name": name, "level": level - LOT, "now": reckoned})
            return True
