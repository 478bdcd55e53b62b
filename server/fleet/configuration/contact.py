"""Gives agents what their fleets set, as signed documents, and notes what became of it (`contracts.contact.configuration`).

The number of an agent's document is above every number that the agent has named and at least the time, so none comes twice,
also if the registry was restored from a backup. An agent whose fleets set nothing costs a look-up, and no row.
"""

from sqlalchemy.orm import Session

from contracts.contact.configuration import (
    Configuration,
    ConfigurationRequest,
    ConfigurationResult,
    Members,
    ResultState,
    digest_of,
    values_of,
)
from server.keys.keyring import Keyring
from server.registry import audit
from server.registry.models.fleets import DeviceConfiguration, FleetConfiguration

from .settings import configuring, members_of

SENT = "sent"
"""The state of a document that the agent has not answered."""
LAST_NUMBER = 2**53 - 1
OTHER_VALUES = "the values in force are not those that were sent"


class Configurations:
    """Answers agents. Works in the transaction of the session that it is given.

    Args:
        keyring: signs documents.
    """

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    def contact(self, session: Session, agent_id: str, asked: ConfigurationRequest, now: int) -> str | None:
        """Notes what an agent says of the document that it knows, and returns the one that counts if it is another.

        Args:
            session: of a writing transaction that has locked the agent.
            agent_id: the agent.
            asked: its request.
            now: seconds since 1970 UTC.

        Raises:
            ClockNotTrusted: nothing must be signed now.
        """
        counts = configuring(session, agent_id)
        row = session.get(DeviceConfiguration, agent_id)
        if asked.known >= LAST_NUMBER:
            return None  # no number is above it: only the machine's administrator can remove what it has kept
        if row is None:
            if counts is None and not asked.known:
                return None
            row = DeviceConfiguration(
                device_id=agent_id, document=0, fleet_id=None, number=0, state=SENT, detail="", sent_at=now
            )
            session.add(row)
        wanted = (None, 0) if counts is None else (counts.fleet_id, counts.number)
        if not row.document or (row.fleet_id, row.number) != wanted or asked.known > row.document:
            _renew(session, row, wanted, asked.known, now)
        if asked.known == row.document:
            if asked.result is not None:
                _note(session, row, counts, asked.result, now)
            return None
        return self._keyring.sign_configuration(_content(row, counts))


def _renew(session: Session, row: DeviceConfiguration, wanted: tuple[str | None, int], known: int, now: int) -> None:
    if known > row.document > 0:
        ids = {"agent": row.device_id, "number": row.document, "known": known}
        audit.record(session, f"agent {row.device_id}", "configuration.lost", "alert", now, **ids)
    row.document = max(row.document + 1, known + 1, now)
    row.fleet_id, row.number = wanted
    row.state, row.detail, row.sent_at, row.reported_at = SENT, "", now, None


def _note(
    session: Session, row: DeviceConfiguration, counts: FleetConfiguration | None, result: ConfigurationResult, now: int
) -> None:
    state, detail = result.state, "; ".join(result.details)
    if state is ResultState.APPLIED and result.digest != digest_of(values_of(_members(counts))):
        state, detail = ResultState.LIMITED, OTHER_VALUES
    if (row.state, row.detail) == (state.value, detail):
        return
    row.state, row.detail, row.reported_at = state.value, detail, now
    if state is not ResultState.APPLIED:
        ids = {"agent": row.device_id, "fleet": row.fleet_id, "number": row.number}
        audit.record(session, f"agent {row.device_id}", "agent.configuration", state.value, now, **ids)


def _members(counts: FleetConfiguration | None) -> Members:
    return Members() if counts is None else members_of(counts)


def _content(row: DeviceConfiguration, counts: FleetConfiguration | None) -> Configuration:
    return Configuration(
        number=row.document, agent_id=row.device_id, fleet=row.fleet_id, fleet_number=row.number, members=_members(counts)
    )
