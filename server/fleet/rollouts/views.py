"""Reads rollouts for people: lists, counters, the reasons of failures, and figures for the metrics."""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from server.registry.models.rollouts import Rollout, RolloutDevice, RolloutGroup

from .states import LIVE, Device

MAX_REASONS = 20
_TOLD = (Device.FAILED, Device.REFUSED, Device.LEFT_OUT)


@dataclass(frozen=True, slots=True)
class Reason:
    """Why devices are in a state, and how many of them."""

    state: str
    text: str
    devices: int
    example: str


@dataclass(frozen=True, slots=True)
class Figures:
    """What the metrics say of all rollouts.

    Attributes:
        proved: devices that have proved an update, in all rollouts.
        seconds: the sum of the times from their orders to their proofs.
        failed: devices that have failed, in the rollouts that are not at their end.
        done: devices that have failed or proved the update, in those.
    """

    proved: int
    seconds: int
    failed: int
    done: int

    @property
    def error_rate(self) -> float:
        """The share of failures, 0 to 1; 0 while nothing has ended."""
        return self.failed / self.done if self.done else 0.0


def listed(session: Session, after: str, limit: int, fleet_id: str | None = None, state: str | None = None) -> list[Rollout]:
    """Rollouts by id, behind one."""
    query = select(Rollout).where(Rollout.id > after).order_by(Rollout.id).limit(limit)
    query = query if fleet_id is None else query.where(Rollout.fleet_id == fleet_id)
    return list(session.scalars(query if state is None else query.where(Rollout.state == state)))


def devices(
    session: Session, rollout_id: str, after: str, limit: int, state: str | None = None, group: int | None = None
) -> list[RolloutDevice]:
    """Devices of a rollout by id, behind one."""
    query = select(RolloutDevice).where(RolloutDevice.rollout_id == rollout_id, RolloutDevice.device_id > after)
    query = query if state is None else query.where(RolloutDevice.state == state)
    query = query if group is None else query.where(RolloutDevice.group_number == group)
    return list(session.scalars(query.order_by(RolloutDevice.device_id).limit(limit)))


def reasons(session: Session, rollout_id: str) -> list[Reason]:
    """Why devices failed, refused or were left out: the most frequent reasons first, each with a device as an example."""
    columns = RolloutDevice.state, RolloutDevice.detail
    count, example = func.count(), func.min(RolloutDevice.device_id)
    groups = select(RolloutGroup.number).where(RolloutGroup.rollout_id == rollout_id)
    query = (
        select(*columns, count, example)
        .where(RolloutDevice.rollout_id == rollout_id, RolloutDevice.group_number.in_(groups))
        .where(RolloutDevice.state.in_([each.value for each in _TOLD]))
        .group_by(*columns)
        .order_by(count.desc(), example)
        .limit(MAX_REASONS)
    )
    return [Reason(*row) for row in session.execute(query)]


def figures(session: Session) -> Figures:
    """What the metrics say. Reads the groups, of which there are a few in each rollout."""
    live = Rollout.state.in_([each.value for each in LIVE])
    proved, seconds = session.execute(select(func.sum(RolloutGroup.proved), func.sum(RolloutGroup.seconds))).one()
    query = select(func.sum(RolloutGroup.failed), func.sum(RolloutGroup.failed + RolloutGroup.proved))
    failed, done = session.execute(query.join(Rollout, Rollout.id == RolloutGroup.rollout_id).where(live)).one()
    return Figures(int(proved or 0), int(seconds or 0), int(failed or 0), int(done or 0))
