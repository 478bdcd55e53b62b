"""Seats of floating licenses, and usage that agents have counted"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Brings the schema to this revision."""
    op.create_table(
        "usage_counter",
        sa.Column("agent_id", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.String(length=32), nullable=False),
        sa.Column("license_id", sa.String(length=128), nullable=False),
        sa.Column("meter", sa.String(length=48), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("counted_at", sa.BigInteger(), nullable=False),
        sa.Column("challenged_at", sa.BigInteger(), nullable=False),
        sa.Column("alerted_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("agent_id", "epoch"),
    )
    op.create_index(op.f("ix_usage_counter_counted_at"), "usage_counter", ["counted_at"])
    op.create_table(
        "usage_day",
        sa.Column("license_id", sa.String(length=128), nullable=False),
        sa.Column("meter", sa.String(length=48), nullable=False),
        sa.Column("day", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("agent_id", sa.String(length=64), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("license_id", "meter", "day", "agent_id"),
    )
    op.create_index("usage_day_listed", "usage_day", ["day", "license_id", "meter", "agent_id"])
    _create_seats()


def downgrade() -> None:
    """Takes it back."""
    op.drop_table("usage_day")
    op.drop_table("usage_counter")
    _drop_seats()


# Seats


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False)


def _create_seats() -> None:
    op.add_column("agent", sa.Column("site_id", sa.String(length=64), nullable=True))
    at_site = sa.text("site_id IS NOT NULL")
    op.create_index("agent_of_site", "agent", ["site_id", "id"], sqlite_where=at_site, postgresql_where=at_site)
    op.add_column("license", sa.Column("seat_of", sa.String(length=128), nullable=True))
    op.add_column("license", sa.Column("floating", sa.Boolean(), nullable=True))
    op.create_table(
        "floating_license",
        sa.Column("license_id", sa.String(length=128), nullable=False),
        _number("seats"),
        sa.Column("mode", sa.String(length=8), nullable=False),
        *(_number(name) for name in ("lease_s", "grace_s", "idle_s", "last_number", "updated_at")),
        sa.PrimaryKeyConstraint("license_id"),
        sa.ForeignKeyConstraint(["license_id"], ["license.jti"]),
    )
    op.create_table(
        "seat",
        sa.Column("id", sa.String(length=128), nullable=False),
        sa.Column("license_id", sa.String(length=128), nullable=False),
        _number("number"),
        sa.Column("agent_id", sa.String(length=64), nullable=False),
        *(_number(name) for name in ("taken_at", "lease_until", "grace_until", "counted_until")),
        sa.Column("over", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["license_id"], ["floating_license.license_id"]),
    )
    op.create_index("seat_of_license", "seat", ["license_id", "number"])
    op.create_index("seat_of_agent", "seat", ["agent_id", "license_id"])
    op.create_index("seat_end", "seat", ["counted_until"])


def _drop_seats() -> None:
    op.execute("DELETE FROM license WHERE seat_of IS NOT NULL")
    op.drop_table("seat")
    op.drop_table("floating_license")
    op.drop_index("agent_of_site", "agent")
    op.drop_column("license", "floating")
    op.drop_column("license", "seat_of")
    op.drop_column("agent", "site_id")
