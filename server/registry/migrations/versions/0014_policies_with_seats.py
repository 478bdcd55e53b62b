"""Policies whose licenses are shared as seats"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Brings the schema to this revision."""
    op.add_column("policy", sa.Column("floating", sa.Text(), nullable=True))


def downgrade() -> None:
    """Takes it back. Licenses that were issued stay as they are."""
    op.drop_column("policy", "floating")
