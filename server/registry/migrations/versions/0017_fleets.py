"""Devices, fleets and rollouts; each agent is a device from now on"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def _text(name: str, length: int, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(length=length), nullable=nullable)


def _number(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def upgrade() -> None:
    """Brings the schema to this revision."""
    _devices()
    _fleets()
    _rollouts()
    op.execute(
        "INSERT INTO device (id, kind, name, hardware, site_id, created_at, updated_at, revision) "
        "SELECT agent.id, 'agent', '', update_agent.hardware, agent.site_id, agent.created_at, agent.updated_at, 1 "
        "FROM agent LEFT JOIN update_agent ON update_agent.agent_id = agent.id"
    )


def _devices() -> None:
    op.create_table(
        "device",
        _text("id", 64),
        _text("kind", 16),
        _text("name", 128),
        _text("hardware", 64, nullable=True),
        _text("zone", 64, nullable=True),
        _text("site_id", 64, nullable=True),
        _number("blocked_at", nullable=True),
        _number("created_at"),
        _number("updated_at"),
        _number("revision"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("device_by_hardware", "device", ["hardware", "id"])
    op.create_index("device_by_kind", "device", ["kind", "id"])
    op.create_index("device_by_site", "device", ["site_id", "id"])
    op.create_index("device_by_zone", "device", ["zone", "id"])
    if op.get_bind().dialect.name == "postgresql":
        op.create_index("device_by_bytes", "device", [sa.text('id COLLATE "C"')])
    op.create_table(
        "device_seen",
        _text("device_id", 64),
        _number("at"),
        sa.PrimaryKeyConstraint("device_id"),
        postgresql_with={"fillfactor": 70},
    )
    op.create_table(
        "device_tag",
        _text("device_id", 64),
        _text("tag", 64),
        sa.PrimaryKeyConstraint("device_id", "tag"),
    )
    op.create_index("device_by_tag", "device_tag", ["tag", "device_id"])
    op.create_table(
        "device_attribute",
        _text("device_id", 64),
        _text("name", 64),
        _text("value", 256),
        _text("source", 16),
        _number("updated_at"),
        sa.PrimaryKeyConstraint("device_id", "name"),
    )
    op.create_index("device_by_attribute", "device_attribute", ["name", "value", "device_id"])
    op.create_table(
        "device_version",
        _text("device_id", 64),
        _text("product", 32),
        _text("version", 64),
        _text("build_id", 64),
        _number("reported_at"),
        sa.PrimaryKeyConstraint("device_id", "product"),
    )
    op.create_index("device_by_version", "device_version", ["product", "version", "device_id"])


def _fleets() -> None:
    op.create_table(
        "fleet",
        _text("id", 64),
        _text("name", 128),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("selection", sa.Text(), nullable=True),
        _number("rank"),
        sa.Column("policy", sa.Text(), nullable=False),
        _number("configuration", nullable=True),
        _number("created_at"),
        _number("updated_at"),
        _number("revision"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("rank"),
    )
    op.create_table(
        "fleet_member",
        _text("fleet_id", 64),
        _text("device_id", 64),
        sa.PrimaryKeyConstraint("fleet_id", "device_id"),
    )
    op.create_index("fleet_of_device", "fleet_member", ["device_id", "fleet_id"])
    op.create_table(
        "fleet_configuration",
        _text("fleet_id", 64),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        _text("created_by", 128),
        _number("created_at"),
        sa.PrimaryKeyConstraint("fleet_id", "number"),
    )
    op.create_table(
        "device_configuration",
        _text("device_id", 64),
        _number("document"),
        _text("fleet_id", 64, nullable=True),
        _number("number"),
        _text("state", 16),
        sa.Column("detail", sa.Text(), nullable=False),
        _number("sent_at"),
        _number("reported_at", nullable=True),
        sa.PrimaryKeyConstraint("device_id"),
    )
    op.create_index("device_by_configuration", "device_configuration", ["fleet_id", "number", "state"])


def _rollouts() -> None:
    op.create_table(
        "rollout",
        _text("id", 64),
        _text("fleet_id", 64),
        sa.Column("selection", sa.Text(), nullable=True),
        _text("rolls_back", 64, nullable=True),
        _text("product", 32),
        _text("path", 256),
        _text("version", 64),
        _text("build_id", 64),
        sa.Column("policy", sa.Text(), nullable=False),
        _text("state", 16),
        sa.Column("detail", sa.Text(), nullable=False),
        _text("created_by", 128),
        _number("created_at"),
        _number("started_at", nullable=True),
        _number("ended_at", nullable=True),
        _number("updated_at"),
        _number("revision"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_rollout_fleet_id", "rollout", ["fleet_id"])
    op.create_index("rollout_state", "rollout", ["state", "id"])
    op.create_table(
        "rollout_group",
        _text("rollout_id", 64),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        _text("name", 64),
        _text("state", 16),
        sa.Column("success_percent", sa.Integer(), nullable=False),
        sa.Column("failure_percent", sa.Integer(), nullable=False),
        _number("total"),
        _number("waiting"),
        _number("under_way"),
        _number("proved"),
        _number("failed"),
        _number("left_out"),
        _number("seconds"),
        _number("started_at", nullable=True),
        _number("ended_at", nullable=True),
        sa.PrimaryKeyConstraint("rollout_id", "number"),
    )
    op.create_table(
        "rollout_device",
        _text("rollout_id", 64),
        _text("device_id", 64),
        _number("group_number"),
        _text("state", 16),
        _number("number", nullable=True),
        _text("before", 64, nullable=True),
        _number("ordered_at", nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        _number("deadline", nullable=True),
        _number("updated_at"),
        sa.PrimaryKeyConstraint("rollout_id", "device_id"),
    )
    op.create_index(
        "rollout_device_deadline",
        "rollout_device",
        ["deadline"],
        sqlite_where=sa.text("deadline IS NOT NULL"),
        postgresql_where=sa.text("deadline IS NOT NULL"),
    )
    op.create_index(
        "rollout_device_open",
        "rollout_device",
        ["device_id", "rollout_id"],
        sqlite_where=sa.text("state IN ('waiting', 'ordered', 'under-way', 'installed')"),
        postgresql_where=sa.text("state IN ('waiting', 'ordered', 'under-way', 'installed')"),
    )
    op.create_index("rollout_device_state", "rollout_device", ["rollout_id", "group_number", "state", "device_id"])
    op.create_table(
        "automatic_rollout",
        _text("fleet_id", 64),
        _text("product", 32),
        sa.Column("selection", sa.Text(), nullable=True),
        sa.Column("policy", sa.Text(), nullable=False),
        _text("floor", 64),
        _text("newest", 64),
        _text("state", 16),
        sa.Column("detail", sa.Text(), nullable=False),
        _text("set_by", 128),
        _number("set_at"),
        _number("updated_at"),
        sa.PrimaryKeyConstraint("fleet_id", "product"),
    )


def downgrade() -> None:
    """Takes it back, with all fleets and rollouts; the directives that were made from them stay."""
    for table in (
        "automatic_rollout",
        "rollout_device",
        "rollout_group",
        "rollout",
        "device_configuration",
        "fleet_configuration",
        "fleet_member",
        "fleet",
        "device_version",
        "device_attribute",
        "device_tag",
        "device_seen",
        "device",
    ):
        op.drop_table(table)
