"""Loads the models of all tables, so that `Base.metadata` is complete for migrations, backups and moves.

A file with models is imported here, and nowhere else for this purpose.
"""

from . import event_models, licensing_models, operator_models, seat_models, update_models, usage_models, webhook_models
from .models import Base

__all__ = [
    "Base", "event_models", "licensing_models", "operator_models", "seat_models", "update_models", "usage_models",
    "webhook_models",
]  # fmt: skip
