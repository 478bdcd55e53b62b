"""Licenses that contacts bring: which changes an agent has"""

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Brings the schema to this revision."""


def downgrade() -> None:
    """Takes it back."""
