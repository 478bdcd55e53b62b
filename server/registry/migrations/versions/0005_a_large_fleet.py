"""For large fleets: counts of agents, revocation numbers by agent, an index of halted agents, timed work, shared limits"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_STATUSES = ("active", "factory_only", "revoked")


def upgrade() -> None:
    """Brings the schema to this revision."""
    op.add_column("agent", sa.Column("revocations", sa.BigInteger(), nullable=True))
    halted = sa.text("halted_at IS NOT NULL")
    op.create_index("agent_halted", "agent", ["halted_at", "id"], sqlite_where=halted, postgresql_where=halted)
    op.create_index("certificate_end", "certificate", ["not_after"])
    op.create_index("secret_end", "secret", ["grace_until"])
    op.create_index("claim_end", "claim", ["expires_at"])
    op.create_index("provision_session_claim", "provision_session", ["claim_id"])
    removal = sa.text("event = 'audit.removed'")
    op.create_index("audit_removals", "audit", ["seq"], sqlite_where=removal, postgresql_where=removal)
    op.create_table(
        "job",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.String(length=128), nullable=True),
        sa.Column("lease_until", sa.BigInteger(), nullable=True),
        sa.Column("last_success", sa.BigInteger(), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_index("ix_job_due_at", "job", ["due_at"])
    op.create_table(
        "allowance",
        sa.Column("name", sa.String(length=96), nullable=False),
        sa.Column("level", sa.Float(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_index("ix_allowance_at", "allowance", ["at"])
    # In an empty registry there is no counter yet: who fills it writes these as well.
    counts = "INSERT INTO counter (name, value) SELECT :name, (SELECT count(*) FROM agent WHERE status = :status) FROM counter "
    for status in _STATUSES:
        op.execute(sa.text(counts + "WHERE name = 'serial'").bindparams(name=f"agents.{status}", status=status))
    op.execute("INSERT INTO counter (name, value) SELECT 'revocations.base', value FROM counter WHERE name = 'revocations'")
    # A program that does not keep the counts and numbers must not write here.
    oldest = "INSERT INTO setting (name, value) SELECT 'oldest_program', '0005' FROM counter WHERE name = 'serial'"
    op.execute(oldest)


def downgrade() -> None:
    """Takes it back."""
    op.execute("DELETE FROM setting WHERE name = 'oldest_program'")
    op.execute("DELETE FROM counter WHERE name LIKE 'agents.%' OR name = 'revocations.base'")
    op.drop_table("allowance")
    op.drop_table("job")
    for name, table in (
        ("audit_removals", "audit"),
        ("provision_session_claim", "provision_session"),
        ("claim_end", "claim"),
        ("secret_end", "secret"),
        ("certificate_end", "certificate"),
        ("agent_halted", "agent"),
    ):
        op.drop_index(name, table)
    op.drop_column("agent", "revocations")
