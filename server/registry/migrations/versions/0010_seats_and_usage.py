"""Seats of floating licenses, and usage that agents have counted"""

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Brings the schema to this revision."""


def downgrade() -> None:
    """Takes it back."""
