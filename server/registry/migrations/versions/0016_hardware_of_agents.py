"""The kind of machine that an agent says it is, by which updates are ordered"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Brings the schema to this revision."""
    op.add_column("update_agent", sa.Column("hardware", sa.String(64), nullable=True))


def downgrade() -> None:
    """Takes it back. Each agent says it again at its next contact."""
    op.drop_column("update_agent", "hardware")
