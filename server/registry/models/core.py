"""Declares the tables of the registry. Secrets are encrypted in columns named `sealed`; times are seconds since 1970 UTC."""

from sqlalchemy import BigInteger, Float, ForeignKey, Index, LargeBinary, String, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

REVISION = "0020"
"""The newest migration: with it the tables are as they are declared here."""
OLDEST_PROGRAM = "0011"
"""The oldest program, by its newest migration, that may serve these tables. A migration that only adds leaves it as it is."""


class Base(DeclarativeBase):
    """All tables."""


class Setting(Base):
    """A value of which there is one: the issuer's name, the wrapped data key, the periods."""

    __tablename__ = "setting"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class Counter(Base):
    """A number that only grows: serials, key sets, revocations, audit records. Its row is locked while it changes."""

    __tablename__ = "counter"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger)


class ServerKey(Base):
    """A key of the server. `kind`: license, rotation, enrollment, issuing-ca, tls, root; `state`: active, retired, ended."""

    __tablename__ = "server_key"
    kid: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), index=True)
    state: Mapped[str] = mapped_column(String(16))
    public: Mapped[str] = mapped_column(Text)
    sealed: Mapped[bytes | None] = mapped_column(LargeBinary)
    certificate: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int] = mapped_column(BigInteger)


class KeySetRow(Base):
    """A key set that the root has signed."""

    __tablename__ = "key_set"
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    text: Mapped[str] = mapped_column(Text)
    expires_at: Mapped[int] = mapped_column(BigInteger)


class Agent(Base):
    """An agent. `serial` is missing if it was enrolled by hand."""

    __tablename__ = "agent"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    serial: Mapped[int | None] = mapped_column(BigInteger, unique=True)
    hw_id: Mapped[str | None] = mapped_column(String(64), unique=True)
    status: Mapped[str] = mapped_column(String(16))
    attestation: Mapped[str] = mapped_column(String(16))
    backend: Mapped[str] = mapped_column(String(16))
    identity_key: Mapped[str | None] = mapped_column(Text)
    agreement_key: Mapped[str] = mapped_column(Text)
    attestation_key: Mapped[str | None] = mapped_column(Text)
    urgent: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)
    last_seen: Mapped[int | None] = mapped_column(BigInteger)
    audit_seq: Mapped[int | None] = mapped_column(BigInteger)
    audit_head: Mapped[str | None] = mapped_column(String(64))
    # What `agents.clones` goes by.
    seen_version: Mapped[int | None] = mapped_column(BigInteger)
    seen_at: Mapped[int | None] = mapped_column(BigInteger)
    halted_at: Mapped[int | None] = mapped_column(BigInteger)
    halt_version: Mapped[int | None] = mapped_column(BigInteger)
    halt_reason: Mapped[str | None] = mapped_column(Text)
    audit_turns: Mapped[int] = mapped_column(default=0, server_default="0")
    # The number of its newest revocation list; missing if it has had no revocation since revision 0005.
    revocations: Mapped[int | None] = mapped_column(BigInteger)
    # What it has announced that it can do, names with blanks between; missing for an agent of release 0.1.0.
    capabilities: Mapped[str | None] = mapped_column(Text)
    # When it left service. Its `status` is revoked then, so that all that refuses revoked agents refuses it.
    retired_at: Mapped[int | None] = mapped_column(BigInteger)
    # The number of the newest change of its licenses; missing if there was none since revision 0008.
    license_changes: Mapped[int | None] = mapped_column(BigInteger)
    # The site where its machine is, for seats of floating licenses.
    site_id: Mapped[str | None] = mapped_column(String(64))


class Certificate(Base):
    """A client certificate, by the SHA-256 of its DER. `state`: active, superseded, revoked. `used_at`: its first use."""

    __tablename__ = "certificate"
    fingerprint: Mapped[str] = mapped_column(String(64), primary_key=True)
    agent_id: Mapped[str] = mapped_column(ForeignKey("agent.id"), index=True)
    number: Mapped[str] = mapped_column(String(40))
    state: Mapped[str] = mapped_column(String(16))
    issued_at: Mapped[int] = mapped_column(BigInteger)
    not_after: Mapped[int] = mapped_column(BigInteger)
    used_at: Mapped[int | None] = mapped_column(BigInteger)


