"""Holds what every part above the audit log is given: who the agent is, its time, its log, its hardware and its counters."""

from dataclasses import dataclass

from agentd.base.clock.clock import Clock
from agentd.base.counters import Counters
from agentd.base.hardware import Hardware
from hwsec.vault import Vault

from .log import AuditLog


@dataclass(frozen=True, slots=True)
class Core:
    """The agent's common parts, for one run.

    Attributes:
        agent_id: as the license server knows this agent.
        clock: trusted, wall and monotonic time.
        audit: logs events and alerts.
        hardware: backend and store, on their own thread.
        vault: keeps secrets encrypted in memory.
        counters: of this run.
    """

    agent_id: str
    clock: Clock
    audit: AuditLog
    hardware: Hardware
    vault: Vault
    counters: Counters
