"""Selects audit records: a filter that is pure, and the pages of the agent's export as one stream."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from cli.agent import Agent

PAGE = 1000
"""Records that one request asks for; the agent sends fewer where a reply has no room for more."""

Record = dict[str, Any]

SEVERITIES = ("low", "medium", "high", "critical")
"""From the least."""

SEVERITY_OF = {
    "access.denied": "medium",
    "alert.audit_archive": "medium",
    "alert.audit_budget": "low",
    "alert.audit_damaged": "critical",
    "alert.audit_file": "critical",
    "alert.audit_seal": "critical",
    "alert.clock_suspect": "medium",
    "alert.degraded_long": "high",
    "alert.revocations_stale": "medium",
    "alert.rotation_failing": "high",
    "alert.secret_expired": "critical",
    "alert.server_refuses": "high",
    "alert.server_time": "medium",
    "alert.tpm_unavailable": "high",
    "alert.tpm_unreliable": "high",
}
"""Of the alerts that release 0.1.0 could raise, and perhaps a few more: its records do not say how severe they are."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records are wanted. What is empty or None selects nothing: every record fits it.

    Attributes:
        events: patterns of a shell (`license.*`), of which one must fit.
        outcomes: likewise.
        uids: of the actor.
        names: patterns for the name of the administrator whose certificate signed the request.
        licenses: ids.
        since: RFC 3339 in UTC, as records have it; the first moment.
        until: likewise; the first moment that is too late.
        severity: the least, of an alert.
        kind: the retention class.
    """

    events: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()
    uids: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    licenses: tuple[str, ...] = ()
    since: str = ""
    until: str = ""
    severity: str | None = None
    kind: str | None = None

    def fits(self, record: Record) -> bool:
        """Whether a record is wanted."""
        event, time = str(record.get("event")), str(record.get("time"))
        actor = record.get("actor")
        return (
            _one_of(event, self.events)
            and _one_of(str(record.get("outcome")), self.outcomes)
            and (not self.uids or (isinstance(actor, dict) and actor.get("uid") in self.uids))
            and (not self.names or (isinstance(actor, dict) and _one_of(str(actor.get("name", "")), self.names)))
            and (not self.licenses or record.get("license") in self.licenses)
            and (not self.since or time >= self.since)
            and (not self.until or time < self.until)
            and (self.severity is None or self._severe(record.get("severity", SEVERITY_OF.get(event))))
            and self.kind in (None, record.get("class"))
        )

    def _severe(self, severity: object) -> bool:
        if severity is None:
            return False  # no alert
        # One that this release does not know may be any: it is shown rather than left out.
        known = severity if severity in SEVERITIES else SEVERITIES[-1]
        return SEVERITIES.index(str(known)) >= SEVERITIES.index(str(self.severity))


def _one_of(text: str, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(fnmatchcase(text, pattern) for pattern in patterns)


def exported(
    agent: Agent, after: int = -1, progress: Callable[[int, int], None] = lambda _done, _end: None
) -> Iterator[tuple[str, Record]]:
    """All records that existed when it was called, oldest first, archives included: each as its line and its members.

    Args:
        agent: is asked.
        after: number of the record that the first one follows; -1 for the oldest.
        progress: called after each page, with the number of its last record and that of the last one.
    """
    end = agent.ask("status")["audit"]["seq"]
    while after < end:
        lines = agent.ask("audit_export", after_seq=after, limit=PAGE)["records"]
        for line in lines:
            record = json.loads(line)
            after = max(after, record["seq"])
            if record["seq"] <= end:
                yield line, record
        progress(min(after, end), end)
        if not lines:
            return
