"""Decides what a device is shown at its polls, makes actions from rollouts' orders, and steps them by what devices report."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from common.statetable import UnknownTransition
from server.base.errors import Conflict, NotFound
from server.registry.database import next_number
from server.registry.later import Records
from server.registry.models.ddi import DdiAction, DdiDevice, DdiMessage
from server.registry.models.fleets import Fleet
from server.registry.models.updates import UpdatePackage

from . import attributes, digests
from .action_states import ACTION_STATES, BEGUN, OPEN, SHOWN, Event, State
from .feedback import Answer, ConfigData, Confirmation, Execution, Feedback, Finished
from .policy import first_fleet, policy_of
from .queue import Order, Queue, Report, Standing

COUNTER = "ddi_action"
"""Of the actions' numbers."""
EPOCH = 1_700_000_000
"""Numbers grow with the time even if a restored backup lost some; less this, they fit into clients' 32 bits until 2091."""
MAX_ACTIONS = 20
"""Of a device: older ones are removed with what it has said of them. The rollout's own row stays."""
MAX_MESSAGES = 50
"""Of an action: older ones are removed."""
CONFIGURE_AGAIN_S = 86_400
"""How old a device's attributes may be before it is asked for them again."""
KINDS = frozenset({"swu", "rauc"})
"""The kinds of packages that clients of DDI install."""
_REPORTS = {
    State.INSTALLED: Report.INSTALLED,
    State.PROVED: Report.PROVED,
    State.FAILED: Report.FAILED,
    State.CANCELED: Report.STOPPED,
}


class Gone(Conflict):
    """The action has ended, or does not admit this any more."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a device is shown at a poll.

    Attributes:
        poll_s: when it is to come again, in seconds.
        link: deploymentBase, confirmationBase or cancelAction; empty for none of them.
        number: of the action that the link is for.
        installed: the number of the last action that was installed; None if there is none.
        configure: whether it is to report its attributes.
    """

    poll_s: int
    link: str = ""
    number: int = 0
    installed: int | None = None
    configure: bool = False


