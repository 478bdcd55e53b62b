"""Makes, replaces, revokes and looks up what devices identify themselves with. The registry has SHA-256 digests only.

A target token is one device's, `ddt_…`; a gateway token is for every device of one fleet, `ddg_…`. Both are random, so a digest
without a salt is enough, and looking one up by its digest tells nobody how much of a guess was right.
"""

import base64
import hashlib
import secrets
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from server.base.errors import Conflict, Invalid, NotFound
from server.fleet.devices.registry import DDI
from server.fleet.fleets.membership import is_member
from server.keys.keyring import Keyring
from server.keys.pki import fingerprint_of, key_of_csr, make_device_certificate, pem_of
from server.registry import audit
from server.registry.models.ddi import DdiCredential
from server.registry.models.fleets import Device, Fleet

from .devices import ACTIVE, required

DAY_S = 86_400
REVOKED = "revoked"
CERTIFICATE_LIFETIME_S = 366 * DAY_S
MAX_OVERLAP_S = 30 * DAY_S
OVERLAP_S = 7 * DAY_S
MAX_CREDENTIALS = 8
"""That count, of one device or one fleet."""


class Kind(StrEnum):
    """What it is."""

    CERTIFICATE = "certificate"
    TARGET = "target"
    GATEWAY = "gateway"


PREFIXES = {Kind.TARGET: "ddt_", Kind.GATEWAY: "ddg_"}


@dataclass(frozen=True, slots=True)
class CredentialRow:
    """One of them, never a token's text. Times are seconds since 1970 UTC."""

    credential_id: str
    kind: str
    device_id: str | None
    fleet_id: str | None
    state: str
    created_at: int
    expires_at: int | None


@dataclass(frozen=True, slots=True)
class Made:
    """A new token: the only time that its text is known."""

    credential_id: str
    text: str


def digest_of(text: str) -> str:
    """What the registry has of a token."""
    return hashlib.sha256(text.encode()).hexdigest()


def looks_like(kind: Kind, text: str) -> bool:
    """Whether a text may be a token of a kind: no other is looked up."""
    return text.startswith(PREFIXES[kind]) and len(text) == len(PREFIXES[kind]) + 43


# To look up


def admits(session: Session, kind: Kind, digest: str, device_id: str, now: int) -> bool:
    """Whether a credential counts for a device at this moment: asked for each request, so what was revoked counts no more.

    Args:
        session: of a transaction.
        kind: what the device has shown.
        digest: of it.
        device_id: the id in the request's path.
        now: seconds since 1970 UTC.
    """
    row = session.execute(
        select(DdiCredential, Device.blocked_at)
        .join(Device, Device.id == device_id)
        .where(DdiCredential.digest == digest, DdiCredential.kind == kind.value, Device.kind == DDI)
    ).first()
    if row is None:
        return False
    found, blocked_at = row
    if blocked_at is not None or found.state != ACTIVE or (found.expires_at is not None and found.expires_at <= now):
        return False
    if kind is Kind.GATEWAY:
        fleet = session.get(Fleet, found.fleet_id)
        return fleet is not None and is_member(session, fleet, device_id)
    return bool(found.device_id == device_id)


# To make


def make_target(session: Session, device_id: str, now: int, overlap_s: int = 0) -> Made:
    """Makes a device's token; its former tokens end after `overlap_s` seconds.

    Raises:
        NotFound: there is no such device.
        Conflict: it has too many.
        Invalid: the overlap is too long.
    """
    required(session, device_id, lock=True)
    return _make(session, Kind.TARGET, device_id, None, now, overlap_s)


def make_gateway(session: Session, fleet_id: str, now: int, overlap_s: int = OVERLAP_S) -> Made:
    """Makes a token for the devices of a fleet; the fleet's former ones end after `overlap_s` seconds.

    Raises:
        NotFound: there is no such fleet.
        Conflict: it has too many.
        Invalid: the overlap is too long.
    """
    if session.get(Fleet, fleet_id, with_for_update=True) is None:
        raise NotFound(f"there is no fleet {fleet_id!r}; 'license-server fleets list' lists them")
    return _make(session, Kind.GATEWAY, None, fleet_id, now, overlap_s)


