"""The feed of events; an index of suspended licenses"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Brings the schema to this revision."""
    op.create_table(
        "event",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=128), nullable=False),
        sa.Column("fields", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_index("event_subject", "event", ["subject", "seq"])
    op.create_index("event_time", "event", ["at"])
    suspended = sa.text("suspended_at IS NOT NULL")
    op.create_index("license_suspended", "license", ["jti"], sqlite_where=suspended, postgresql_where=suspended)
    # In an empty registry there is no counter yet: what fills it writes this one as well.
    op.execute("INSERT INTO counter (name, value) SELECT 'events', 0 FROM counter WHERE name = 'serial'")


def downgrade() -> None:
    """Takes it back."""
    op.execute("DELETE FROM counter WHERE name = 'events'")
    op.drop_index("license_suspended", "license")
    op.drop_table("event")
