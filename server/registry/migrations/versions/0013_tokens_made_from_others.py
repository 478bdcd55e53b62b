"""Which token of a program was made from which, so that a stolen one ends with all that were made from it"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Brings the schema to this revision."""
    op.add_column("account_token", sa.Column("origin", sa.String(length=16), nullable=True))


def downgrade() -> None:
    """Takes it back."""
    op.drop_column("account_token", "origin")
