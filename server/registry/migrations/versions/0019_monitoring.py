"""Monitoring of fleets: observations, thresholds and how they stand, alerts, silences"""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

SEVERITIES = ("info", "warning", "critical")


def _text(name: str, length: int | None = None, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text() if length is None else sa.String(length=length), nullable=nullable)


def _number(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable, autoincrement=False)


def upgrade() -> None:
    """Brings the schema to this revision."""
    counts = ("contacts", "failed", "refused", "rotations", "updates")
    op.create_table(
        "fleet_observation",
        _text("fleet_id", 64),
        _number("at"),
        *(_number(name) for name in counts),
        _text("latencies"),
        _number("devices", nullable=True),
        _number("late", nullable=True),
        sa.PrimaryKeyConstraint("fleet_id", "at"),
        postgresql_partition_by="RANGE (at)",
    )
    op.create_index("fleet_observation_time", "fleet_observation", ["at"])
    if op.get_bind().dialect.name == "postgresql":
        # Partitions for days are made by the server; this one takes what comes on a day that has none.
        op.execute("CREATE TABLE fleet_observation_rest PARTITION OF fleet_observation DEFAULT")
    op.create_table(
        "fleet_watch",
        _text("fleet_id", 64),
        _text("thresholds"),
        _number("judged_until"),
        _text("standings"),
        _text("health", nullable=True),
        _number("update_failures", nullable=True),
        _number("updated_at"),
        _number("revision"),
        sa.PrimaryKeyConstraint("fleet_id"),
    )
    _alerts()
    for severity in SEVERITIES:
        # In an empty registry there is no counter yet: what fills it writes these as well.
        counter = sa.text("INSERT INTO counter (name, value) SELECT :name, 0 FROM counter WHERE name = 'serial'")
        op.execute(counter.bindparams(name=f"alerts.{severity}"))


def _alerts() -> None:
    op.create_table(
        "fleet_alert",
        _text("id", 32),
        _text("fleet_id", 64),
        _text("kind", 32),
        _text("severity", 16),
        _text("state", 16),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("bound", sa.Float(), nullable=False),
        _text("detail"),
        _text("told", 16, nullable=True),
        _number("raised_at"),
        _number("updated_at"),
        _number("acknowledged_at", nullable=True),
        _text("acknowledged_by", 128, nullable=True),
        _number("cleared_at", nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    is_open = sa.text("state != 'cleared'")
    op.create_index(
        "fleet_alert_open", "fleet_alert", ["fleet_id", "kind"], unique=True, sqlite_where=is_open, postgresql_where=is_open
    )
    op.create_index("fleet_alert_cleared", "fleet_alert", ["cleared_at"])
    op.create_index("fleet_alert_of_fleet", "fleet_alert", ["fleet_id", "id"])
    op.create_table(
        "fleet_silence",
        _text("id", 32),
        _text("fleet_id", 64, nullable=True),
        _text("kind", 32, nullable=True),
        _number("begins_at"),
        _number("ends_at"),
        _text("created_by", 128),
        _text("comment"),
        sa.PrimaryKeyConstraint("id"),
    )


def downgrade() -> None:
    """Takes it back."""
    op.execute("DELETE FROM counter WHERE name LIKE 'alerts.%'")
    for table in ("fleet_silence", "fleet_alert", "fleet_watch", "fleet_observation"):
        op.drop_table(table)
