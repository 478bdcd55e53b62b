"""Agents that retire, and lists of agents by status and by the begin of their ids"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_RETIRED, _NOT_RETIRED = sa.text("retired_at IS NOT NULL"), sa.text("retired_at IS NULL")
_OLDEST = "UPDATE setting SET value = :value WHERE name = 'oldest_program'"


def upgrade() -> None:
    """Brings the schema to this revision."""
    op.add_column("agent", sa.Column("retired_at", sa.BigInteger(), nullable=True))
    op.create_index("agent_retired_at", "agent", ["retired_at"], sqlite_where=_RETIRED, postgresql_where=_RETIRED)
    by_bytes = "id" if _is_sqlite() else sa.text('id COLLATE "C"')
    op.create_index("agent_status", "agent", ["status", by_bytes], sqlite_where=_NOT_RETIRED, postgresql_where=_NOT_RETIRED)
    op.create_index("agent_retired", "agent", [by_bytes], sqlite_where=_RETIRED, postgresql_where=_RETIRED)
    if not _is_sqlite():
        op.create_index("agent_by_bytes", "agent", [by_bytes])
    # In an empty registry there is no counter yet: who fills it writes this one as well.
    op.execute("INSERT INTO counter (name, value) SELECT 'agents.retired', 0 FROM counter WHERE name = 'agents.revoked'")
    # A program that reinstates an agent and leaves it retired must not write here.
    op.execute(sa.text(_OLDEST).bindparams(value="0011"))


def downgrade() -> None:
    """Takes it back. A retired agent is a revoked one then."""
    op.execute(sa.text(_OLDEST).bindparams(value="0005"))
    retired = "(SELECT value FROM counter WHERE name = 'agents.retired')"
    op.execute(f"UPDATE counter SET value = value + {retired} WHERE name = 'agents.revoked'")  # noqa: S608 - constants
    op.execute("DELETE FROM counter WHERE name = 'agents.retired'")
    for name in ("agent_status", "agent_retired", *(() if _is_sqlite() else ("agent_by_bytes",))):
        op.drop_index(name, "agent")
    op.drop_index("agent_retired_at", "agent")
    op.drop_column("agent", "retired_at")


def _is_sqlite() -> bool:
    return op.get_bind().dialect.name == "sqlite"
