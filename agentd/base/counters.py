"""Counts what the daemon does in one run. The metrics render it; nothing decides by it."""

from dataclasses import dataclass, field

from common.histogram import Histogram

VALIDATION_BOUNDS = (1e-05, 2.5e-05, 5e-05, 0.0001, 0.00025, 0.001, 0.005, 0.025, 0.1)
CONTACT_BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
SAMPLED = 64
"""One validation in so many is timed; a power of two."""


@dataclass(slots=True)
class Counters:
    """What the daemon has counted since its start; `degraded_s` and what the histograms hold is in seconds."""

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
    rate_limited: int = 0
    rate_limited_users: int = 0
    validation_s: Histogram = field(default_factory=lambda: Histogram(VALIDATION_BOUNDS))
    contact_s: Histogram = field(default_factory=lambda: Histogram(CONTACT_BOUNDS))
