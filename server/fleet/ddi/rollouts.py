"""The rollouts as DDI asks them: who is in one, what it orders, and whether the device may begin now."""

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from server.fleet.rollouts import queue
from server.fleet.rollouts.policy import frozen_at, window_of
from server.fleet.rollouts.rows import policy_of
from server.fleet.rollouts.states import LIVE, OPEN, Device, DeviceEvent, State
from server.registry.later import Records
from server.registry.models.fleets import Device as DeviceRow
from server.registry.models.rollouts import Rollout, RolloutDevice

from .queue import Order, Report, Standing
from .windows import is_open

_EVENTS = {
    Report.INSTALLED: DeviceEvent.INSTALL,
    Report.PROVED: DeviceEvent.PROVE,
    Report.FAILED: DeviceEvent.FAIL,
    Report.REFUSED: DeviceEvent.REFUSE,
    Report.STOPPED: DeviceEvent.LEAVE_OUT,
}
_ENDED = (State.STOPPED, State.ROLLED_BACK)
_DONE = (Device.INSTALLED, Device.UNDER_WAY)


class RolloutQueue:
    """The rollouts of the registry."""

    def pending(self, session: Session, device_id: str) -> bool:
        """As `Queue.pending`: the device is in a rollout that has begun, or there is one that it may belong to."""
        if queue.places(session, device_id):
            return True
        there = exists().where(RolloutDevice.rollout_id == Rollout.id, RolloutDevice.device_id == device_id)
        live = select(Rollout.id).where(Rollout.state.in_([each.value for each in LIVE]), ~there)
        return session.scalar(live.limit(1)) is not None

    def open_for(self, session: Session, device_id: str, now: int, records: Records) -> Order | None:
        """As `Queue.open_for`."""
        row = queue.open_for(session, device_id, now, records)
        rollout = None if row is None else session.get(Rollout, row.rollout_id)
        package = None if row is None else queue.target_for(session, row)
        if row is None or rollout is None or package is None:
            return None
        return Order(rollout.id, rollout.fleet_id, package.path, self._may_begin(session, rollout, device_id, now))

    def standing(self, session: Session, rollout_id: str, device_id: str, now: int) -> Standing:
        """As `Queue.standing`. What the device has installed is wanted, whatever became of the rollout."""
        rollout, row = session.get(Rollout, rollout_id), session.get(RolloutDevice, (rollout_id, device_id))
        if rollout is None or row is None:
            return Standing(wanted=False, may_begin=False)
        wanted = row.state in _DONE or (row.state in OPEN and rollout.state not in _ENDED)
        return Standing(wanted, self._may_begin(session, rollout, device_id, now))

    @staticmethod
    def _may_begin(session: Session, rollout: Rollout, device_id: str, now: int) -> bool:
        device = session.get(DeviceRow, device_id)
        policy = policy_of(rollout)
        if rollout.state == State.PAUSED or frozen_at(policy, now):
            return False
        return is_open(window_of(policy, None if device is None else device.zone), now)

    def report(self, session: Session, rollout_id: str, device_id: str, what: Report, detail: str, now: int) -> None:
        """As `Queue.report`. What cannot happen to the device any more is no news to the rollout."""
        queue.report(session, rollout_id, device_id, _EVENTS[what], detail, now)
