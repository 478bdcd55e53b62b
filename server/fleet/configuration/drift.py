"""Says which agents of a fleet do not have its configuration in force, and why."""

from dataclasses import dataclass

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from contracts.contact.configuration import ResultState
from server.base.errors import NotFound
from server.fleet.devices.registry import AGENT
from server.fleet.fleets.fleets import required
from server.fleet.fleets.membership import members
from server.registry.dialect import by_bytes
from server.registry.models.fleets import Device, DeviceConfiguration

from .contact import SENT

NEVER, BEHIND, OTHER = "never", "behind", "other-fleet"
"""States besides those of a document: the agent has never asked for one; was last sent an earlier number, or none; was last
sent what another fleet sets."""
STATES = (SENT, ResultState.APPLIED.value, ResultState.LIMITED.value, ResultState.REFUSED.value)


@dataclass(frozen=True, slots=True)
class Drifted:
    """An agent that has not confirmed that the configuration is in force. Times are seconds since 1970 UTC.

    Attributes:
        device_id: the agent.
        state: `never`, `behind`, `other-fleet`, `sent`, `limited` or `refused`.
        fleet_id: the fleet whose configuration it was last sent; None for none.
        number: of that configuration; 0 for none.
        detail: what was limited, or why it was refused.
        sent_at: when it was sent that; None if it never was.
        reported_at: when it answered; None if it did not.
    """

    device_id: str
    state: str
    fleet_id: str | None
    number: int
    detail: str
    sent_at: int | None
    reported_at: int | None


def drifted(session: Session, fleet_id: str, after: str, limit: int) -> list[Drifted]:
    """The agents of a fleet that do not have its present configuration in force as it says, by id.

    An agent that another fleet of a lower rank configures is among them, as `other-fleet`. Devices that are no agents are not.

    Args:
        session: of any transaction.
        fleet_id: the fleet.
        after: only ids behind it.
        limit: at most so many.

    Raises:
        NotFound: there is no such fleet, or it has no configuration.
    """
    fleet = required(session, fleet_id)
    if fleet.configuration is None:
        raise NotFound(
            f"fleet {fleet_id!r} has no configuration; give it one with 'license-server fleets configure {fleet_id}'"
        )
    row = DeviceConfiguration
    place = by_bytes(session, Device.id)
    query = (
        select(Device.id, row)
        .outerjoin(row, row.device_id == Device.id)
        .where(Device.kind == AGENT, Device.id.in_(members(session, fleet)), place > after)
        .where(
            or_(
                row.device_id.is_(None),
                row.fleet_id.is_distinct_from(fleet_id),
                row.number != fleet.configuration,
                row.state != ResultState.APPLIED.value,
            )
        )
        .order_by(place)
        .limit(limit)
    )
    return [_drifted(device_id, found, fleet_id, fleet.configuration) for device_id, found in session.execute(query)]


def _drifted(device_id: str, row: DeviceConfiguration | None, fleet_id: str, number: int) -> Drifted:
    if row is None:
        return Drifted(device_id, NEVER, None, 0, "", None, None)
    if row.fleet_id == fleet_id:
        state = row.state if row.number == number else BEHIND
    else:
        state = BEHIND if row.fleet_id is None else OTHER
    return Drifted(device_id, state, row.fleet_id, row.number, row.detail, row.sent_at, row.reported_at)


def counted(session: Session, fleet_id: str, number: int) -> dict[str, int]:
    """How many agents were last sent a configuration of a fleet, by their answers; each state of `STATES` is there."""
    row = DeviceConfiguration
    query = select(row.state, func.count()).where(row.fleet_id == fleet_id, row.number == number).group_by(row.state)
    return dict.fromkeys(STATES, 0) | {str(state): int(count) for state, count in session.execute(query)}
