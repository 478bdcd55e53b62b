"""Heartbeats of the server's processes: when each last trusted its clock"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Brings the schema to this revision."""
    op.create_table(
        "heartbeat",
        sa.Column("process", sa.String(length=128), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("boot_id", sa.String(length=64), nullable=False),
        sa.Column("boot_ms", sa.BigInteger(), nullable=False),
        sa.Column("synchronized", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("process"),
    )


def downgrade() -> None:
    """Takes it back."""
    op.drop_table("heartbeat")
