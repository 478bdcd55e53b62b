"""Loads the models of all tables, so that `Base.metadata` is complete for migrations, backups and moves.

A file with models is imported here, and nowhere else for this purpose.
"""

from . import ddi, events, fleets, licensing, monitoring, operators, rollouts, seats, updates, usage, webhooks
from .core import Base

__all__ = [
    "Base", "ddi", "events", "fleets", "licensing", "monitoring", "operators", "rollouts", "seats", "updates", "usage",
    "webhooks",
]  # fmt: skip
