"""Counts what the daemon does in one run. The metrics render it; nothing decides by it."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """What the daemon has counted since its start; `degraded_s` is in seconds."""

    rotations: int = 0
    rotations_failed: int = 0
    validations: int = 0
    validations_failed: int = 0
    unauthorized: int = 0
    refused_requests: int = 0
    refused_administrators: int = 0
    contacts: int = 0
    contacts_failed: int = 0
    degraded_s: float = 0.0
    webhook_delivered: int = 0
    webhook_failed: int = 0
    webhook_dropped: int = 0
