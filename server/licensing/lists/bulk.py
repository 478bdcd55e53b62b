"""Issues many licenses at once: all of them or none, or line by line. A run that is repeated issues nothing twice.

The agents of a transaction are locked first, in the order of their ids, and the audit is written last, so that runs beside each
other and beside the agents' requests do not wait for each other for ever.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.base.errors import Conflict, Invalid, RegistryError
from server.licensing.licenses.licenses import Licenses, record_issued
from server.licensing.sales.orders import Order, Wish, order_of
from server.registry.database import Database
from server.registry.models.core import Agent, License
from server.registry.models.licensing import Policy

from .sheets import Wanted

MAX_WHOLE = 10_000
"""Lines of a run that issues all or none: its one transaction keeps others waiting."""
BATCH = 100
"""Lines of one transaction, line by line."""
ISSUED, UNCHANGED, BAD, HELD = "issued", "unchanged", "bad", "not issued"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a line.

    Attributes:
        line: where it is in the file; 1 is the first.
        license_id: the license; None if the line has none.
        agent: the agent that gets it; None for no machine.
        outcome: issued; unchanged, if it was there already; bad; or not issued, because another line is bad.
        problem: what is wrong with a bad line.
        token: of an issued license whose agent has a secret.
    """

    line: int
    license_id: str | None
    agent: str | None
    outcome: str
    problem: str | None = None
    token: str | None = None


class _Undone(Exception):
    """Nothing of a run shall stay."""


def numbered(count: int, batch: str, wish: Wish) -> list[Wanted]:
    """Orders for so many licenses that are on no machine, with ids `BATCH-0001` and so on."""
    width = max(4, len(str(count)))
    return [Wanted(number, None, replace(wish, license_id=f"{batch}-{number:0{width}d}")) for number in range(1, count + 1)]


def named(wanted: Sequence[Wanted], batch: str | None) -> list[Wanted]:
    """The same orders; one without a license id gets that of the batch and its line, or is bad without a batch."""

    def name(each: Wanted) -> Wanted:
        if each.problem is not None or each.wish.license_id is not None:
            return each
        if batch is None:
            return replace(each, problem="it has no license_id: add that column, or name a batch, so that no run issues twice")
        return replace(each, wish=replace(each.wish, license_id=f"{batch}-{each.line}"))

    return [name(each) for each in wanted]


def issue_many(
    database: Database,
    licenses: Licenses,
    wanted: Sequence[Wanted],
    now: int,
    *,
    whole: bool,
    reached: Callable[[int], None] = lambda _lines: None,
) -> list[Result]:
    """Issues licenses, and returns what became of each line, in their order.

    Args:
        database: where each run has transactions of its own.
        licenses: the store.
        wanted: the orders, each with a license id or a problem.
        now: seconds since 1970 UTC.
        whole: all or none, in one transaction; else in batches, without the bad lines.
        reached: called with the number of lines that were done.

    Raises:
        Invalid: there are too many lines to issue all or none.
    """
    if not whole:
        results = []
        for first in range(0, len(wanted), BATCH):
            part = wanted[first : first + BATCH]
            with database.write() as session:
                results += _issue(session, licenses, part, now, lambda _lines: None)
            reached(len(part))
        return results
    if len(wanted) > MAX_WHOLE:
        raise Invalid(f"{len(wanted)} licenses are too many for all or none ({MAX_WHOLE}): issue them row by row")
    results = []
    try:
        with database.write() as session:
            results = _issue(session, licenses, wanted, now, reached)
            if any(each.outcome == BAD for each in results):
                raise _Undone
    except _Undone:
        return [each if each.outcome == BAD else replace(each, outcome=HELD, token=None) for each in results]
    return results


def _issue(
    session: Session, licenses: Licenses, wanted: Sequence[Wanted], now: int, reached: Callable[[int], None]
) -> list[Result]:
    ids = sorted({each.agent for each in wanted if each.agent is not None} | _agents_at(session, wanted))
    for first in range(0, len(ids), 500):
        some = Agent.id.in_(ids[first : first + 500])
        session.scalars(select(Agent).where(some).order_by(Agent.id).with_for_update()).all()
    results: list[Result] = []
    # A session forgets what nobody holds. What all lines have in common is read once.
    known: set[tuple[str | None, ...]] = set()
    held: list[object] = []
    made: list[tuple[str | None, Order]] = []
    for each in wanted:
        result, order = _one(session, licenses, each, now)
        results.append(result)
        if order is not None:
            made.append((each.agent, order))
            common = (order.policy, order.customer, order.site)
            if common not in known:
                known.add(common)
                held += session.identity_map.values()
        reached(1)
    for agent, order in made:
        record_issued(session, agent, order, now)
    return results


def _agents_at(session: Session, wanted: Sequence[Wanted]) -> set[str]:
    """The agents of the sites whose tills will share a license of this run: they learn of it, and so are locked as well."""
    policies = {each.wish.policy for each in wanted if each.agent is None and each.wish.policy is not None}
    shared = select(Policy.id).where(Policy.floating.is_not(None))
    shares = set(session.scalars(shared)) & policies
    sites = sorted({each.wish.site for each in wanted if each.wish.policy in shares and each.wish.site is not None})
    found: set[str] = set()
    for first in range(0, len(sites), 500):
        found.update(session.scalars(select(Agent.id).where(Agent.site_id.in_(sites[first : first + 500]))))
    return found


def _one(session: Session, licenses: Licenses, each: Wanted, now: int) -> tuple[Result, Order | None]:
    result = Result(each.line, each.wish.license_id, each.agent, BAD, each.problem)
    if each.problem is not None:
        return result, None
    try:
        with session.begin_nested():
            order = order_of(session, each.wish, now)
            if _is_there(session, each, order):
                return replace(result, outcome=UNCHANGED), None
            return replace(result, outcome=ISSUED, token=licenses.put(session, each.agent, order, now)), order
    except RegistryError as error:
        return replace(result, problem=str(error)), None


def _is_there(session: Session, each: Wanted, order: Order) -> bool:
    """Whether an earlier run has issued this license; raises Conflict if it is another one under the same id."""
    known = session.get(License, order.jti)
    if known is None:
        return False
    claims = json.loads(known.claims)
    same = (
        (known.agent_id, each.agent),
        (known.policy_id, order.policy),
        (known.customer_id, order.customer),
        (known.site_id, order.site),
        (claims["sub"], order.subject),
        (tuple(claims["features"]), order.features),
        (claims["metadata"], order.metadata),
        # A duration ends at another time when the run is repeated.
        (known.expires_at if each.dated else None, order.expires if each.dated else None),
        (claims["nbf"] if each.wish.not_before is not None else None, each.wish.not_before),
    )
    if all(one == other for one, other in same):
        return True
    raise Conflict(
        f"license {order.jti!r} exists with other terms: change it with 'license-server licenses renew', 'upgrade' or "
        "'transfer', or choose another id"
    )
