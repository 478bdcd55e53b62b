"""Ends what has lasted too long: devices from which nothing was heard, and those whose group has waited for them long enough.

Its own time goes forward by at most an hour for each run, and back with the clock: a clock that is wrong for a minute stops no
rollout.
"""

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.registry.database import Database
from server.registry.dialect import passing_locked
from server.registry.later import Records
from server.registry.models.core import Setting
from server.registry.models.rollouts import Rollout, RolloutDevice, RolloutGroup

from . import queue, turns
from .rows import policy_of
from .states import Device, DeviceEvent, Group, State

BATCH = 200
"""Devices that one transaction steps on, all of one group: the locks of two groups would have to be in order."""
MAX_BATCHES = 500
MAX_STEP_S = 3600
TIME = "rollouts.time"
_SAID = {
    Device.ORDERED: (DeviceEvent.LEAVE_OUT, "it did not begin in time"),
    Device.UNDER_WAY: (DeviceEvent.FAIL, "nothing was heard of it after it had begun"),
    Device.INSTALLED: (DeviceEvent.FAIL, "nothing was heard of it after the installation: whether it runs is not known"),
}
_UNHEARD = "it has not asked for its order in time"


class Overdue:
    """The job.

    Args:
        database: the registry's.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def run(self, now: int) -> int:
        """Begins rollouts whose notice is over, and ends what is due; returns how many devices that concerned."""
        with self._database.write() as session:
            now = _certain(session, now)
            announced = session.scalars(select(Rollout.id).where(Rollout.state == State.ANNOUNCED)).all()
        for rollout_id in announced:
            with self._database.write() as session:
                rollout = session.get(Rollout, rollout_id)
                if rollout is not None:
                    queue.begin_due(session, rollout, now)
        done = 0
        for _ in range(MAX_BATCHES):
            with self._database.write() as session:
                records = Records()
                count = _batch(session, now, records) or _unheard(session, now, records)
                records.write(session)
            if not count:
                break
            done += count
        return done


def _certain(session: Session, now: int) -> int:
    row = session.get(Setting, TIME, with_for_update=True)
    if row is None:
        session.add(Setting(name=TIME, value=str(now)))
        return now
    row.value = str(min(now, int(row.value) + MAX_STEP_S))
    return int(row.value)


def _batch(session: Session, now: int, records: Records) -> int:
    first = session.scalars(
        select(RolloutDevice).where(RolloutDevice.deadline <= now).order_by(RolloutDevice.deadline).limit(1)
    ).first()
    if first is None:
        return 0
    same = RolloutDevice.rollout_id == first.rollout_id, RolloutDevice.group_number == first.group_number
    query = select(RolloutDevice).where(RolloutDevice.deadline <= now, *same).order_by(RolloutDevice.deadline).limit(BATCH)
    rollout = session.get(Rollout, first.rollout_id)
    assert rollout is not None
    count = 0
    for row in session.scalars(passing_locked(query).execution_options(populate_existing=True)).all():
        event, said = _SAID[Device(row.state)]
        count += turns.move(rollout, row, event, said, now, records)
    return count


def _unheard(session: Session, now: int, records: Records) -> int:
    """A batch of devices that have waited for too long, of one group."""
    query = (
        select(Rollout, RolloutGroup)
        .join(RolloutGroup, RolloutGroup.rollout_id == Rollout.id)
        .where(Rollout.state == State.RUNNING, RolloutGroup.state.in_((Group.RUNNING.value, Group.SUCCEEDED.value)))
        .where(RolloutGroup.waiting > 0)
        .order_by(Rollout.id, RolloutGroup.number)
    )
    for rollout, group in session.execute(query).all():
        if group.started_at is None or group.started_at + policy_of(rollout).wait > now:
            continue
        mine = RolloutDevice.rollout_id == rollout.id, RolloutDevice.group_number == group.number
        devices = select(RolloutDevice).where(*mine, RolloutDevice.state == Device.WAITING).limit(BATCH)
        count = 0
        for row in session.scalars(passing_locked(devices).execution_options(populate_existing=True)).all():
            count += turns.move(rollout, row, DeviceEvent.LEAVE_OUT, _UNHEARD, now, records)
        if count:
            return count
    return 0
