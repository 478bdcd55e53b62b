"""hawkBit's DDI: devices, what they identify themselves with, and what they were offered to install"""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def _text(name: str, length: int, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(length=length), nullable=nullable)


def _number(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable, autoincrement=False)


def upgrade() -> None:
    """Brings the schema to this revision."""
    op.create_table(
        "ddi_device",
        _text("device_id", 64),
        _number("configured_at", nullable=True),
        sa.Column("auto_confirm", sa.Text(), nullable=True),
        _number("created_at"),
        _number("updated_at"),
        sa.PrimaryKeyConstraint("device_id"),
    )
    op.create_table(
        "ddi_credential",
        _text("id", 64),
        _text("kind", 16),
        _text("digest", 64),
        _text("device_id", 64, nullable=True),
        _text("fleet_id", 64, nullable=True),
        _text("state", 16),
        _number("created_at"),
        _number("expires_at", nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("digest"),
    )
    op.create_index("ddi_credential_of_device", "ddi_credential", ["device_id"])
    op.create_index("ddi_credential_of_fleet", "ddi_credential", ["fleet_id"])
    _actions()
    # In an empty registry there is no counter yet: what fills it writes this one as well.
    op.execute("INSERT INTO counter (name, value) SELECT 'ddi_action', 0 FROM counter WHERE name = 'serial'")


def _actions() -> None:
    op.create_table(
        "ddi_action",
        _number("number"),
        _text("device_id", 64),
        _text("rollout_id", 64),
        _text("fleet_id", 64),
        _text("product", 32),
        _text("path", 256),
        _text("sha256", 64),
        _text("sha1", 40),
        _text("md5", 32),
        _number("length"),
        _text("version", 64),
        _text("build_id", 64),
        _text("state", 16),
        _number("confirmed", nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        _number("created_at"),
        _number("updated_at"),
        sa.PrimaryKeyConstraint("number"),
    )
    op.create_index("ddi_action_of_device", "ddi_action", ["device_id", "number"])
    op.create_table(
        "ddi_message",
        _number("action"),
        _number("seq"),
        _number("at"),
        _text("text", 512),
        sa.PrimaryKeyConstraint("action", "seq"),
    )
    op.create_table("ddi_digest", _text("sha256", 64), _text("sha1", 40), _text("md5", 32), sa.PrimaryKeyConstraint("sha256"))


def downgrade() -> None:
    """Takes it back."""
    op.execute("DELETE FROM counter WHERE name = 'ddi_action'")
    for table in ("ddi_digest", "ddi_message", "ddi_action", "ddi_credential", "ddi_device"):
        op.drop_table(table)
