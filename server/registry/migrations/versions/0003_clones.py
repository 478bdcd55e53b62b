"""Adds what agents have reported, and which are halted because two machines have one identity."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_COLUMNS: tuple[tuple[str, sa.types.TypeEngine[Any]], ...] = (
    ("seen_version", sa.BigInteger()),
    ("seen_at", sa.BigInteger()),
    ("halted_at", sa.BigInteger()),
    ("halt_version", sa.BigInteger()),
    ("halt_reason", sa.Text()),
)


def upgrade() -> None:
    """Brings the schema to this revision."""
    for name, kind in _COLUMNS:
        op.add_column("agent", sa.Column(name, kind, nullable=True))
    op.add_column("agent", sa.Column("audit_turns", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    """Takes this revision back."""
    for name in ("audit_turns", *(name for name, _kind in reversed(_COLUMNS))):
        op.drop_column("agent", name)