def _make(session: Session, kind: Kind, device_id: str | None, fleet_id: str | None, now: int, overlap_s: int) -> Made:
    if not 0 <= overlap_s <= MAX_OVERLAP_S:
        raise Invalid(f"the former token may count for 0 to {MAX_OVERLAP_S} s more, not {overlap_s} s")
    mine = (
        DdiCredential.kind == kind.value, DdiCredential.device_id == device_id, DdiCredential.fleet_id == fleet_id,
        DdiCredential.state == ACTIVE, or_(DdiCredential.expires_at.is_(None), DdiCredential.expires_at > now),
    )  # fmt: skip
    if (session.scalar(select(func.count()).select_from(DdiCredential).where(*mine)) or 0) >= MAX_CREDENTIALS:
        raise Conflict(f"{MAX_CREDENTIALS} tokens count here, which is the limit: revoke those that nobody uses")
    for former in session.scalars(select(DdiCredential).where(*mine)):
        former.expires_at = min(now + overlap_s, former.expires_at or now + overlap_s)
    text = PREFIXES[kind] + secrets.token_urlsafe(32)
    made = DdiCredential(
        id=base64.b32encode(secrets.token_bytes(8)).decode("ascii").lower()[:12], kind=kind.value, digest=digest_of(text),
        device_id=device_id, fleet_id=fleet_id, state=ACTIVE, created_at=now, expires_at=None,
    )  # fmt: skip
    session.add(made)
    audit.record(
        session, "admin", "ddi.token_made", "ok", now, kind=kind.value, token=made.id, device=device_id, fleet=fleet_id
    )
    return Made(made.id, text)


def issue(session: Session, keyring: Keyring, device_id: str, csr_pem: str, now: int) -> tuple[str, ...]:
    """Issues a device's client certificate; returns it and the issuing CA's, in PEM. Former ones count until they end.

    Args:
        session: of a writing transaction.
        keyring: has the issuing CA.
        device_id: the holder.
        csr_pem: a certificate request (PKCS #10) for a P-256 key.
        now: seconds since 1970 UTC.

    Raises:
        NotFound: there is no such device.
        RequestRefused: it is not such a request.
    """
    required(session, device_id, lock=True)
    key = key_of_csr(csr_pem)
    ca, ca_key = keyring.issuing_ca(session)
    until = min(now + CERTIFICATE_LIFETIME_S, int(ca.not_valid_after_utc.timestamp()))
    made = make_device_certificate(key, ca, ca_key, device_id, now, until)
    digest = fingerprint_of(made)
    session.add(
        DdiCredential(
            id=digest, kind=Kind.CERTIFICATE.value, digest=digest, device_id=device_id, fleet_id=None, state=ACTIVE,
            created_at=now, expires_at=until,
        )
    )  # fmt: skip
    number = f"{made.serial_number:x}"
    audit.record(session, "admin", "ddi.certificate_issued", "ok", now, device=device_id, certificate=number)
    return pem_of(made), pem_of(ca)


# To revoke and list


def revoke(session: Session, credential_id: str, now: int) -> CredentialRow:
    """Revokes a token or certificate; it is refused from the next request on.

    Raises:
        NotFound: there is none of that id.
        Conflict: it is revoked.
    """
    row = session.get(DdiCredential, credential_id, with_for_update=True)
    if row is None:
        raise NotFound(
            f"there is no token or certificate {credential_id!r}; 'license-server ddi credentials list' has their ids"
        )
    if row.state == REVOKED:
        raise Conflict(f"{credential_id!r} is revoked already")
    row.state = REVOKED
    audit.record(
        session, "admin", "ddi.revoked", "ok", now, kind=row.kind, credential=row.id, device=row.device_id, fleet=row.fleet_id
    )
    return row_of(row)


def revoke_all(session: Session, device_id: str, now: int) -> int:
    """Revokes all tokens and certificates of a device that count; returns how many. Raises NotFound."""
    required(session, device_id, lock=True)
    mine = select(DdiCredential).where(DdiCredential.device_id == device_id, DdiCredential.state == ACTIVE)
    rows = session.scalars(mine.order_by(DdiCredential.id).with_for_update()).all()
    for row in rows:
        row.state = REVOKED
    audit.record(session, "admin", "ddi.all_revoked", "ok", now, device=device_id, count=len(rows))
    return len(rows)


def row_of(row: DdiCredential) -> CredentialRow:
    """The credential, detached from its session."""
    return CredentialRow(row.id, row.kind, row.device_id, row.fleet_id, row.state, row.created_at, row.expires_at)


def listed(session: Session, device_id: str | None, fleet_id: str | None, after: str, limit: int) -> list[CredentialRow]:
    """Credentials in the order of their ids: of a device, of a fleet, or all."""
    query = select(DdiCredential).where(DdiCredential.id > after).order_by(DdiCredential.id).limit(limit)
    if device_id is not None:
        query = query.where(DdiCredential.device_id == device_id)
    if fleet_id is not None:
        query = query.where(DdiCredential.fleet_id == fleet_id)
    return [row_of(row) for row in session.scalars(query)]
