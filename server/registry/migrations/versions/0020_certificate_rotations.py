"""how many client certificates were renewed, of all agents and of each fleet"""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Brings the schema to this revision."""
    op.add_column("fleet", sa.Column("rotations", sa.BigInteger(), server_default="0", nullable=False))
    # In an empty registry there is no counter yet: what fills it writes this one as well.
    op.execute("INSERT INTO counter (name, value) SELECT 'certificate_rotations', 0 FROM counter WHERE name = 'serial'")


def downgrade() -> None:
    """Takes it back."""
    op.execute("DELETE FROM counter WHERE name = 'certificate_rotations'")
    op.drop_column("fleet", "rotations")
