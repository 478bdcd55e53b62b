"""Products, policies, customers and sites; the states and the history of a license"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_LICENSE_INDEXES = {
    "license_by_customer": ["customer_id", "jti"],
    "license_by_site": ["site_id", "jti"],
    "license_by_policy": ["policy_id", "jti"],
    "license_by_product": ["product_id", "jti"],
    "license_by_subject": ["subject", "jti"],
    "license_by_end": ["expires_at", "jti"],
}
_PARTIAL = {"license_revoked": "revoked_at IS NOT NULL", "license_unassigned": "agent_id IS NULL"}
_ADDED = ("policy_id", "product_id", "customer_id", "site_id")


def _id(name: str = "id") -> sa.Column[str]:
    return sa.Column(name, sa.String(length=64), nullable=False)


def _number(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def _kept() -> list[sa.Column[int]]:
    return [_number("created_at"), _number("updated_at"), _number("revision")]


def upgrade() -> None:
    """Brings the schema to this revision."""
    _create_tables()
    # SQLite copies the table: it cannot make a column nullable in place.
    with op.batch_alter_table("license") as table:
        table.alter_column("agent_id", existing_type=sa.String(length=64), nullable=True)
        table.alter_column("secret_version", existing_type=sa.BigInteger(), nullable=True)
        for name in _ADDED:
            table.add_column(sa.Column(name, sa.String(length=64), nullable=True))
            other = name.removesuffix("_id")
            table.create_foreign_key(f"license_{other}", other, [name], ["id"])
        table.add_column(sa.Column("subject", sa.String(length=128), nullable=True))
        for name in ("expires_at", "created_at", "updated_at"):
            table.add_column(_number(name, nullable=True))
        table.add_column(sa.Column("revision", sa.BigInteger(), nullable=False, server_default="1"))
    _fill_from_claims()
    for name, columns in _LICENSE_INDEXES.items():
        op.create_index(name, "license", columns)
    for name, condition in _PARTIAL.items():
        where = sa.text(condition)
        op.create_index(name, "license", ["jti"], sqlite_where=where, postgresql_where=where)
    # An older program takes every license for one on a machine, and reads what a token was made of from its claims.
    op.execute("UPDATE setting SET value = '0007' WHERE name = 'oldest_program'")


def _create_tables() -> None:
    op.create_table(
        "product",
        _id(),
        sa.Column("name", sa.String(length=128), nullable=False),
        *_kept(),
        _number("retired_at", nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "entitlement_set",
        _id(),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("features", sa.Text(), nullable=False),
        *_kept(),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "policy",
        _id(),
        _id("product_id"),
        sa.Column("entitlement_set_id", sa.String(length=64), nullable=True),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("features", sa.Text(), nullable=False),
        sa.Column("metadata", sa.Text(), nullable=False),
        _number("duration_s", nullable=True),
        sa.Column("trial", sa.Boolean(), nullable=False),
        *_kept(),
        _number("retired_at", nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["product_id"], ["product.id"]),
        sa.ForeignKeyConstraint(["entitlement_set_id"], ["entitlement_set.id"]),
    )
    op.create_index("ix_policy_product_id", "policy", ["product_id"])
    op.create_index("ix_policy_entitlement_set_id", "policy", ["entitlement_set_id"])
    op.create_table(
        "customer",
        _id(),
        sa.Column("key", sa.LargeBinary(), nullable=True),
        sa.Column("sealed", sa.LargeBinary(), nullable=True),
        *_kept(),
        _number("erased_at", nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "site",
        _id(),
        _id("customer_id"),
        sa.Column("sealed", sa.LargeBinary(), nullable=True),
        *_kept(),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["customer_id"], ["customer.id"]),
    )
    op.create_index("site_of_customer", "site", ["customer_id", "id"])
    op.create_table(
        "license_change",
        sa.Column("license_id", sa.String(length=128), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        _number("at"),
        sa.Column("event", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("fields", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("license_id", "number"),
    )
    op.create_table(
        "trial",
        _id("hw_id"),
        _id("product_id"),
        sa.Column("license_id", sa.String(length=128), nullable=False),
        _number("begun_at"),
        sa.PrimaryKeyConstraint("hw_id", "product_id"),
    )


def _fill_from_claims() -> None:
    """Writes what the claims say into the columns that lists and reports find them by."""
    if op.get_bind().dialect.name == "sqlite":
        subject, end, issued = (f"json_extract(claims, '$.{name}')" for name in ("sub", "exp", "iat"))
    else:
        subject, end, issued = (
            "CAST(claims AS json) ->> 'sub'",
            *(f"CAST(CAST(claims AS json) ->> '{name}' AS bigint)" for name in ("exp", "iat")),
        )
    op.execute(f"UPDATE license SET subject = {subject}, expires_at = {end}, created_at = {issued}, updated_at = {issued}")  # noqa: S608


def downgrade() -> None:
    """Takes it back. Licenses that are on no machine go: the former tables have no place for them."""
    op.execute("UPDATE setting SET value = '0005' WHERE name = 'oldest_program'")
    op.execute("DELETE FROM license WHERE agent_id IS NULL OR secret_version IS NULL")
    for name in (*_PARTIAL, *_LICENSE_INDEXES):
        op.drop_index(name, "license")
    with op.batch_alter_table("license") as table:
        for name in _ADDED:
            table.drop_constraint(f"license_{name.removesuffix('_id')}", type_="foreignkey")
            table.drop_column(name)
        for name in ("subject", "expires_at", "created_at", "updated_at", "revision"):
            table.drop_column(name)
        table.alter_column("secret_version", existing_type=sa.BigInteger(), nullable=False)
        table.alter_column("agent_id", existing_type=sa.String(length=64), nullable=False)
    for name in ("trial", "license_change", "site", "customer", "policy", "entitlement_set", "product"):
        op.drop_table(name)
