"""Hands out timed work: each job is claimed by one process of all on a registry, for as long as its lease lasts.

A job that a process does not finish, since it was killed, is due again when the lease ends: each job may be done twice and has
to allow that. Times are arguments, in seconds since 1970 UTC. A due time or a lease further ahead than the plan says does not
count: it was written while a clock was wrong.
"""

from dataclasses import dataclass

from sqlalchemy import select, text

from server.registry.database import Database
from server.registry.dialect import passing_locked
from server.registry.models.core import Job

RETRY_S = 60
"""When a job that failed is due again, at the latest: less if its interval is shorter."""

# Two processes may start at once.
_NEW = text("INSERT INTO job (name, due_at, failures) VALUES (:name, :now, 0) ON CONFLICT (name) DO NOTHING")


@dataclass(frozen=True, slots=True)
class Plan:
    """How often a job is done.

    Attributes:
        name: in the registry, in metrics and in the log.
        every_s: seconds from the end of one run to the next.
        lease_s: seconds after which a run that has not ended counts as lost.
    """

    name: str
    every_s: int
    lease_s: int


@dataclass(frozen=True, slots=True)
class Standing:
    """How a job stands.

    Attributes:
        name: of the job.
        late_s: seconds since it was due; 0 if it is not due, or under way.
        last_success: when it last ended well; None before that.
        failures: how often it has failed since.
    """

    name: str
    late_s: int
    last_success: int | None
    failures: int


class Jobs:
    """The timed work of a registry.

    Args:
        database: the registry's.
        plans: the jobs that there are.
        holder: names this process.
    """

    def __init__(self, database: Database, plans: tuple[Plan, ...], holder: str) -> None:
        self._database = database
        self._plans = {plan.name: plan for plan in plans}
        self._holder = holder[:128]

    def claim(self, now: int) -> Plan | None:
        """The job that has been due for longest, now this process's; None if none is due.

        The process that claims a job calls `finished` or `failed`.
        """
        with self._database.write() as session:
            known = set(session.scalars(select(Job.name)))
            for name in self._plans:
                if name not in known:
                    session.execute(_NEW, {"name": name, "now": now})
            # One that another process is claiming at this moment is passed over.
            rows = select(Job).where(Job.name.in_(self._plans)).order_by(Job.due_at)
            for row in session.scalars(passing_locked(rows)):
                plan = self._plans[row.name]
                held = row.lease_until is not None and now < row.lease_until <= now + plan.lease_s
                if not held and (row.due_at <= now or row.due_at > now + plan.every_s):
                    row.holder, row.lease_until = self._holder, now + plan.lease_s
                    return plan
        return None

    def finished(self, plan: Plan, now: int) -> None:
        """Notes that a job has ended well."""
        self._end(plan, now, now + plan.every_s, well=True)

    def failed(self, plan: Plan, now: int) -> None:
        """Notes that a job has failed; it is due again soon."""
        self._end(plan, now, now + min(RETRY_S, plan.every_s), well=False)

    def _end(self, plan: Plan, now: int, due_at: int, *, well: bool) -> None:
        with self._database.write() as session:
            row = session.get(Job, plan.name, with_for_update=True)
            if row is None or row.holder != self._holder:
                return  # the lease has ended, and another process has the job
            row.due_at, row.holder, row.lease_until = due_at, None, None
            row.failures = 0 if well else row.failures + 1
            if well:
                row.last_success = now

    def standings(self, now: int) -> list[Standing]:
        """How all jobs stand, by name."""
        with self._database.read() as session:
            rows = list(session.scalars(select(Job).where(Job.name.in_(self._plans)).order_by(Job.name)))
        return [
            Standing(
                row.name,
                0 if row.lease_until is not None and row.lease_until > now else max(0, now - row.due_at),
                row.last_success,
                row.failures,
            )
            for row in rows
        ]
