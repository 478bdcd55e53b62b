"""Events, and the webhooks that they are sent to"""

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Brings the schema to this revision."""


def downgrade() -> None:
    """Takes it back."""
