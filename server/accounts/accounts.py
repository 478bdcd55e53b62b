"""Makes and changes the accounts of people and programs. At least one active person stays administrator.

Every function that changes an account locks the counter `accounts` first: so two processes cannot each take away the last
administrator but one. A name is never given to another account, because the audit names accounts.
"""

import re
from dataclasses import dataclass

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from server.base.errors import Conflict, Invalid, NotFound
from server.registry import audit
from server.registry.database import next_number
from server.registry.models.operators import Account, AccountCertificate

from . import provider as providers
from .roles import Role

COUNTER = "accounts"
"""The counter that changes with every change of an account."""
PERSON, PROGRAM = "person", "program"
KINDS = (PERSON, PROGRAM)
ACTIVE, DISABLED, REMOVED = "active", "disabled", "removed"
NAME = r"[a-z0-9](?:[a-z0-9._@-]{0,62}[a-z0-9])?"
"""The form of an account's name."""
LOCAL = "local"
"""Who uses the command line on the server's machine; no account has this name."""


@dataclass(frozen=True, slots=True)
class AccountRow:
    """An account as operators see it. Times are seconds since 1970 UTC.

    Attributes:
        name: its name.
        kind: person or program.
        role: as in `roles.Role`.
        state: active, disabled or removed.
        issuer: the OpenID provider that vouches for the person; None without one.
        subject: who the person is there; None without one.
        may_break_glass: whether the person may take emergency access.
        created_at: when it was made.
        changed_at: when somebody else has last changed it, or what it signs in with.
        changed_by: the account that did so.
        revision: counts its changes.
    """

    name: str
    kind: str
    role: str
    state: str
    issuer: str | None
    subject: str | None
    may_break_glass: bool
    created_at: int
    changed_at: int
    changed_by: str
    revision: int


def row_of(account: Account) -> AccountRow:
    """The account, detached from its session."""
    return AccountRow(
        account.name, account.kind, account.role, account.state, account.issuer, account.subject, account.may_break_glass,
        account.created_at, account.changed_at, account.changed_by, account.revision,
    )  # fmt: skip


def listed(session: Session, after: str = "", limit: int | None = None) -> list[AccountRow]:
    """Accounts by name, behind one name, at most so many."""
    query = select(Account).where(Account.name > after).order_by(Account.name).limit(limit)
    return [row_of(row) for row in session.scalars(query)]


def known(session: Session, name: str) -> Account:
    """The account with this name.

    Raises:
        NotFound: there is none.
    """
    account = session.get(Account, name)
    if account is None:
        raise NotFound(f"there is no account {name!r}; 'license-server accounts list' lists them")
    return account


def begin_change(session: Session, name: str) -> Account:
    """The account with this name, for a change: nobody else changes any account until the transaction ends.

    Raises:
        NotFound: there is none.
        Conflict: it was removed.
    """
    next_number(session, COUNTER)
    account = session.get(Account, name, populate_existing=True)
    if account is None:
        raise NotFound(f"there is no account {name!r}; 'license-server accounts list' lists them")
    if account.state == REMOVED:
        raise Conflict(f"account {name!r} was removed for good; make another one, with another name")
    return account


def note_change(account: Account, by: str, now: int) -> None:
    """Notes who has changed an account, or what it signs in with.

    What a person changes of their own account is counted only: it must not hide that somebody else has just changed it.
    """
    account.revision += 1
    if by != account.name:
        account.changed_at, account.changed_by = now, by


def create(session: Session, name: str, kind: str, role: Role, by: str, now: int) -> AccountRow:
    """Makes an account. It cannot sign in before it has a certificate, a token or a subject.

    Args:
        session: of a writing transaction.
        name: in the form of `NAME`.
        kind: person or program.
        role: what it may do.
        by: who makes it.
        now: seconds since 1970 UTC.

    Raises:
        Invalid: name or kind is not allowed, or a program would be administrator.
        Conflict: an account has, or had, this name.
    """
    if not re.fullmatch(NAME, name) or name == LOCAL:
        raise Invalid(
            f"{name!r} cannot be an account's name: write 1 to 64 characters of a-z, 0-9 and . _ @ -, with a letter or digit "
            "at both ends; 'local' is not allowed"
        )
    if kind not in KINDS:
        raise Invalid(f"an account is of a person or a program, not {kind!r}")
    _check_role(kind, role)
    next_number(session, COUNTER)
    if session.get(Account, name) is not None:
        raise Conflict(f"an account {name!r} exists, or has existed; choose another name")
    account = Account(
        name=name, kind=kind, role=role.value, state=ACTIVE, may_break_glass=False, created_at=now, changed_at=now,
        changed_by=by, revision=1,
    )  # fmt: skip
    session.add(account)
    audit.record(session, "admin", "account.made", "ok", now, name=name, kind=kind, role=role.value)
    return row_of(account)