class EnrollmentToken(Base):
    """An enrollment token, by the SHA-256 of its text. `state`: open, used, revoked."""

    __tablename__ = "claim"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    hw_id: Mapped[str | None] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    factory_only: Mapped[bool] = mapped_column(default=False)
    agent_id: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int] = mapped_column(BigInteger)


class ProvisioningAttempt(Base):
    """A provisioning between its two steps."""

    __tablename__ = "provision_session"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    claim_id: Mapped[int] = mapped_column(ForeignKey("claim.id"))
    begin: Mapped[bytes] = mapped_column(LargeBinary)
    nonce: Mapped[bytes] = mapped_column(LargeBinary)
    sealed: Mapped[bytes | None] = mapped_column(LargeBinary)
    expires_at: Mapped[int] = mapped_column(BigInteger, index=True)


class Secret(Base):
    """A secret version of an agent; `state` as in `secret_states`."""

    __tablename__ = "secret"
    agent_id: Mapped[str] = mapped_column(ForeignKey("agent.id"), primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    sealed: Mapped[bytes | None] = mapped_column(LargeBinary)
    key_check: Mapped[str] = mapped_column(String(32))
    valid_from: Mapped[int] = mapped_column(BigInteger)
    valid_until: Mapped[int] = mapped_column(BigInteger)
    grace_until: Mapped[int] = mapped_column(BigInteger)
    made_at: Mapped[int] = mapped_column(BigInteger)
    confirmed_at: Mapped[int | None] = mapped_column(BigInteger)


class License(Base):
    """A license. `claims` are those that its next token has, in JSON; `aud` is null while the license is on no machine.

    `secret_version` is that of its newest token; missing before there is one. `expires_at` and `subject` repeat the claims.
    """

    __tablename__ = "license"
    jti: Mapped[str] = mapped_column(String(128), primary_key=True)
    agent_id: Mapped[str | None] = mapped_column(ForeignKey("agent.id"), index=True)
    claims: Mapped[str] = mapped_column(Text)
    secret_version: Mapped[int | None] = mapped_column(BigInteger)
    revoked_at: Mapped[int | None] = mapped_column(BigInteger)
    # The agent's `license_changes` when this one last changed; missing if that was before revision 0008.
    change_number: Mapped[int | None] = mapped_column(BigInteger)
    suspended_at: Mapped[int | None] = mapped_column(BigInteger)
    policy_id: Mapped[str | None] = mapped_column(ForeignKey("policy.id", name="license_policy"))
    product_id: Mapped[str | None] = mapped_column(ForeignKey("product.id", name="license_product"))
    customer_id: Mapped[str | None] = mapped_column(ForeignKey("customer.id", name="license_customer"))
    site_id: Mapped[str | None] = mapped_column(ForeignKey("site.id", name="license_site"))
    subject: Mapped[str | None] = mapped_column(String(128))
    expires_at: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[int | None] = mapped_column(BigInteger)
    updated_at: Mapped[int | None] = mapped_column(BigInteger)
    revision: Mapped[int] = mapped_column(BigInteger, default=1, server_default="1")
    # The floating license that this one is a seat of.
    seat_of: Mapped[str | None] = mapped_column(String(128))
    # Whether it is a floating license: on no machine, and the tills of its site take seats of it.
    floating: Mapped[bool | None] = mapped_column()


class FormerLicense(Base):
    """A license that was taken from an agent. The agent hears of it until the license ends."""

    __tablename__ = "former_license"
    agent_id: Mapped[str] = mapped_column(ForeignKey("agent.id"), primary_key=True)
    jti: Mapped[str] = mapped_column(String(128), primary_key=True)
    change_number: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int] = mapped_column(BigInteger, index=True)


class KeptReply(Base):
    """A request that may come again, and its reply; `sealed` is missing if the reply is to be made again."""

    __tablename__ = "kept_reply"
    agent_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    request_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    sealed: Mapped[bytes | None] = mapped_column(LargeBinary)
    kept_at: Mapped[int] = mapped_column(BigInteger, index=True)
    kept_until: Mapped[int] = mapped_column(BigInteger, index=True)


