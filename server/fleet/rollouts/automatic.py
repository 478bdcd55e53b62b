"""Rolls new releases out to fleets without a person, where two people have wanted that for a product.

A release is looked for when something was published, and by the timed job; two processes that look at once start it once. What
a policy says here was approved as a whole, so the fleet's own policy does not count. A rollout of this kind that was stopped or
taken back halts the fleet's product until two people want it again.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, exists, func, not_, or_, select
from sqlalchemy.orm import Session

from server.base.errors import Conflict, Invalid, NotFound
from server.fleet.devices.selection import parse
from server.ota.words import RELEASES
from server.registry import audit, events
from server.registry.database import Database
from server.registry.models.fleets import Fleet
from server.registry.models.rollouts import AutomaticRollout, Rollout
from server.registry.models.updates import UpdatePackage
from updatetrust.version import Version

from . import lifecycle
from .policy import Policy, decoded, encoded
from .rows import ID, Plan
from .states import State

BY = "automatic rollout"
"""Who made such a rollout. No account has a name with a space."""
ON, HALTED = "on", "halted"
MAX_PRODUCTS = 32
"""Products of one fleet."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What two people want.

    Attributes:
        fleet_id: whose devices are updated.
        product: whose releases are meant.
        selection: which devices of the fleet; None for all.
        policy: of each rollout.
    """

    fleet_id: str
    product: str
    selection: str | None
    policy: Policy


def require_possible(session: Session, wish: Wish) -> None:
    """Raises NotFound without the fleet, Invalid if the selection or the policy cannot be that of such rollouts."""
    _require_fleet(session, wish.fleet_id)
    if wish.policy.candidate:
        raise Invalid("automatic rollouts are of releases: the key of a build machine publishes candidates, and no person asks")
    if wish.selection is not None:
        parse(wish.selection)
    others = select(AutomaticRollout.product).where(AutomaticRollout.fleet_id == wish.fleet_id)
    known = set(session.scalars(others))
    if wish.product not in known and len(known) >= MAX_PRODUCTS:
        raise Conflict(f"fleet {wish.fleet_id!r} has automatic rollouts of {len(known)} products, which is the limit")


def turn_on(session: Session, wish: Wish, by: str, now: int) -> AutomaticRollout:
    """Has releases of a product that are published from now on rolled out; a fleet's product that was halted goes on.

    Args:
        session: of a writing transaction.
        wish: what is wanted.
        by: who wants it.
        now: seconds since 1970 UTC.

    Raises:
        NotFound, Invalid, Conflict: as `require_possible`.
    """
    require_possible(session, wish)
    floor = max((Version.parse(each.version) for each in _releases(session, wish.product)), default=None)
    row = session.get(AutomaticRollout, (wish.fleet_id, wish.product), with_for_update=True)
    latest = _latest(session, wish)
    if row is None:
        row = AutomaticRollout(fleet_id=wish.fleet_id, product=wish.product)
        session.add(row)
    row.selection, row.policy = wish.selection, encoded(wish.policy)
    row.floor, row.newest, row.state, row.detail = "" if floor is None else str(floor), "", ON, ""
    row.set_by, row.set_at, row.updated_at = by, max(now, latest + 1), now
    session.flush()
    audit.record(session, audit.ADMIN, "rollout.automatic_on", "ok", now, fleet=row.fleet_id, product=row.product)
    return row


def turn_off(session: Session, fleet_id: str, product: str, now: int) -> AutomaticRollout:
    """Ends it for a product: rollouts that exist go on. Raises NotFound."""
    row = session.get(AutomaticRollout, (fleet_id, product), with_for_update=True)
    if row is None:
        raise NotFound(
            f"fleet {fleet_id!r} has no automatic rollouts of {product!r}; 'license-server rollouts automatic list' lists them"
        )
    session.delete(row)
    session.flush()
    audit.record(session, audit.ADMIN, "rollout.automatic_off", "ok", now, fleet=fleet_id, product=product)
    return row


def listed(session: Session, fleet_id: str | None = None) -> Sequence[AutomaticRollout]:
    """All of them, or those of a fleet, by fleet and product."""
    rows = select(AutomaticRollout).order_by(AutomaticRollout.fleet_id, AutomaticRollout.product)
    return session.scalars(rows if fleet_id is None else rows.where(AutomaticRollout.fleet_id == fleet_id)).all()


def any_on(database: Database) -> bool:
    """Whether there is anything to look for."""
    with database.read() as session:
        return bool(session.scalar(select(exists().where(AutomaticRollout.state == ON))))


def start_new(database: Database, now: int) -> list[str]:
    """Starts a rollout of each new release; each fleet and product has a transaction of its own.

    Args:
        database: the registry's.
        now: seconds since 1970 UTC.

    Returns:
        The ids of the rollouts.
    """
    with database.read() as session:
        keys = [(row.fleet_id, row.product) for row in listed(session) if row.state == ON]
    started: list[str] = []
    for fleet_id, product in keys:
        with database.write() as session:
            started += _start_new(session, fleet_id, product, now)
    return started


def _start_new(session: Session, fleet_id: str, product: str, now: int) -> list[str]:
    row = session.get(AutomaticRollout, (fleet_id, product), with_for_update=True)
    if row is None or row.state != ON:
        return []
    stopped = session.scalar(
        select(Rollout.id).where(*_of(row), Rollout.created_by == BY, Rollout.created_at >= row.set_at, _ended_badly()).limit(1)
    )
    if stopped is not None:
        row.state, row.detail, row.updated_at = HALTED, f"rollout {stopped} was stopped or taken back", now
        events.emit(session, "rollout.automatic_halted", now, rollout=stopped, fleet=fleet_id, product=product)
        audit.record(session, audit.ADMIN, "rollout.automatic_halted", "alert", now, fleet=fleet_id, rollout=stopped)
        return []
    started = []
    for package in _new(session, row):
        made = _by_hand(session, row, package)
        if made is not None:
            row.detail = f"{package.path} has rollout {made.id}, which {made.created_by} made ({made.state})"
            row.updated_at = now
            continue
        plan = Plan(_id_for(session, row, package), fleet_id, package.path, row.selection, decoded(row.policy))
        try:
            with session.begin_nested():
                rollout = lifecycle.start_automatically(session, plan, BY, now)
        except (Conflict, Invalid) as problem:
            row.detail, row.updated_at = str(problem), now
            continue
        rollout.created_at = max(now, row.set_at)  # the clock may have been set back since: it is of this wish all the same
        started.append(plan.rollout_id)
        row.newest, row.detail, row.updated_at = package.version, "", now
    return started


def _new(session: Session, row: AutomaticRollout) -> list[UpdatePackage]:
    """The releases of the highest version, if that is new: one for each kind of hardware, those left that have no rollout."""
    releases = _releases(session, row.product)
    highest = max((Version.parse(each.version) for each in releases), default=None)
    if highest is None or (row.floor and not Version.parse(row.floor) < highest):
        return []
    if row.newest and highest < Version.parse(row.newest):
        return []  # what was rolled out was taken back by the vendor
    builds = set(session.scalars(select(Rollout.build_id).where(*_of(row), Rollout.created_by == BY)))
    return [each for each in releases if Version.parse(each.version) == highest and each.build_id not in builds]


def _of(whose: AutomaticRollout | Wish) -> tuple[ColumnElement[bool], ...]:
    """The condition of rollouts of this fleet and product that bring an update."""
    return Rollout.fleet_id == whose.fleet_id, Rollout.product == whose.product, Rollout.rolls_back.is_(None)


def _ended_badly() -> ColumnElement[bool]:
    """The condition of rollouts that were started and then stopped or taken back, also while their devices are on the way."""
    taken_back = Rollout.id.in_(select(Rollout.rolls_back).where(Rollout.rolls_back.is_not(None)))
    return and_(Rollout.started_at.is_not(None), or_(Rollout.state.in_([State.STOPPED, State.ROLLED_BACK]), taken_back))


def _by_hand(session: Session, row: AutomaticRollout, package: UpdatePackage) -> Rollout | None:
    """A rollout of the build that somebody has made for the same devices, or that ended badly for some of them.

    One for others of the fleet does not count, or a candidate that was tried by a few would never reach the rest; nor does a
    draft that was given up.
    """
    same = or_(Rollout.selection.is_(None), Rollout.selection == row.selection)
    given_up = and_(Rollout.state == State.STOPPED, Rollout.started_at.is_(None))
    of_build = (*_of(row), Rollout.build_id == package.build_id, Rollout.created_by != BY)
    found = select(Rollout).where(*of_build, or_(and_(same, not_(given_up)), _ended_badly()))
    return session.scalars(found.order_by(Rollout.id).limit(1)).first()


def _latest(session: Session, wish: Wish) -> int:
    """When the last rollout of this kind was made, by the clock of that time; -1 without one."""
    found = session.scalar(select(func.max(Rollout.created_at)).where(*_of(wish), Rollout.created_by == BY))
    return -1 if found is None else found


def _releases(session: Session, product: str) -> Sequence[UpdatePackage]:
    rows = select(UpdatePackage).where(UpdatePackage.product == product, UpdatePackage.role == RELEASES)
    return session.scalars(rows.order_by(UpdatePackage.path)).all()


def _id_for(session: Session, row: AutomaticRollout, package: UpdatePackage) -> str:
    """An id that says what it is, or, where there is such a rollout or it would not be an id, one of its digest."""
    plain = f"{row.fleet_id}-{package.build_id}"
    if ID.fullmatch(plain) and session.get(Rollout, plain) is None:
        return plain
    return "automatic-" + hashlib.sha256(f"{row.fleet_id}\0{package.build_id}\0{row.set_at}".encode()).hexdigest()[:16]


def _require_fleet(session: Session, fleet_id: str) -> None:
    if session.get(Fleet, fleet_id) is None:
        raise NotFound(f"there is no fleet {fleet_id!r}; 'license-server fleets list' lists them")
