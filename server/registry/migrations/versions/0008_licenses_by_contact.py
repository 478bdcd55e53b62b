"""Licenses that contacts bring: which changes an agent has"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Brings the schema to this revision."""
    op.add_column("agent", sa.Column("capabilities", sa.Text(), nullable=True))
    op.add_column("agent", sa.Column("license_changes", sa.BigInteger(), nullable=True))
    op.add_column("license", sa.Column("change_number", sa.BigInteger(), nullable=True))
    op.add_column("license", sa.Column("suspended_at", sa.BigInteger(), nullable=True))
    op.create_index("license_in_order", "license", ["agent_id", "jti"])
    op.create_table(
        "former_license",
        sa.Column("agent_id", sa.String(length=64), nullable=False),
        sa.Column("jti", sa.String(length=128), nullable=False),
        sa.Column("change_number", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["agent_id"], ["agent.id"]),
        sa.PrimaryKeyConstraint("agent_id", "jti"),
    )
    op.create_index("ix_former_license_expires_at", "former_license", ["expires_at"])
    # Above what an agent knows before it is told anything. An empty registry has no counters yet: who fills it writes this one.
    op.execute("INSERT INTO counter (name, value) SELECT 'license_changes.base', 1 FROM counter WHERE name = 'serial'")


def downgrade() -> None:
    """Takes it back."""
    op.execute("DELETE FROM counter WHERE name = 'license_changes.base'")
    op.drop_table("former_license")
    op.drop_index("license_in_order", "license")
    op.drop_column("license", "suspended_at")
    op.drop_column("license", "change_number")
    op.drop_column("agent", "license_changes")
    op.drop_column("agent", "capabilities")