class AuditRecord(Base):
    """An audit record, with the hash of the one before it."""

    __tablename__ = "audit"
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[int] = mapped_column(BigInteger)
    actor: Mapped[str] = mapped_column(String(128))
    event: Mapped[str] = mapped_column(String(64))
    outcome: Mapped[str] = mapped_column(String(64))
    fields: Mapped[str] = mapped_column(Text)
    prev: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))


class Heartbeat(Base):
    """When a process of the server, or an operator (`OPERATOR`), last trusted the clock of its machine."""

    __tablename__ = "heartbeat"
    process: Mapped[str] = mapped_column(String(128), primary_key=True)
    at: Mapped[int] = mapped_column(BigInteger)
    boot_id: Mapped[str] = mapped_column(String(64))
    boot_ms: Mapped[int] = mapped_column(BigInteger)
    synchronized: Mapped[bool] = mapped_column()


class Job(Base):
    """Timed work of the server, done by one process at a time."""

    __tablename__ = "job"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    due_at: Mapped[int] = mapped_column(BigInteger, index=True)
    holder: Mapped[str | None] = mapped_column(String(128))
    lease_until: Mapped[int | None] = mapped_column(BigInteger)
    last_success: Mapped[int | None] = mapped_column(BigInteger)
    failures: Mapped[int] = mapped_column(default=0, server_default="0")


class Allowance(Base):
    """What a caller may still ask of all processes together: a token bucket, as it was `at` that second."""

    __tablename__ = "allowance"
    name: Mapped[str] = mapped_column(String(96), primary_key=True)
    level: Mapped[float] = mapped_column(Float)
    at: Mapped[int] = mapped_column(BigInteger, index=True)


_HALTED = Agent.halted_at.is_not(None)
Index("agent_halted", Agent.halted_at, Agent.id, sqlite_where=_HALTED, postgresql_where=_HALTED)
_RETIRED, _NOT_RETIRED = Agent.retired_at.is_not(None), Agent.retired_at.is_(None)
Index("agent_retired_at", Agent.retired_at, sqlite_where=_RETIRED, postgresql_where=_RETIRED)
_AT_SITE = Agent.site_id.is_not(None)
Index("agent_of_site", Agent.site_id, Agent.id, sqlite_where=_AT_SITE, postgresql_where=_AT_SITE)
# Lists of agents are in the order of bytes (`dialect.by_bytes`). SQLite has no other one, and an index of its own for the id;
# on PostgreSQL, the migration gives the ids in these indexes the collation C, which a comparison of schemas does not see.
Index("agent_by_bytes", Agent.id).ddl_if("postgresql")
Index("agent_status", Agent.status, Agent.id, sqlite_where=_NOT_RETIRED, postgresql_where=_NOT_RETIRED)
Index("agent_retired", Agent.id, sqlite_where=_RETIRED, postgresql_where=_RETIRED)
Index("certificate_end", Certificate.not_after)
Index("secret_end", Secret.grace_until)
Index("claim_end", EnrollmentToken.expires_at)
Index("provision_session_claim", ProvisioningAttempt.claim_id)
_REMOVAL = text("event = 'audit.removed'")
Index("audit_removals", AuditRecord.seq, sqlite_where=_REMOVAL, postgresql_where=_REMOVAL)
Index("license_of_agent", License.agent_id, License.revoked_at)
Index("license_in_order", License.agent_id, License.jti)
Index("license_by_customer", License.customer_id, License.jti)
Index("license_by_site", License.site_id, License.jti)
Index("license_by_policy", License.policy_id, License.jti)
Index("license_by_product", License.product_id, License.jti)
Index("license_by_subject", License.subject, License.jti)
Index("license_by_end", License.expires_at, License.jti)
for _name, _column in (("license_revoked", License.revoked_at), ("license_suspended", License.suspended_at)):
    _set = _column.is_not(None)
    Index(_name, License.jti, sqlite_where=_set, postgresql_where=_set)
_UNASSIGNED = License.agent_id.is_(None)
Index("license_unassigned", License.jti, sqlite_where=_UNASSIGNED, postgresql_where=_UNASSIGNED)
