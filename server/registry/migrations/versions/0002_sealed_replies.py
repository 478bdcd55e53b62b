"""Kept replies are sealed

The old ones were in the clear, and no key is at hand here: they are removed. A request that came just before and comes again
just after acts once more, which every purpose allows.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Brings the schema to this revision."""
    with op.batch_alter_table("kept_answer", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_kept_answer_kept_until"))
    # PostgreSQL removes the file of a dropped table; deleted rows would stay in it for a while.
    op.drop_table("kept_answer")
    op.create_table(
        "kept_reply",
        sa.Column("agent_id", sa.String(length=64), nullable=False),
        sa.Column("request_id", sa.String(length=32), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=True),
        sa.Column("kept_at", sa.BigInteger(), nullable=False),
        sa.Column("kept_until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("agent_id", "request_id"),
    )
    with op.batch_alter_table("kept_reply", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_kept_reply_kept_at"), ["kept_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_kept_reply_kept_until"), ["kept_until"], unique=False)


def downgrade() -> None:
    """Takes it back."""
    op.drop_table("kept_reply")
    op.create_table(
        "kept_answer",
        sa.Column("agent_id", sa.String(length=64), nullable=False),
        sa.Column("request_id", sa.String(length=32), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("reply", sa.Text(), nullable=False),
        sa.Column("kept_until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("agent_id", "request_id"),
    )
    with op.batch_alter_table("kept_answer", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_kept_answer_kept_until"), ["kept_until"], unique=False)
