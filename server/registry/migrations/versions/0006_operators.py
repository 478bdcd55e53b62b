"""Operators: accounts, what they sign in with, approvals, break-glass, kept replies of their requests"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_INDEXES = (
    ("account", "role"),
    ("account_certificate", "account"),
    ("account_token", "account"),
    ("approval", "requester"),
    ("approval", "expires_at"),
    ("break_glass", "account"),
    ("operator_reply", "kept_until"),
)


def _text(name: str, length: int, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(length=length), nullable=nullable)


def _number(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def _account() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["account"], ["account.name"])


def upgrade() -> None:
    """Brings the schema to this revision."""
    op.create_table(
        "account",
        _text("name", 64),
        _text("kind", 16),
        _text("role", 32),
        _text("state", 16),
        _text("issuer", 256, nullable=True),
        _text("subject", 256, nullable=True),
        sa.Column("may_break_glass", sa.Boolean(), nullable=False),
        _number("created_at"),
        _number("changed_at"),
        _text("changed_by", 64),
        _number("revision"),
        sa.PrimaryKeyConstraint("name"),
        sa.UniqueConstraint("issuer", "subject", name="account_subject"),
    )
    op.create_table(
        "account_certificate",
        _text("fingerprint", 64),
        _text("account", 64),
        _text("number", 40),
        _text("state", 16),
        _number("issued_at"),
        _number("not_after"),
        _number("used_at", nullable=True),
        sa.PrimaryKeyConstraint("fingerprint"),
        _account(),
    )
    op.create_table(
        "account_token",
        _text("id", 16),
        _text("account", 64),
        _text("digest", 64),
        sa.Column("scopes", sa.Text(), nullable=False),
        _text("state", 16),
        _number("created_at"),
        _number("expires_at"),
        _number("used_at", nullable=True),
        sa.PrimaryKeyConstraint("id"),
        _account(),
    )
    op.create_table(
        "approval",
        _text("id", 32),
        _text("act", 64),
        _text("digest", 64),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        _text("state", 16),
        _text("requester", 64),
        _text("requester_credential", 600),
        _text("approver", 64, nullable=True),
        _text("approver_credential", 600, nullable=True),
        _number("created_at"),
        _number("expires_at"),
        _number("decided_at", nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "break_glass",
        _text("id", 32),
        _text("account", 64),
        sa.Column("reason", sa.Text(), nullable=False),
        _number("begun_at"),
        _number("ends_at"),
        _number("ended_at", nullable=True),
        _text("ended_by", 64, nullable=True),
        sa.PrimaryKeyConstraint("id"),
        _account(),
    )
    op.create_table(
        "operator_reply",
        _text("id", 64),
        _text("digest", 64),
        sa.Column("sealed", sa.LargeBinary(), nullable=True),
        _number("kept_until"),
        sa.PrimaryKeyConstraint("id"),
    )
    for table, column in _INDEXES:
        op.create_index(f"ix_{table}_{column}", table, [column])
    # In an empty registry there is no counter yet: who fills it writes this one as well.
    op.execute("INSERT INTO counter (name, value) SELECT 'accounts', 0 FROM counter WHERE name = 'serial'")


def downgrade() -> None:
    """Takes it back."""
    op.execute("DELETE FROM counter WHERE name = 'accounts'")
    for table in ("operator_reply", "break_glass", "approval", "account_token", "account_certificate", "account"):
        op.drop_table(table)
