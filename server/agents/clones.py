"""Finds out that two machines have one identity, and halts the agent's rotations until an operator decides.

A machine only moves forward: it never holds an older secret version than it has reported, and its audit log never becomes
shorter. Two machines with one identity contradict each other. There are two contradictions:

version  a machine reports an older version than one that was reported before
audit    a log went back, came forward again, and goes back once more; a restored disk goes back only once

Both need a challenge that is newer than the report that they contradict: a request that was delayed on its way contradicts
nothing. A device that is provisioned or enrolled again starts over, and contradicts nothing either.

While an agent is halted, `licensing.secrets` gives every holder of the identity the same last version, with a long grace.
"""

import logging
from dataclasses import dataclass

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session

from server.base.errors import RegistryError
from server.registry import audit
from server.registry.models.core import Agent

from .registry import begin_anew, enrolled
from .seen import Seen, went_back

EXTENSION_S = 30 * 86_400
"""How long licenses stay valid from the halt on, at most: an operator has to decide within that time."""
_WENT_BACK, _CAME_FORWARD = 1, 2
_log = logging.getLogger("license_server")


@dataclass(frozen=True, slots=True)
class Report:
    """What an authentic request says about the machine that sent it.

    Attributes:
        version: the newest secret version that it holds; 0 before the first.
        challenged_at: when this server made the challenge that it answers, seconds since 1970 UTC.
        audit: number and hash of its last sealed audit record; None if it does not say.
    """

    version: int
    challenged_at: int
    audit: tuple[int, str] | None = None


@dataclass(frozen=True, slots=True)
class Halt:
    """An agent whose rotations are halted. Times are seconds since 1970 UTC.

    Attributes:
        agent_id: the agent.
        since: when the second machine was noticed.
        until: when its licenses end if nobody decides.
        evidence: what the second machine was noticed by.
        version: the secret version that both machines get; None if none was asked for yet.
        last_seen: the last contact of either machine.
    """

    agent_id: str
    since: int
    until: int
    evidence: str
    version: int | None
    last_seen: int | None


class Clones:
    """Watches for second machines. Every method works in the transaction of the session that it is given."""

    def observe(self, session: Session, agent_id: str, report: Report, now: int) -> str | None:
        """Notes a report. Halts the agent at the first contradiction, and returns what it is; None if nothing is new.

        Args:
            session: of a transaction that has locked the agent.
            agent_id: the agent.
            report: of an authentic request that answers a fresh challenge.
            now: seconds since 1970 UTC.
        """
        agent = session.get(Agent, agent_id)
        if agent is None:
            return None
        found = contradictions(agent, report, now)
        if not found or agent.halted_at is not None:
            return None
        agent.halted_at, agent.halt_reason, agent.halt_version = now, "; ".join(found), None
        return agent.halt_reason

    def tell(self, session: Session, agent_id: str, evidence: str, now: int) -> None:
        """Records and logs a halt. Called last in the transaction: it locks the audit's counter."""
        audit.record(session, f"agent {agent_id}", "alert.clone", "halted", now, evidence=evidence)
        _log.error("two machines have one identity", extra={"fields": {"agent": agent_id, "evidence": evidence}})

    def halted(self, session: Session, after: Halt | None = None, limit: int | None = None) -> list[Halt]:
        """The halted agents, the oldest halt first.

        Args:
            session: of any transaction.
            after: only those behind this one.
            limit: at most so many.
        """
        query = select(Agent).where(Agent.halted_at.is_not(None)).order_by(Agent.halted_at, Agent.id).limit(limit)
        if after is not None:
            query = query.where(tuple_(Agent.halted_at, Agent.id) > (after.since, after.agent_id))
        rows = session.scalars(query)
        return [halt for row in rows if (halt := halt_of(row)) is not None]

    def count(self, session: Session) -> int:
        """The number of halted agents."""
        return session.scalar(select(func.count()).where(Agent.halted_at.is_not(None))) or 0

    def resume(self, session: Session, agent_id: str, now: int) -> None:
        """Ends a halt: one machine is left. It gets a new secret at its next contact.

        Raises:
            RegistryError: there is no such agent, or it is not halted.
        """
        agent = enrolled(session, agent_id)
        if agent.halted_at is None:
            raise RegistryError(f"agent {agent_id!r} is not halted; 'license-server clones' lists the halted agents")
        halted_at, version = agent.halted_at, agent.halt_version
        begin_anew(agent)
        agent.urgent = True
        audit.record(session, "admin", "clone.resumed", "ok", now, agent=agent_id, since=halted_at, version=version)


def halt_of(agent: Agent) -> Halt | None:
    """The halt of an agent; None if its rotations are not halted."""
    if agent.halted_at is None:
        return None
    until = agent.halted_at + EXTENSION_S
    return Halt(agent.id, agent.halted_at, until, agent.halt_reason or "", agent.halt_version, agent.last_seen)


def contradictions(seen: Seen, report: Report, now: int) -> list[str]:
    """Notes a report in `seen`, and returns what contradicts what was noted before."""
    return [text for text in (_of_version(seen, report, now), _of_audit(seen, report)) if text is not None]


def _of_version(agent: Seen, report: Report, now: int) -> str | None:
    seen, seen_at = agent.seen_version, agent.seen_at or 0
    if seen is None or report.version > seen:
        agent.seen_version, agent.seen_at = report.version, now
        return None
    if report.version == seen or report.challenged_at <= seen_at:
        return None
    return f"secret version {report.version} came back after version {seen}"


def _of_audit(agent: Seen, report: Report) -> str | None:
    if report.audit is None or agent.audit_seq is None:
        return None
    seq, head = report.audit
    if not went_back(agent, seq, head):
        if seq > agent.audit_seq and agent.audit_turns == _WENT_BACK:
            agent.audit_turns = _CAME_FORWARD
        return None
    if report.challenged_at <= (agent.last_seen or 0):
        return None
    again = agent.audit_turns == _CAME_FORWARD
    agent.audit_turns = _WENT_BACK
    return f"the audit log went back to record {seq} for the second time, after record {agent.audit_seq}" if again else None
