"""Finds and makes the rows of rollouts, and puts the devices of a new one into groups."""

import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, bindparam, func, select
from sqlalchemy.orm import Session

from server.base.errors import Conflict, Invalid, NotFound
from server.fleet.devices.selection import parse, selecting
from server.fleet.fleets.membership import members
from server.ota.words import CANDIDATE, PACKAGE_ROLES
from server.registry.models.fleets import Device as DeviceRow
from server.registry.models.fleets import Fleet
from server.registry.models.rollouts import Rollout, RolloutDevice, RolloutGroup
from server.registry.models.updates import UpdatePackage

from . import filling
from .decisions import Counts
from .policy import Policy, Take, decoded, encoded, takes_of
from .states import COUNTER, OPEN, Device, Group, State

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
IS_OPEN = RolloutDevice.state.in_(bindparam("open", [each.value for each in OPEN], expanding=True, literal_execute=True))
"""The condition of the index of devices for which something is to come. PostgreSQL has to see its values to use the index."""
COUNTERS = ("waiting", "under_way", "proved", "failed", "left_out")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a rollout is made of.

    Attributes:
        rollout_id: its id, chosen by the operator.
        fleet_id: the fleet whose devices it updates.
        path: of the package in the repository.
        selection: which devices of the fleet; None for all.
        policy: how it goes on.
    """

    rollout_id: str
    fleet_id: str
    path: str
    selection: str | None
    policy: Policy


def create(session: Session, plan: Plan, by: str, now: int) -> Rollout:
    """Makes a rollout, with its devices in groups. It is a draft: no device is concerned.

    Args:
        session: of a writing transaction.
        plan: what it is made of.
        by: who makes it.
        now: seconds since 1970 UTC.

    Raises:
        NotFound: there is no such fleet or package.
        Conflict: there is a rollout with this id, the package is on trial, or no device is selected.
        Invalid: a selection, or the id, is malformed.
    """
    fleet = session.get(Fleet, plan.fleet_id)
    if fleet is None:
        raise NotFound(f"there is no fleet {plan.fleet_id!r}; 'license-server fleets list' lists them")
    package = published(session, plan.path, candidate=plan.policy.candidate)
    row = new_row(session, plan.rollout_id, plan.fleet_id, package.product, plan.policy, by, now)
    row.selection = plan.selection
    row.path, row.version, row.build_id = package.path, package.version, package.build_id
    session.add(row)
    session.flush()
    chosen: Select[Any] = select(DeviceRow.id).where(DeviceRow.id.in_(members(session, fleet)))
    if plan.selection is not None:
        chosen = chosen.where(DeviceRow.id.in_(selecting(session, parse(plan.selection))))
    fill(session, row, chosen, takes_of(plan.policy.groups), plan.policy, now)
    return row


def new_row(session: Session, rollout_id: str, fleet_id: str, product: str, policy: Policy, by: str, now: int) -> Rollout:
    """The row of a new rollout, not added yet. Raises Invalid, Conflict as `create`."""
    if not ID.fullmatch(rollout_id):
        raise Invalid(f"{rollout_id[:80]!r} is not an id for a rollout: it has 1 to 64 characters A-Z, a-z, 0-9, '.', '_', '-'")
    if session.get(Rollout, rollout_id) is not None:
        raise Conflict(f"there is a rollout {rollout_id!r} already; 'license-server rollouts list' lists them")
    return Rollout(
        id=rollout_id, fleet_id=fleet_id, selection=None, rolls_back=None, product=product, path="", version="", build_id="",
        policy=encoded(policy), state=State.DRAFT.value, detail="", created_by=by, created_at=now, started_at=None,
        ended_at=None, updated_at=now, revision=1,
    )  # fmt: skip


def published(session: Session, path: str, *, candidate: bool) -> UpdatePackage:
    """A package that devices may be ordered to install.

    Raises:
        NotFound: the repository has none of this path.
        Conflict: it is on trial, and the policy does not admit that.
    """
    package = session.get(UpdatePackage, path)
    if package is None or package.role not in PACKAGE_ROLES:
        raise NotFound(f"the repository has no package {path!r}; 'license-server ota packages' lists them")
    if package.role == CANDIDATE and not candidate:
        raise Conflict(f"{path} is a candidate: promote it, or let the policy of the rollout say 'candidate'")
    return package


def fill(session: Session, rollout: Rollout, chosen: Select[Any], takes: tuple[Take, ...], policy: Policy, now: int) -> None:
    """Puts devices into the groups of a rollout by one statement (`filling`). A group that would be empty is not made.

    Args:
        session: of a writing transaction.
        rollout: whose row is in the database.
        chosen: the ids of the devices, each once.
        takes: what each group takes; the last one takes the rest.
        policy: has the limits.
        now: seconds since 1970 UTC.

    Raises:
        Conflict: there are no devices.
    """
    total = session.scalar(select(func.count()).select_from(chosen.subquery())) or 0
    if total == 0:
        raise Conflict(f"rollout {rollout.id!r} would have no device: look at the fleet's members and at the selection")
    names = filling.fill(session, rollout.id, chosen, takes, total, now)
    columns = RolloutDevice.group_number, RolloutDevice.state
    found: dict[int, dict[str, int]] = {number: dict.fromkeys(COUNTERS, 0) for number in range(1, len(names) + 1)}
    counted = select(*columns, func.count()).where(RolloutDevice.rollout_id == rollout.id).group_by(*columns)
    for number, state, count in session.execute(counted):
        found[number][COUNTER[Device(state)]] += count
    for number, counters in found.items():
        session.add(
            RolloutGroup(
                rollout_id=rollout.id, number=number, name=names[number - 1], state=Group.WAITING.value,
                success_percent=policy.success_percent, failure_percent=policy.failure_percent, seconds=0,
                total=sum(counters.values()), started_at=None, ended_at=None, **counters,
            )
        )  # fmt: skip
    session.flush()


# Find


def required(session: Session, rollout_id: str, *, lock: bool = False) -> Rollout:
    """A rollout. Raises NotFound."""
    row = session.get(Rollout, rollout_id, with_for_update=lock or None, populate_existing=lock)
    if row is None:
        raise NotFound(f"there is no rollout {rollout_id[:64]!r}; 'license-server rollouts list' lists them")
    return row


def groups_of(session: Session, rollout_id: str, *, lock: bool = False) -> list[RolloutGroup]:
    """The groups of a rollout in their order, as the database has them now."""
    session.flush()
    query = select(RolloutGroup).where(RolloutGroup.rollout_id == rollout_id).order_by(RolloutGroup.number)
    query = query.with_for_update() if lock else query
    return list(session.scalars(query.execution_options(populate_existing=True)))


def counts_of(group: RolloutGroup, policy: Policy) -> Counts:
    """The counters of a group."""
    counters = {name: getattr(group, name) for name in COUNTERS}
    return Counts(
        group.number, Group(group.state), group.success_percent, group.failure_percent, policy.failure_count, group.total,
        **counters,
    )  # fmt: skip


def policy_of(rollout: Rollout) -> Policy:
    """The policy of a rollout."""
    return decoded(rollout.policy)
