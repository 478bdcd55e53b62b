"""Makes, replaces and revokes the tokens of programs. The registry has their SHA-256 only.

A token's text is `lsp_ID_SECRET`: the prefix lets scanners find one that was published, the id says which one it is. A program
may replace its own token, and so may who has stolen it: to revoke a token ends all of its line, which begins with the one that
an administrator made.
"""

import base64
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from server.base.errors import Conflict, Invalid, NotFound
from server.registry import audit
from server.registry.database import next_number
from server.registry.models.operators import Account, AccountToken

from . import accounts
from .roles import SCOPES

PREFIX = "lsp_"
DAY_S = 86_400
DEFAULT_LIFETIME_S = 90 * DAY_S
MIN_LIFETIME_S, MAX_LIFETIME_S = 60, 366 * DAY_S
MAX_OVERLAP_S = 30 * DAY_S
MAX_TOKENS = 20
"""Tokens of an account that count."""
USE_NOTED_S = 60
"""How exact the last use is: a token that is used all the time is written down once a minute."""
ACTIVE, REVOKED = "active", "revoked"
_TEXT = re.compile(r"lsp_([a-z2-7]{12})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token as operators see it; never its text. Times are seconds since 1970 UTC.

    `origin` is the token that it came from by replacing, at first; None if an administrator made it.
    """

    token_id: str
    account: str
    scopes: tuple[str, ...]
    state: str
    created_at: int
    expires_at: int
    used_at: int | None
    origin: str | None


@dataclass(frozen=True, slots=True)
class Made:
    """A new token: the only time that its text is known."""

    text: str
    row: TokenRow


def row_of(token: AccountToken) -> TokenRow:
    """The token, detached from its session."""
    return TokenRow(
        token.id, token.account, tuple(json.loads(token.scopes)), token.state, token.created_at, token.expires_at,
        token.used_at, token.origin,
    )  # fmt: skip


def make(session: Session, name: str, scopes: Iterable[str], lifetime_s: int, by: str, now: int) -> Made:
    """Makes a token for a program.

    Args:
        session: of a writing transaction.
        name: of the account.
        scopes: what it may be used for, of `roles.SCOPES`.
        lifetime_s: seconds until it expires.
        by: who makes it.
        now: seconds since 1970 UTC.

    Raises:
        NotFound: there is no such account.
        Conflict: the account was removed, or has too many tokens.
        Invalid: a scope or the lifetime is not allowed, or the account is a person's.
    """
    account = accounts.begin_change(session, name)
    if account.kind != accounts.PROGRAM:
        raise Invalid(f"account {name!r} is a person's: people sign in with a certificate or OpenID Connect, not with tokens")
    wanted = sorted(set(scopes))
    if not wanted or not SCOPES.issuperset(wanted):
        unknown = ", ".join(each[:40] for each in wanted if each not in SCOPES) or "no scope"
        raise Invalid(f"{unknown}: give at least one of the scopes {', '.join(sorted(SCOPES))}")
    if not MIN_LIFETIME_S <= lifetime_s <= MAX_LIFETIME_S:
        raise Invalid(f"a token lasts from {MIN_LIFETIME_S} to {MAX_LIFETIME_S} s, not {lifetime_s} s")
    _check_room(session, name, now)
    return _make(session, account, tuple(wanted), lifetime_s, by, now, None)


def _check_room(session: Session, name: str, now: int) -> None:
    mine = (AccountToken.account == name, AccountToken.state == ACTIVE, AccountToken.expires_at > now)
    if (session.scalar(select(func.count()).select_from(AccountToken).where(*mine)) or 0) >= MAX_TOKENS:
        raise Conflict(f"account {name!r} has {MAX_TOKENS} tokens, which is the limit; revoke those that nobody uses")


def _make(
    session: Session, account: Account, scopes: tuple[str, ...], lifetime_s: int, by: str, now: int, after: AccountToken | None
) -> Made:
    token_id = base64.b32encode(secrets.token_bytes(8)).decode("ascii").lower()[:12]
    text = f"{PREFIX}{token_id}_{secrets.token_urlsafe(32)}"
    token = AccountToken(
        id=token_id,
        account=account.name,
        digest=_digest(text),
        scopes=json.dumps(scopes),
        state=ACTIVE,
        created_at=now,
        expires_at=now + lifetime_s,
        origin=None if after is None else after.origin or after.id,
    )
    session.add(token)
    accounts.note_change(account, by, now)
    audit.record(
        session, "admin", "token.made", "ok", now, name=account.name, token=token_id, scopes=list(scopes),
        replaces=None if after is None else after.id,
    )  # fmt: skip
    return Made(text, row_of(token))


def rotate(session: Session, token_id: str, overlap_s: int, by: str, now: int) -> Made:
    """Makes a token in place of another one, which goes on working for `overlap_s` seconds, with the same scopes and lifetime.

    Raises:
        NotFound: there is no such token.
        Conflict: it does not count any more, its account was removed, or has `MAX_TOKENS`.
        Invalid: the overlap is too long.
    """
    if not 0 <= overlap_s <= MAX_OVERLAP_S:
        raise Invalid(f"the old token may go on for 0 to {MAX_OVERLAP_S} s, not {overlap_s} s")
    token = _known(session, token_id)
    account = accounts.begin_change(session, token.account)
    session.refresh(token)
    if token.state != ACTIVE or token.expires_at <= now:
        raise Conflict(f"token {token_id} has been revoked or has expired: make a new one")
    if overlap_s:
        _check_room(session, account.name, now)
    made = _make(session, account, tuple(json.loads(token.scopes)), token.expires_at - token.created_at, by, now, token)
    token.expires_at = min(token.expires_at, now + overlap_s)
    return made


def revoke(session: Session, token_id: str, by: str, now: int) -> TokenRow:
    """Revokes a token at once, for good, and with it all of its line: those that it came from and those made from it.

    Raises:
        NotFound: there is no such token.
    """
    next_number(session, accounts.COUNTER)
    token = _known(session, token_id)
    account = accounts.known(session, token.account)
    first = token.origin or token.id
    line = AccountToken.account == account.name, or_(AccountToken.id == first, AccountToken.origin == first)
    active = select(AccountToken).where(*line, AccountToken.state == ACTIVE).order_by(AccountToken.id)
    ended = list(session.scalars(active.execution_options(populate_existing=True)))
    for each in ended:
        each.state = REVOKED
    accounts.note_change(account, by, now)
    others = [each.id for each in ended if each.id != token_id]
    audit.record(session, "admin", "token.revoked", "ok", now, name=token.account, token=token_id, with_it=others)
    return row_of(token)


def listed(session: Session, name: str, after: str = "", limit: int | None = None) -> list[TokenRow]:
    """An account's tokens, by id.

    Raises:
        NotFound: there is no such account.
    """
    accounts.known(session, name)
    query = select(AccountToken).where(AccountToken.account == name, AccountToken.id > after)
    return [row_of(token) for token in session.scalars(query.order_by(AccountToken.id).limit(limit))]


def find(session: Session, text: str, now: int) -> AccountToken | None:
    """The token with this text; None if there is none, or it does not count any more."""
    parts = _TEXT.fullmatch(text)
    token = None if parts is None else session.get(AccountToken, parts[1])
    if token is None or not hmac.compare_digest(token.digest, _digest(text)):
        return None
    return token if token.state == ACTIVE and now < token.expires_at else None


def account_of(session: Session, token_id: str) -> str:
    """The name of the account that a token is for. Raises NotFound."""
    return _known(session, token_id).account


def _known(session: Session, token_id: str) -> AccountToken:
    token = session.get(AccountToken, token_id)
    if token is None:
        raise NotFound(f"there is no token {token_id!r}; 'license-server accounts tokens NAME' lists those of an account")
    return token


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
