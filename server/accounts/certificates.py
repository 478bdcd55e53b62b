"""Issues and revokes the client certificates of people, by the server's operator CA. Another CA issues those of agents."""

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from server.base.errors import Conflict, Invalid, NotFound
from server.base.refused import RequestRefused
from server.keys.keyring import Keyring
from server.keys.lifecycle import KeyLifecycle
from server.keys.pki import fingerprint_of, key_of_csr, make_operator_certificate, pem_of
from server.registry import audit
from server.registry.database import next_number
from server.registry.models.operators import AccountCertificate

from . import accounts

DAY_S = 86_400
DEFAULT_LIFETIME_S = 180 * DAY_S
MIN_LIFETIME_S, MAX_LIFETIME_S = 3600, 400 * DAY_S
MAX_CERTIFICATES = 10
"""Certificates of an account that count."""
ACTIVE, REVOKED = "active", "revoked"


@dataclass(frozen=True, slots=True)
class CertificateRow:
    """A certificate of an account. Times are seconds since 1970 UTC.

    Attributes:
        fingerprint: SHA-256 of its DER, in hex.
        account: whose it is.
        number: its serial number, in hex.
        state: active or revoked.
        issued_at: when it was issued.
        not_after: when it ends.
        used_at: its last use; None before the first.
    """

    fingerprint: str
    account: str
    number: str
    state: str
    issued_at: int
    not_after: int
    used_at: int | None


@dataclass(frozen=True, slots=True)
class Issued:
    """A new certificate: its row, and its PEM."""

    row: CertificateRow
    pem: str


def row_of(row: AccountCertificate) -> CertificateRow:
    """The certificate, detached from its session."""
    return CertificateRow(row.fingerprint, row.account, row.number, row.state, row.issued_at, row.not_after, row.used_at)


def issue(
    session: Session,
    keyring: Keyring,
    lifecycle: KeyLifecycle,
    name: str,
    csr_pem: str,
    lifetime_s: int,
    by: str,
    now: int,
) -> Issued:
    """Issues a certificate for the key of a certificate request. Nothing else of the request counts.

    Args:
        session: of a writing transaction.
        keyring: has the operator CA.
        lifecycle: makes it when it is first needed.
        name: of the account.
        csr_pem: PKCS #10 in PEM, for a P-256 key.
        lifetime_s: seconds until it ends; the CA's end comes first.
        by: who asks for it.
        now: seconds since 1970 UTC.

    Raises:
        NotFound: there is no such account.
        Conflict: it was removed, or has too many certificates.
        Invalid: the account is a program's, or the request or the lifetime is not allowed.
    """
    account = accounts.begin_change(session, name)
    if account.kind != accounts.PERSON:
        raise Invalid(f"account {name!r} is a program's: make a token for it")
    if not MIN_LIFETIME_S <= lifetime_s <= MAX_LIFETIME_S:
        raise Invalid(f"a certificate lasts from {MIN_LIFETIME_S} to {MAX_LIFETIME_S} s, not {lifetime_s} s")
    mine = (AccountCertificate.account == name, AccountCertificate.state == ACTIVE, AccountCertificate.not_after > now)
    if (session.scalar(select(func.count()).select_from(AccountCertificate).where(*mine)) or 0) >= MAX_CERTIFICATES:
        raise Conflict(f"account {name!r} has {MAX_CERTIFICATES} certificates, which is the limit; revoke those of lost keys")
    key = _key_of(csr_pem)
    lifecycle.require_operator_ca(session, now)
    ca, ca_key = keyring.operator_ca(session)
    until = min(now + lifetime_s, int(ca.not_valid_after_utc.timestamp()))
    made = make_operator_certificate(key, ca, ca_key, name, now, until)
    row = AccountCertificate(
        fingerprint=fingerprint_of(made),
        account=name,
        number=f"{made.serial_number:x}",
        state=ACTIVE,
        issued_at=now,
        not_after=until,
    )
    session.add(row)
    accounts.note_change(account, by, now)
    audit.record(session, "admin", "account.certificate", "ok", now, name=name, certificate=row.number, until=until)
    return Issued(row_of(row), pem_of(made))


def revoke(session: Session, fingerprint: str, by: str, now: int) -> CertificateRow:
    """Revokes a certificate at once, for good. Raises NotFound."""
    next_number(session, accounts.COUNTER)
    row = _known(session, fingerprint)
    row.state = REVOKED
    accounts.note_change(accounts.known(session, row.account), by, now)
    audit.record(session, "admin", "account.certificate", "revoked", now, name=row.account, certificate=row.number)
    return row_of(row)


def listed(session: Session, name: str, after: str = "", limit: int | None = None) -> list[CertificateRow]:
    """An account's certificates, by fingerprint.

    Raises:
        NotFound: there is no such account.
    """
    accounts.known(session, name)
    query = select(AccountCertificate).where(AccountCertificate.account == name, AccountCertificate.fingerprint > after)
    return [row_of(row) for row in session.scalars(query.order_by(AccountCertificate.fingerprint).limit(limit))]


def _known(session: Session, fingerprint: str) -> AccountCertificate:
    row = session.get(AccountCertificate, fingerprint)
    if row is None:
        raise NotFound(f"no account has the certificate {fingerprint[:64]!r}; list those of the account")
    return row


def _key_of(csr_pem: str) -> ec.EllipticCurvePublicKey:
    try:
        return key_of_csr(csr_pem)
    except RequestRefused as refused:
        raise Invalid(refused.text) from None
