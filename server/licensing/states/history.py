"""Writes and reads the history of a license: each change with its time, the state after it, and who made it.

It outlives the license. It has ids and times only, besides the reason that an operator gave.
"""

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from server.base.errors import NotFound
from server.registry import events
from server.registry.database import OPERATOR
from server.registry.models.core import License
from server.registry.models.licensing import LicenseChange

from . import changes
from .license_states import Event, state_of

ISSUED = "issued"
"""The first change of every license; the others are events of the table."""


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """A change of a license.

    Attributes:
        number: 1 is the first.
        at: seconds since 1970 UTC.
        event: what happened.
        state: of the license after that.
        fields: ids and times that the change was about, and who made it.
    """

    number: int
    at: int
    event: str
    state: str
    fields: dict[str, Any]


def changed(session: Session, row: License, event: Event | str, now: int, **ids: str | int | None) -> None:
    """Notes a change of a license that the caller has locked and changed. The audit is the caller's.

    The history has it, the row's revision counts it, the feed of events has it, and the agent learns of it at its next contact.

    Args:
        session: of a writing transaction.
        row: the license, as it is after the change.
        event: what happened to it.
        now: seconds since 1970 UTC.
        ids: what it was about; what is None is left out.
    """
    about = {name: value for name, value in ids.items() if value is not None}
    first = row.created_at is None
    row.created_at = now if first else row.created_at
    row.updated_at = now
    row.revision = 1 if first else row.revision + 1
    last = session.scalar(select(func.max(LicenseChange.number)).where(LicenseChange.license_id == row.jti)) or 0
    made = {**session.info.get(OPERATOR, {}), **about}
    session.add(
        LicenseChange(
            license_id=row.jti,
            number=last + 1,
            at=now,
            event=str(event),
            state=state_of(row, now).value,
            fields=json.dumps(made, separators=(",", ":"), sort_keys=True),
        )
    )
    if row.agent_id is not None and event is not Event.REVOKED:
        changes.changed(session, row.agent_id, now, [row.jti])
    # Flushed, so that another change in this transaction gets the next number.
    session.flush()
    events.emit(session, f"license.{event}", now, license=row.jti, **about)


def history(session: Session, license_id: str, after: int = 0, limit: int | None = None) -> list[ChangeRow]:
    """The changes of a license, the oldest first, behind a number, at most so many.

    A license of an earlier release has those since this one. Raises NotFound if there never was such a license.
    """
    query = select(LicenseChange).where(LicenseChange.license_id == license_id, LicenseChange.number > after)
    rows = list(session.scalars(query.order_by(LicenseChange.number).limit(limit)))
    if not rows and not after and session.get(License, license_id) is None:
        raise NotFound(f"there is no license {license_id!r}; 'license-server licenses list' lists them")
    return [ChangeRow(row.number, row.at, row.event, row.state, json.loads(row.fields)) for row in rows]
