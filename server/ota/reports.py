"""Notes what agents report of their directives, and answers them (`contracts.contact.updates`).

A contact has two halves. Between them a rollout may order something, which the answer then has already.
"""

from dataclasses import dataclass

import msgspec
from msgspec import UNSET
from sqlalchemy.orm import Session

from common.statetable import UnknownTransition
from contracts.contact.updates import Outcome, UpdatesRequest
from server.keys.keyring import Keyring
from server.registry import events
from server.registry.later import Records
from server.registry.models.updates import UpdateDirective

from .directive_states import DIRECTIVE_STATES, EVENT_OF, OPEN, Event, State
from .directives import all_paused, content_of, counting, directives_of, step_on, updating

_TOLD = {
    State.PROVED: "ok",
    State.INSTALLED: "ok",
    State.ROLLED_BACK: "failed",
    State.REFUSED: "refused",
    State.LOCKED: "alert",
}
"""The outcomes that audit and feed have."""


@dataclass(frozen=True, slots=True)
class Given:
    """What an agent is answered, as in `contracts.contact.updates.UpdatesReply`."""

    directive: str | None
    acknowledged: tuple[int, ...]
    paused: bool


class Directives:
    """Answers agents. Works in the transaction of the session that it is given.

    Args:
        keyring: signs directives.
    """

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    def note(
        self, session: Session, agent_id: str, asked: UpdatesRequest, now: int, records: Records
    ) -> tuple[UpdateDirective, ...]:
        """Notes what an agent reports, and returns the directives of which it reports something new.

        Args:
            session: of a writing transaction that has locked the agent.
            agent_id: the agent.
            asked: its request.
            now: seconds since 1970 UTC.
            records: for what the caller writes into the audit log last.
        """
        state = updating(session, agent_id)
        state.running = msgspec.json.encode(asked.running).decode()
        state.reported_at, state.known = now, max(state.known, asked.directive)
        if asked.hardware is not UNSET:
            state.hardware = asked.hardware
        changed = [row for each in asked.outcomes if (row := _note(session, agent_id, each, now, records)) is not None]
        running = {(each.product, each.build_id, each.version) for each in asked.running}
        for row in session.scalars(directives_of(agent_id).where(UpdateDirective.state.in_((*OPEN, State.INSTALLED)))):
            if row.withdraws is None and (row.product, row.build_id, row.version) in running:
                _happens(session, row, Event.RUN, "", now, records)
                changed.append(row)
            if row.state in OPEN and row.not_after <= now:
                step_on(row, Event.END, "", now)
        return tuple(dict.fromkeys(changed))

    def answer(self, session: Session, agent_id: str, asked: UpdatesRequest, now: int, records: Records) -> Given:
        """Returns what an agent is ordered to do. Takes what `note` takes, after it.

        Raises:
            ClockNotTrusted: nothing must be signed now.
        """
        present = counting(session, agent_id)
        if present is not None and asked.directive >= present.number:
            _meet(present, asked.directive, now, records)
            present = counting(session, agent_id)
        paused = updating(session, agent_id).paused_at is not None or all_paused(session)
        signed = None if present is None else self._keyring.sign_directive(content_of(present))
        return Given(signed, tuple(each.number for each in asked.outcomes), paused)


def _meet(present: UpdateDirective, known: int, now: int, records: Records) -> None:
    """The agent knows a number that is not below that of the directive that counts."""
    if known > present.number:
        step_on(present, Event.SUPERSEDE, f"the agent knows directive {known}, which this registry has lost", now)
        ids = {"agent": present.agent_id, "number": present.number, "known": known}
        records.add(f"agent {present.agent_id}", "update.lost", "alert", now, **ids)
    elif present.withdraws is not None:
        step_on(present, Event.END, "the agent knows", now)
    elif present.state == State.ORDERED:
        step_on(present, Event.FETCH, "", now)


def _note(session: Session, agent_id: str, outcome: Outcome, now: int, records: Records) -> UpdateDirective | None:
    """The directive of which this says something new; None if it does not."""
    row = session.get(UpdateDirective, (agent_id, outcome.number))
    if row is None or row.withdraws is not None:
        return None
    before = row.state, row.detail
    _happens(session, row, EVENT_OF[outcome.state], outcome.detail, now, records)
    return None if before == (row.state, row.detail) else row


def _happens(session: Session, row: UpdateDirective, event: Event, detail: str, now: int, records: Records) -> None:
    """What an agent reports. What a directive in its state cannot do is passed over: reports may come late, or twice."""
    before = State(row.state)
    try:
        after = DIRECTIVE_STATES.step(before, event)
    except UnknownTransition:
        return
    row.state, row.updated_at = after.value, now
    if after is not before or detail:
        row.detail = detail  # what was said of an earlier state says nothing of this one
    if after is not before and after in _TOLD:
        ids: dict[str, str | int] = {"agent": row.agent_id, "number": row.number}
        name = f"update_{after.value.replace('-', '_')}"
        fields = {"target": row.path, "build": row.build_id}
        records.add(f"agent {row.agent_id}", f"agent.{name}", _TOLD[after], now, **ids, **fields)
        events.emit(session, f"agent.{name}", now, **ids)
