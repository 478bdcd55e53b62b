"""Agents that retire"""

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Brings the schema to this revision."""


def downgrade() -> None:
    """Takes it back."""
