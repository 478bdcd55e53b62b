"""Alerts that last: each is raised once, to the journal and the audit log, and cleared once it is over."""

import logging
from typing import Any

from agentd.audit.log import AuditLog

log = logging.getLogger(__name__)


class Alerts:
    """The alerts of a daemon.

    Args:
        audit: logs.
    """

    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit
        self._raised: set[str] = set()

    def set(self, name: str, on: bool, text: str, **fields: Any) -> None:
        """Raises the alert `name`, or clears it; does nothing if it stands so already.

        Args:
            name: of the alert, without `alert.`.
            on: whether it is to stand.
            text: what to tell people when it is raised.
            fields: for the audit log.
        """
        if on == (name in self._raised):
            return
        if on:
            self._raised.add(name)
            log.critical("ALERT %s", text)
            self._audit.record(f"alert.{name}", "raised", text=text, **fields)
        else:
            self._raised.discard(name)
            log.warning("cleared: %s", text)
            self._audit.record(f"alert.{name}", "cleared", **fields)

    @property
    def standing(self) -> tuple[str, ...]:
        """Names of the alerts that stand."""
        return tuple(sorted(self._raised))
