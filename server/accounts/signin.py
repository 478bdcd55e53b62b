"""Finds the account that a credential belongs to, for each request: what was revoked a moment ago does not count."""

import json
from dataclasses import dataclass

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from server.registry.models.operators import Account, AccountCertificate, AccountToken

from . import breakglass, certificates, tokens
from . import provider as providers
from .accounts import ACTIVE, PERSON
from .roles import Role

CERTIFICATE, TOKEN, OIDC = "certificate", "token", "oidc"


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Who asks.

    Attributes:
        account: its name.
        kind: person or program.
        role: of the account.
        via: certificate, token or oidc.
        credential: the certificate's fingerprint, the token's id, or issuer and subject.
        scopes: what the token is limited to; None for everything that the role allows.
        break_glass: the id of the account's emergency access; None without one.
        use_due: whether the last use should be noted (`note_use`).
    """

    account: str
    kind: str
    role: Role
    via: str
    credential: str
    scopes: frozenset[str] | None
    break_glass: str | None = None
    use_due: bool = False


def by_certificate(session: Session, fingerprint: str, now: int) -> SignedIn | None:
    """Who has a certificate that the TLS layer has verified; None if it does not count any more."""
    row = session.get(AccountCertificate, fingerprint)
    if row is None or row.state != certificates.ACTIVE or now >= row.not_after:
        return None
    return _signed_in(session, row.account, CERTIFICATE, fingerprint, now, used_at=row.used_at)


def by_token(session: Session, text: str, now: int) -> SignedIn | None:
    """Who has a token; None if there is no such token, or it does not count any more."""
    row = tokens.find(session, text, now)
    if row is None:
        return None
    return _signed_in(session, row.account, TOKEN, row.id, now, frozenset(json.loads(row.scopes)), used_at=row.used_at)


def by_subject(session: Session, issuer: str, subject: str, now: int) -> SignedIn | None:
    """Whom an OpenID provider has vouched for; None if no account is that person's."""
    mine = (Account.issuer == issuer, Account.subject == subject, Account.kind == PERSON)
    name = session.scalar(select(Account.name).where(*mine))
    return None if name is None else _signed_in(session, name, OIDC, _vouched(issuer, subject), now, used_at=now)


def still_counts(session: Session, account: Account, credential: str, now: int) -> bool:
    """Whether a person could sign in now with a certificate, or a subject at the provider, as they did before."""
    if account.state != ACTIVE:
        return False
    certificate = session.get(AccountCertificate, credential)
    if certificate is not None:
        return certificate.account == account.name and certificate.state == certificates.ACTIVE and now < certificate.not_after
    provider = providers.present(session)
    if provider is None or account.issuer != provider.issuer or account.subject is None:
        return False
    return credential == _vouched(account.issuer, account.subject)


def _vouched(issuer: str, subject: str) -> str:
    return f"{issuer} {subject}"


def note_use(session: Session, who: SignedIn, now: int) -> None:
    """Notes when a credential was used last."""
    if who.via == TOKEN:
        due = or_(AccountToken.used_at.is_(None), AccountToken.used_at < now)
        session.execute(update(AccountToken).where(AccountToken.id == who.credential, due).values(used_at=now))
    elif who.via == CERTIFICATE:
        due = or_(AccountCertificate.used_at.is_(None), AccountCertificate.used_at < now)
        mine = AccountCertificate.fingerprint == who.credential
        session.execute(update(AccountCertificate).where(mine, due).values(used_at=now))


def _signed_in(
    session: Session,
    name: str,
    via: str,
    credential: str,
    now: int,
    scopes: frozenset[str] | None = None,
    used_at: int | None = None,
) -> SignedIn | None:
    account = session.get(Account, name)
    if account is None or account.state != ACTIVE:
        return None
    emergency = breakglass.present(session, name, now) if account.kind == PERSON else None
    due = used_at is None or used_at <= now - tokens.USE_NOTED_S
    return SignedIn(name, account.kind, Role(account.role), via, credential, scopes, emergency, due)
