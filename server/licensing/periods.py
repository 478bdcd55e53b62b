"""Reads and changes how long secrets are used: the interval between rotations, and the grace period after it."""

from sqlalchemy.orm import Session

from server.registry import audit
from server.registry.models import Setting

DEFAULT_INTERVAL_S, DEFAULT_GRACE_S = 86_400, 604_800


def periods(session: Session) -> tuple[int, int]:
    """Seconds until a secret's successor is due, and seconds of grace after that. They apply to secrets made from now on."""
    return _period(session, "interval", DEFAULT_INTERVAL_S), _period(session, "grace", DEFAULT_GRACE_S)


def set_periods(session: Session, interval: int | None, grace: int | None, now: int) -> None:
    """Changes the periods, in seconds; None leaves one as it is. Secrets that exist keep their dates."""
    for name, value in (("interval", interval), ("grace", grace)):
        if value is not None:
            session.merge(Setting(name=name, value=str(value)))
    audit.record(session, "admin", "rotation.periods", "ok", now, interval=interval, grace=grace)


def _period(session: Session, name: str, default: int) -> int:
    row = session.get(Setting, name)
    return default if row is None else int(row.value)
