"""What an agent may ask of all processes together: a token bucket in the registry. Each process takes tokens from it in lots.

A process gives each agent one lot of its own, which fills up again within `LOT_REFILL_S`. A contact needs less than that, so an
ordinary agent never meets the registry's bucket. An agent that asks more has its process take another lot here. All processes
together therefore let an agent ask at most one lot each beyond what one process would.

A lot is taken by one statement, prepared by the driver: it is part of a request.
"""

from sqlalchemy.exc import SQLAlchemyError

from server.base.limits import AGENT_RATE, Rate

from .database import Database
from .dialect import greatest, least, own_clock_now
from .prepared import DriverBusy, Prepared

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


class Allowance:
    """The buckets.

    Args:
        database: the registry's.
        own_clock: whether the time is that of the database's machine, which all processes have in common, if it has a clock.
    """

    def __init__(self, database: Database, *, own_clock: bool = True) -> None:
        self._database = database
        self._prepared = Prepared(database)
        sqlite = database.is_sqlite
        now = own_clock_now(sqlite=sqlite) if own_clock else "CAST(? AS BIGINT)"
        self._given_now = "?" in now
        self._take, self._set_back = _take(now, sqlite=sqlite), _set_back(now)

    def take_lot(self, name: str, now: int) -> bool:
        """Takes a lot for a caller; returns False if its bucket has none.

        Args:
            name: whose bucket.
            now: seconds since 1970 UTC, where the database has no clock of its own.

        Raises:
            SQLAlchemyError: the database does not answer.
        """
        name, moment = name[:96], (now,) if self._given_now else ()
        if self._changed(self._take, (name, *moment)):
            return True
        # The clock was set back for good: what the bucket lacks comes back from now on.
        self._changed(self._set_back, (*moment, name, *moment))
        return False

    def _changed(self, statement: str, parameters: tuple[object, ...]) -> bool:
        """Whether a statement has changed a row."""
        try:
            with self._prepared.write() as statements:
                return bool(statements.rows(statement, *parameters))
        except DriverBusy:
            raise
        except SQLAlchemyError:
            # Most likely a connection that was lost since it was last used. This way gets one that works. If the lot was
            # taken all the same, the agent has one less.
            with self._database.write() as session:
                marked = statement if self._database.is_sqlite else statement.replace("?", "%s")
                return bool(session.connection().exec_driver_sql(marked, parameters).all())


def _take(now: str, *, sqlite: bool) -> str:
    """Takes a lot and returns a row, or changes nothing. Two at once take turns at the bucket's row."""
    # Fills up from `at` on; the clock may have been set back, for good or by a moment.
    passed = f"{greatest(sqlite=sqlite)}(0, excluded.at - held.at)"
    filled = f"{least(sqlite=sqlite)}({float(SHARED_RATE.burst)}, held.level + {passed} * {float(SHARED_RATE.per_second)})"
    at = (
        f"CASE WHEN held.at > excluded.at + {CLOCK_TOLERANCE_S} THEN excluded.at "
        f"ELSE {greatest(sqlite=sqlite)}(held.at, excluded.at) END"
    )
    return (
        f"INSERT INTO allowance AS held (name, level, at) VALUES (?, {float(SHARED_RATE.burst - LOT)}, {now}) "  # noqa: S608 - constants
        f"ON CONFLICT (name) DO UPDATE SET level = {filled} - {LOT}, at = {at} WHERE {filled} >= {LOT} RETURNING 1"
    )


def _set_back(now: str) -> str:
    """Dates a bucket back whose time is from further ahead than clocks differ."""
    return f"UPDATE allowance SET at = {now} WHERE name = ? AND at > {now} + {CLOCK_TOLERANCE_S} RETURNING 1"  # noqa: S608 - constants
