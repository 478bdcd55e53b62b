"""Reads and changes how long things last: a secret until its rotation, its grace after that, and a revocation list."""

from sqlalchemy.orm import Session

from server.registry import audit
from server.registry.models.core import Setting

DEFAULT_INTERVAL_S, DEFAULT_GRACE_S = 86_400, 604_800
REVOCATIONS_LAST_S = 7 * 86_400
"""How long a revocation list is valid, unless the operator has set another period; an agent fetches a newer one after half of
it."""
BACKDATE_S = 3600
"""How much earlier than now a secret begins, at most."""


def periods(session: Session) -> tuple[int, int]:
    """Seconds until a secret's successor is due, and seconds of grace after that. They apply to secrets made from now on."""
    return _period(session, "interval", DEFAULT_INTERVAL_S), _period(session, "grace", DEFAULT_GRACE_S)


def revocations_last(session: Session) -> int:
    """Seconds for which an agent may go by a revocation list that is signed now."""
    return _period(session, "revocations", REVOCATIONS_LAST_S)


def set_periods(session: Session, interval: int | None, grace: int | None, now: int, revocations: int | None = None) -> None:
    """Changes the periods, in seconds; None leaves one as it is. Secrets and lists that exist keep their dates."""
    for name, value in (("interval", interval), ("grace", grace), ("revocations", revocations)):
        if value is not None:
            session.merge(Setting(name=name, value=str(value)))
    lists = {} if revocations is None else {"revocations": revocations}
    audit.record(session, "admin", "rotation.periods", "ok", now, interval=interval, grace=grace, **lists)


def backdate(interval: int, age: int | None) -> int:
    """How many seconds before now a new secret begins, because this server's clock may have been wrong for a while.

    Of a short interval, or soon after the former secret, it is less: an agent may count an interval of its own from the
    beginning, and must not find its new secret overdue.

    Args:
        interval: seconds until the successor of the new secret is due.
        age: seconds since the former secret was made; None if this is the first.
    """
    return max(0, min(BACKDATE_S, interval // 10, BACKDATE_S if age is None else age // 10))


def _period(session: Session, name: str, default: int) -> int:
    row = session.get(Setting, name)
    return default if row is None else int(row.value)
