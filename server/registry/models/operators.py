"""Declares the tables of the operators: accounts, what they sign in with, approvals, break-glass, kept replies."""

from sqlalchemy import BigInteger, ForeignKey, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from .core import Base


class Account(Base):
    """An account of a person or a program. Its name is never given to another one: the audit names accounts.

    `kind`: person, program; `state`: active, disabled, removed; `role` as in `server.accounts.roles`. `revision` counts its
    changes; `changed_by` made the last one that was not the account's own, at `changed_at`.
    """

    __tablename__ = "account"
    __table_args__ = (UniqueConstraint("issuer", "subject", name="account_subject"),)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    role: Mapped[str] = mapped_column(String(32), index=True)
    state: Mapped[str] = mapped_column(String(16))
    # Who the OpenID provider says that this is; counts only while that is the provider in use.
    issuer: Mapped[str | None] = mapped_column(String(256))
    subject: Mapped[str | None] = mapped_column(String(256))
    may_break_glass: Mapped[bool] = mapped_column()
    created_at: Mapped[int] = mapped_column(BigInteger)
    changed_at: Mapped[int] = mapped_column(BigInteger)
    changed_by: Mapped[str] = mapped_column(String(64))
    revision: Mapped[int] = mapped_column(BigInteger)


class AccountCertificate(Base):
    """A client certificate of an account, by the SHA-256 of its DER. `state`: active, revoked. `used_at`: its last use."""

    __tablename__ = "account_certificate"
    fingerprint: Mapped[str] = mapped_column(String(64), primary_key=True)
    account: Mapped[str] = mapped_column(ForeignKey("account.name"), index=True)
    number: Mapped[str] = mapped_column(String(40))
    state: Mapped[str] = mapped_column(String(16))
    issued_at: Mapped[int] = mapped_column(BigInteger)
    not_after: Mapped[int] = mapped_column(BigInteger)
    used_at: Mapped[int | None] = mapped_column(BigInteger)


class AccountToken(Base):
    """A token of a program's account. `id` is the beginning of its text, `digest` the SHA-256 of all of it.

    `scopes` is a JSON array; `state`: active, revoked; `used_at`: its last use. `origin`: the token that an administrator made,
    from which this one came by replacing; NULL for that one itself.
    """

    __tablename__ = "account_token"
    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    account: Mapped[str] = mapped_column(ForeignKey("account.name"), index=True)
    digest: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int] = mapped_column(BigInteger)
    used_at: Mapped[int | None] = mapped_column(BigInteger)
    origin: Mapped[str | None] = mapped_column(String(16))


class Approval(Base):
    """A request for a second person's approval of one exact act. `state`: open, approved, refused, used.

    `digest` is the SHA-256 of the act's name and of `body`, its canonical JSON.
    """

    __tablename__ = "approval"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    act: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(64))
    body: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16))
    requester: Mapped[str] = mapped_column(String(64), index=True)
    # What they signed in with: a certificate's fingerprint, or who a provider says that they are.
    requester_credential: Mapped[str] = mapped_column(String(600))
    approver: Mapped[str | None] = mapped_column(String(64))
    approver_credential: Mapped[str | None] = mapped_column(String(600))
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int] = mapped_column(BigInteger, index=True)
    decided_at: Mapped[int | None] = mapped_column(BigInteger)


class BreakGlass(Base):
    """Emergency access of an account, from `begun_at` until `ends_at`, or until somebody ended it before."""

    __tablename__ = "break_glass"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    account: Mapped[str] = mapped_column(ForeignKey("account.name"), index=True)
    reason: Mapped[str] = mapped_column(Text)
    begun_at: Mapped[int] = mapped_column(BigInteger)
    ends_at: Mapped[int] = mapped_column(BigInteger)
    ended_at: Mapped[int | None] = mapped_column(BigInteger)
    ended_by: Mapped[str | None] = mapped_column(String(64))


class OperatorReply(Base):
    """The reply to a request with an idempotency key, by the SHA-256 of account, act and key; sealed, because it may be secret.

    `digest` is that of the request's body.
    """

    __tablename__ = "operator_reply"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    sealed: Mapped[bytes | None] = mapped_column(LargeBinary)
    kept_until: Mapped[int] = mapped_column(BigInteger, index=True)
