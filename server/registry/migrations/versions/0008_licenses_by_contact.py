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


def downgrade() -> None:
    """Takes it back."""
    op.drop_column("agent", "capabilities")