class Actions:
    """The actions of all devices. Every method works in the transaction of the session that it is given.

    Args:
        queue: the rollouts.
        poll_s: how often devices ask, where their fleet's policy does not say so.
    """

    def __init__(self, queue: Queue, poll_s: int) -> None:
        self._queue = queue
        self._poll_s = poll_s

    # What a device is shown

    def must_settle(self, session: Session, device_id: str, now: int) -> bool:
        """Whether `settle` has something to do before a device can be answered. Reads only: most polls end with `shown`."""
        action = self.present(session, device_id)
        if action is None:
            return self._queue.pending(session, device_id)
        return action.state not in (State.CANCELING, State.UNSTOPPABLE) and not self._standing(session, action, now).wanted

    def shown(self, session: Session, device_id: str, now: int) -> Shown:
        """What a device is shown as things are. Reads only."""
        device = _device(session, device_id)
        action = self.present(session, device_id)
        stale = device.configured_at is None or now - device.configured_at >= CONFIGURE_AGAIN_S
        configure = stale or (action is not None and action.state == State.INSTALLED)
        last = session.scalar(
            select(func.max(DdiAction.number)).where(
                DdiAction.device_id == device_id, DdiAction.state.in_((State.INSTALLED, State.PROVED))
            )
        )
        poll_s = policy_of(first_fleet(session, device_id)).poll_s or self._poll_s
        link = "" if action is None else self._link(session, action, now)
        return Shown(poll_s, link, action.number if action is not None and link else 0, last, configure)

    def _standing(self, session: Session, action: DdiAction, now: int) -> Standing:
        return self._queue.standing(session, action.rollout_id, action.device_id, now)

    def _link(self, session: Session, action: DdiAction, now: int) -> str:
        if action.state == State.CANCELING:
            return "cancelAction"
        if action.state not in SHOWN or (action.state not in BEGUN and not self._standing(session, action, now).may_begin):
            return ""
        return "confirmationBase" if action.confirmed is None else "deploymentBase"

    @staticmethod
    def present(session: Session, device_id: str, *, lock: bool = False) -> DdiAction | None:
        """The device's action that has not ended; None if there is none."""
        query = select(DdiAction).where(DdiAction.device_id == device_id, DdiAction.state.in_(OPEN)).order_by(DdiAction.number)
        return session.scalars(query.with_for_update() if lock else query).first()

    # What rollouts order and take back

    def settle(self, session: Session, device_id: str, now: int) -> UpdatePackage | None:
        """Takes a device's action back if its rollout does not want it any more, and makes one of what rollouts have for it.

        Returns the package whose digests have to be computed first (`digests.compute`); None if none has to.
        """
        device = _device(session, device_id, lock=True)
        action = self.present(session, device_id, lock=True)
        if action is not None and not self._standing(session, action, now).wanted:
            self._step(session, action, Event.WITHDRAW, "the rollout took it back", now)
            action = self.present(session, device_id)
        if action is not None:
            return None
        records = Records()
        order = self._queue.open_for(session, device_id, now, records)
        missing = None if order is None or not order.may_begin else self._offer(session, device, order, now)
        records.write(session)
        return missing

    def _offer(self, session: Session, device: DdiDevice, order: Order, now: int) -> UpdatePackage | None:
        """Makes an action; returns the package instead, if its digests are not known."""
        device_id = device.device_id
        package = session.get(UpdatePackage, order.path)
        if package is None or package.kind not in KINDS:
            why = f"{order.path} is of a kind that clients of DDI do not install" if package else f"{order.path} is gone"
            self._queue.report(session, order.rollout_id, device_id, Report.REFUSED, why, now)
            return None
        known = digests.known(session, package.sha256)
        if known is None:
            return package
        self._remove_oldest(session, device_id)
        agreed = device.auto_confirm is not None or not policy_of(session.get(Fleet, order.fleet_id)).confirm
        session.add(
            DdiAction(
                number=next_number(session, COUNTER, now - EPOCH), device_id=device_id, rollout_id=order.rollout_id,
                fleet_id=order.fleet_id, product=package.product, path=package.path, sha256=package.sha256, sha1=known.sha1,
                md5=known.md5, length=package.length, version=package.version, build_id=package.build_id,
                state=State.OFFERED.value, confirmed=now if agreed else None, detail="", created_at=now, updated_at=now,
            )
        )  # fmt: skip
        return None

    @staticmethod
    def _remove_oldest(session: Session, device_id: str) -> None:
        numbers = select(DdiAction.number).where(DdiAction.device_id == device_id).order_by(DdiAction.number.desc())
        for number in session.scalars(numbers.offset(MAX_ACTIONS - 1)).all():
            session.execute(delete(DdiMessage).where(DdiMessage.action == number))
            session.execute(delete(DdiAction).where(DdiAction.number == number))

    # What a device asks for and reports

    def fetched(self, session: Session, device_id: str, number: int, now: int) -> DdiAction:
        """An action that the device may carry out. Raises as `_named`, and Gone if it may not at this moment."""
        action = _named(session, device_id, number)
        if action.state not in SHOWN or action.confirmed is None:
            raise Gone(f"action {number} is not to be carried out any more")
        if action.state == State.OFFERED:
            self._step(session, action, Event.FETCH, "", now)
        return action

    def report(self, session: Session, device_id: str, number: int, said: Feedback, now: int) -> None:
        """Notes what a device reports of an action.

        Raises:
            NotFound: the device has no such action.
            Gone: the action has ended: what is sent again changes nothing.
            Malformed: it says that it has closed the action, and not how that ended.
        """
        action = _named(session, device_id, number)
        if not said.names(number):
            raise NotFound(f"the feedback is about another action than {number}")
        if action.state not in SHOWN and action.state != State.CANCELING and action.state != State.INSTALLED:
            raise Gone(f"action {number} has ended")
        detail = " / ".join(said.messages()[-3:])
        self._note(session, number, said.messages(), now)
        event = _event_of(said)
        if event is not None:
            if action.confirmed is None:
                raise Gone(f"action {number} was not confirmed yet")
            self._step(session, action, event, detail, now)

    def canceling(self, session: Session, device_id: str, number: int) -> DdiAction:
        """An action that the device is to stop. Raises as `_named`, and Gone if it is not to."""
        action = _named(session, device_id, number)
        if action.state != State.CANCELING:
            raise Gone(f"action {number} is not to be stopped")
        return action

    def stopped(self, session: Session, device_id: str, number: int, said: Feedback, now: int) -> None:
        """Notes what a device says about stopping an action. Raises as `report`."""
        action = self.canceling(session, device_id, number)
        if not said.names(number):
            raise NotFound(f"the feedback is about another action than {number}")
        self._note(session, number, said.messages(), now)
        refuses = said.execution is Execution.REJECTED or said.finished is Finished.FAILURE
        if refuses:
            self._step(session, action, Event.GO_ON, "the device goes on", now)
        elif said.execution in (Execution.CLOSED, Execution.CANCELED):
            self._step(session, action, Event.STOP, "the device has stopped", now)

    def to_confirm(self, session: Session, device_id: str, number: int) -> DdiAction:
        """An action that waits for the device's confirmation. Raises as `_named`, and Gone if it does not."""
        action = _named(session, device_id, number)
        if action.state not in SHOWN or action.confirmed is not None:
            raise Gone(f"action {number} does not wait for a confirmation")
        return action

    def confirm(self, session: Session, device_id: str, number: int, said: Confirmation, now: int) -> None:
        """Notes whether a device agrees to a deployment. One that is denied waits on. Raises as `to_confirm`."""
        action = self.to_confirm(session, device_id, number)
        self._note(session, number, [f"{said.confirmation.value}", *said.messages()], now)
        if said.confirmation is Answer.CONFIRMED:
            action.confirmed, action.updated_at = now, now

    def auto_confirm(self, session: Session, device_id: str, who: dict[str, str | None] | None, now: int) -> None:
        """Sets or ends that a device confirms each deployment at once, also the one that waits for it."""
        device = _device(session, device_id, lock=True)
        device.auto_confirm, device.updated_at = None if who is None else json.dumps(who), now
        action = self.present(session, device_id, lock=True)
        if who is not None and action is not None and action.confirmed is None:
            action.confirmed, action.updated_at = now, now

    def configure(self, session: Session, device_id: str, said: ConfigData, now: int) -> None:
        """Keeps a device's attributes. If they name the version of its action, the action is proved.

        Raises:
            Invalid: an attribute is out of bounds.
        """
        given = attributes.texts_of(said)
        device = _device(session, device_id, lock=True)
        kept = attributes.keep(session, device_id, said.mode, given, now)
        device.configured_at, device.updated_at = now, now
        builds: dict[str, str] = {}
        action = self.present(session, device_id, lock=True)
        if action is not None:
            name = policy_of(session.get(Fleet, action.fleet_id)).attribute_of(action.product)
            # Only what this request names: what is kept may be older than the restart.
            named = kept.get(name) if name in given and said.mode.value != "remove" else None
            if attributes.is_version(named, action.version):
                builds[action.product] = action.build_id
                if action.state not in (State.OFFERED, State.FETCHED):
                    self._step(session, action, Event.PROVE, f"the device names {name} {action.version}", now)
        versions = attributes.versions_in(policy_of(first_fleet(session, device_id)), kept)
        attributes.note_versions(session, device_id, versions, builds, now)

    def messages(self, session: Session, number: int, most: int) -> list[str]:
        """What a device has said of an action, the newest first."""
        query = select(DdiMessage.text).where(DdiMessage.action == number).order_by(DdiMessage.seq.desc())
        return list(session.scalars(query.limit(min(most, MAX_MESSAGES))))

    # Inside

    def _step(self, session: Session, action: DdiAction, event: Event, detail: str, now: int) -> None:
        before = State(action.state)
        try:
            after = ACTION_STATES.step(before, event)
        except UnknownTransition:
            raise Gone(f"action {action.number} is {before.value}: that changes nothing any more") from None
        if after == before:
            return
        action.state, action.updated_at = after.value, now
        if detail:
            action.detail = detail[:2000]
        session.flush()
        what = _REPORTS.get(after)
        if what is not None:
            self._queue.report(session, action.rollout_id, action.device_id, what, detail, now)

    @staticmethod
    def _note(session: Session, number: int, texts: Sequence[str], now: int) -> None:
        last = session.scalar(select(func.max(DdiMessage.seq)).where(DdiMessage.action == number)) or 0
        for offset, text in enumerate(texts[-MAX_MESSAGES:], start=1):
            session.add(DdiMessage(action=number, seq=last + offset, at=now, text=text))
        newest = last + len(texts[-MAX_MESSAGES:])
        session.execute(delete(DdiMessage).where(DdiMessage.action == number, DdiMessage.seq <= newest - MAX_MESSAGES))


def _event_of(said: Feedback) -> Event | None:
    """What feedback on a deployment does to its action; None for what is noted only."""
    if said.execution is Execution.CLOSED:
        return {Finished.SUCCESS: Event.INSTALL, Finished.FAILURE: Event.FAIL}.get(said.finished, Event.FAIL)
    if said.execution is Execution.CANCELED:
        return Event.FAIL
    return None if said.execution is Execution.REJECTED else Event.PROGRESS


def _device(session: Session, device_id: str, *, lock: bool = False) -> DdiDevice:
    found = session.get(DdiDevice, device_id, with_for_update=lock, populate_existing=lock)
    if found is None:
        raise NotFound(f"there is no device {device_id!r}")
    return found


def _named(session: Session, device_id: str, number: int) -> DdiAction:
    """The device's action of that number, locked if the transaction writes. Raises NotFound."""
    action = session.get(DdiAction, number, with_for_update=True)
    if action is None or action.device_id != device_id:
        raise NotFound(f"the device has no action {number}")
    return action
