"""Operators: accounts, approvals, kept replies of their requests"""

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Brings the schema to this revision."""


def downgrade() -> None:
    """Takes it back."""
