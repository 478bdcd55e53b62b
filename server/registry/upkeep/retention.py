"""Reads and changes how long rows of the registry are kept once nothing needs them any more."""

from dataclasses import dataclass, fields

from sqlalchemy.orm import Session

from server.base.errors import RegistryError
from server.registry import audit
from server.registry.models.core import Setting

DAY_S = 86_400
MIN_CERTIFICATE_DAYS = 401
"""A certificate without a row looks like one that a restored registry has lost. So its row stays while it could be used."""
MAX_DAYS = 36_500


@dataclass(frozen=True, slots=True)
class Retention:
    """Days that rows are kept.

    Attributes:
        audit: audit records, after they were written; 0 keeps them for ever.
        certificates: client certificates, after their end.
        secrets: secret versions, after the end of their grace. The secret itself is destroyed at that end.
        enrollment_tokens: enrollment tokens, after their end.
        agents: revoked agents, after they were revoked. Nothing but `agents delete` removes one, and not before.
        retired_agents: retired agents, after they retired. Their certificates have ended long before.
        events: events of the feed, after they happened.
        usage: usage, after the day on which it was reported; and counters, after they last grew.
    """

    audit: int = 1096
    certificates: int = 420
    secrets: int = 400
    enrollment_tokens: int = 90
    agents: int = 90
    retired_agents: int = 420
    events: int = 90
    usage: int = 1096


def retention(session: Session) -> Retention:
    """The present retention."""
    found = {}
    for field in fields(Retention):
        row = session.get(Setting, _name(field.name))
        if row is not None:
            found[field.name] = int(row.value)
    return Retention(**found)


def set_retention(session: Session, changes: dict[str, int], now: int) -> None:
    """Changes the retention.

    Args:
        session: of a writing transaction.
        changes: days, by the attribute of `Retention`.
        now: seconds since 1970 UTC.

    Raises:
        RegistryError: a number of days is out of bounds.
    """
    for name, days in changes.items():
        least = MIN_CERTIFICATE_DAYS if name == "certificates" else 0 if name == "audit" else 1
        if not least <= days <= MAX_DAYS:
            raise RegistryError(f"{name.replace('_', ' ')} are kept from {least} to {MAX_DAYS} days, not {days}")
        session.merge(Setting(name=_name(name), value=str(days)))
    audit.record(session, "admin", "retention.set", "ok", now, **changes)


def _name(field: str) -> str:
    return f"retention.{field}"
