"""Seats of floating licenses, and usage that agents have counted"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Brings the schema to this revision."""
    op.create_table(
        "usage_counter",
        sa.Column("agent_id", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.String(length=32), nullable=False),
        sa.Column("license_id", sa.String(length=128), nullable=False),
        sa.Column("meter", sa.String(length=48), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("counted_at", sa.BigInteger(), nullable=False),
        sa.Column("challenged_at", sa.BigInteger(), nullable=False),
        sa.Column("alerted_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("agent_id", "epoch"),
    )
    op.create_index(op.f("ix_usage_counter_counted_at"), "usage_counter", ["counted_at"])
    op.create_table(
        "usage_day",
        sa.Column("license_id", sa.String(length=128), nullable=False),
        sa.Column("meter", sa.String(length=48), nullable=False),
        sa.Column("day", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("agent_id", sa.String(length=64), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("license_id", "meter", "day", "agent_id"),
    )
    op.create_index("usage_day_listed", "usage_day", ["day", "license_id", "meter", "agent_id"])


def downgrade() -> None:
    """Takes it back."""
    op.drop_table("usage_day")
    op.drop_table("usage_counter")