def change(
    session: Session,
    name: str,
    by: str,
    now: int,
    role: Role | None = None,
    state: str | None = None,
    may_break_glass: bool | None = None,
) -> AccountRow:
    """Changes an account's role or state, and whether the person may take emergency access.

    Args:
        session: of a writing transaction.
        name: of the account.
        by: who changes it.
        now: seconds since 1970 UTC.
        role: the new role; None leaves it.
        state: active, disabled or removed; None leaves it. A removed account stays removed.
        may_break_glass: None leaves it.

    Raises:
        NotFound: there is no such account.
        Conflict: it was removed, or it is the last administrator.
        Invalid: the state or role is not allowed.
    """
    account = begin_change(session, name)
    if state is not None and state not in (ACTIVE, DISABLED, REMOVED):
        raise Invalid(f"the state of an account is active, disabled or removed, not {state!r}")
    before = (account.role, account.state)
    new_role = Role(account.role) if role is None else role
    _check_role(account.kind, new_role)
    new_state = account.state if state is None else state
    if _is_administrator(account) and (new_role is not Role.ADMINISTRATOR or new_state != ACTIVE):
        if count_administrators(session) <= 1:
            raise Conflict(
                f"account {name!r} is the last administrator: make another person administrator first, then change this one"
            )
    if may_break_glass is not None:
        if may_break_glass and account.kind != PERSON:
            raise Invalid(f"account {name!r} is a program's: only people take emergency access")
        account.may_break_glass = may_break_glass
    account.role, account.state = new_role.value, new_state
    if new_state == REMOVED:
        account.issuer = account.subject = None
    note_change(account, by, now)
    fields = {"role": new_role.value, "state": new_state, "was": list(before), "may_break_glass": account.may_break_glass}
    audit.record(session, "admin", "account.changed", "ok", now, name=name, **fields)
    return row_of(account)


def set_subject(session: Session, name: str, issuer: str | None, subject: str | None, by: str, now: int) -> AccountRow:
    """Says who a person is at an OpenID provider; None for both ends that.

    Raises:
        NotFound: there is no such account.
        Conflict: it was removed, or another account has this subject.
        Invalid: it is a program's account, or only one of the two is given.
    """
    account = begin_change(session, name)
    if account.kind != PERSON:
        raise Invalid(f"account {name!r} is a program's: programs sign in with tokens")
    if (issuer is None) != (subject is None):
        raise Invalid("give issuer and subject, or neither")
    if issuer is not None and subject is not None:
        providers.check_issuer(issuer)
        if not re.fullmatch(providers.SUBJECT, subject):
            raise Invalid("a subject has 1 to 255 ASCII characters: it is the claim 'sub' of the person's tokens")
        other = session.scalar(select(Account.name).where(Account.issuer == issuer, Account.subject == subject))
        if other is not None and other != name:
            raise Conflict(f"account {other!r} has this subject; end that first")
    account.issuer, account.subject = issuer, subject
    note_change(account, by, now)
    audit.record(session, "admin", "account.subject", "ok", now, name=name, set=issuer is not None)
    return row_of(account)


def count_administrators(session: Session) -> int:
    """How many people are administrators and active."""
    query = select(func.count()).select_from(Account)
    mine = (Account.role == Role.ADMINISTRATOR.value, Account.kind == PERSON, Account.state == ACTIVE)
    return session.scalar(query.where(*mine)) or 0


def has_administrators(session: Session, now: int) -> bool:
    """Whether somebody could sign in as administrator: an active person with a certificate that counts, or with a subject at
    the OpenID provider that is in use.
    """
    mine = (Account.role == Role.ADMINISTRATOR.value, Account.kind == PERSON, Account.state == ACTIVE)
    counts = (
        select(AccountCertificate.fingerprint)
        .where(AccountCertificate.account == Account.name, AccountCertificate.state == ACTIVE)
        .where(AccountCertificate.not_after > now)
        .exists()
    )
    provider = providers.present(session)
    vouched = () if provider is None else (and_(Account.issuer == provider.issuer, Account.subject.is_not(None)),)
    return session.scalar(select(Account.name).where(*mine, or_(counts, *vouched)).limit(1)) is not None


def _is_administrator(account: Account) -> bool:
    return (account.role, account.kind, account.state) == (Role.ADMINISTRATOR.value, PERSON, ACTIVE)


def _check_role(kind: str, role: Role) -> None:
    if kind == PROGRAM and role is Role.ADMINISTRATOR:
        raise Invalid("a program cannot be administrator: give it the role that it needs, and tokens with scopes")
