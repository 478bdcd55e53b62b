"""Keys of the update repository, packages, and what agents are ordered to install"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def _text(name: str, length: int) -> sa.Column[str]:
    return sa.Column(name, sa.String(length=length), nullable=False)


def _number(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def upgrade() -> None:
    """Brings the schema to this revision."""
    op.create_table(
        "update_key",
        _text("keyid", 64),
        _text("role", 16),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        _number("created_at"),
        sa.PrimaryKeyConstraint("keyid"),
    )
    op.create_table(
        "update_package",
        _text("path", 256),
        _text("product", 32),
        _text("version", 64),
        _text("build_id", 64),
        _text("kind", 16),
        sa.Column("hardware", sa.Text(), nullable=False),
        _text("sha256", 64),
        _number("length"),
        _text("role", 16),
        _number("published_at"),
        _number("updated_at"),
        sa.PrimaryKeyConstraint("path"),
        sa.UniqueConstraint("build_id"),
    )
    op.create_index("update_package_product", "update_package", ["product"])
    op.create_table(
        "update_directive",
        _text("agent_id", 64),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        _text("product", 32),
        _text("path", 256),
        _text("sha256", 64),
        _number("length"),
        _text("version", 64),
        _text("build_id", 64),
        _text("rollout", 64),
        *(_number(name) for name in ("not_before", "not_after", "notice_until")),
        sa.Column("window", sa.Text(), nullable=True),
        sa.Column("downgrade", sa.Boolean(), nullable=False),
        _number("withdraws", nullable=True),
        _text("state", 16),
        sa.Column("detail", sa.Text(), nullable=False),
        _number("created_at"),
        _number("updated_at"),
        sa.PrimaryKeyConstraint("agent_id", "number"),
    )
    op.create_index("update_directive_state", "update_directive", ["state", "not_after"])
    op.create_table(
        "update_agent",
        _text("agent_id", 64),
        _number("number"),
        _number("known"),
        sa.Column("running", sa.Text(), nullable=False),
        _number("reported_at", nullable=True),
        _number("paused_at", nullable=True),
        sa.PrimaryKeyConstraint("agent_id"),
    )


def downgrade() -> None:
    """Takes it back. The repository of updates stays; without its online keys, its root has to name new ones."""
    for table in ("update_agent", "update_directive", "update_package", "update_key"):
        op.drop_table(table)
