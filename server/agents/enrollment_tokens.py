"""Claims, with which devices are provisioned, and the attempts that are under way."""

import hashlib
import secrets
from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from contracts.exchange import RefusalCode
from server.base.errors import RegistryError
from server.base.refused import RequestRefused
from server.registry.audit import Audit
from server.registry.cipher import Cipher
from server.registry.database import Database
from server.registry.models import EnrollmentToken, ProvisioningAttempt

SESSION_S = 600
DEFAULT_LIFETIME_S = 7 * 86_400


@dataclass(frozen=True, slots=True)
class EnrollmentTokenRow:
    """A claim as administrators see it. Times are seconds since 1970 UTC."""

    claim_id: int
    hw_id: str | None
    state: str
    factory_only: bool
    agent_id: str | None
    created_at: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt to be provisioned.

    Attributes:
        claim_id: the claim that was used.
        begin: the first step's request, JSON.
        nonce: that the keys must be certified with.
        credential: the secret that only that TPM opens; None for software.
    """

    claim_id: int
    begin: bytes
    nonce: bytes
    credential: bytes | None

    def __repr__(self) -> str:
        return f"<attempt with claim {self.claim_id}>"


def digest_of(text: str) -> str:
    """The SHA-256 of a token, in hex: what the registry keeps. A token is long and random, so it needs no salt."""
    return hashlib.sha256(text.encode()).hexdigest()


def _refused(text: str) -> RequestRefused:
    return RequestRefused(RefusalCode.CLAIM_REFUSED, text)


def spend(session: Session, claim_id: int, hw_id: str, agent_id: str, now: int) -> str:
    """Uses a claim within a transaction; returns the status that it gives.

    Raises:
        RequestRefused: it has ended meanwhile, or belongs to another device.
    """
    claim = session.get(EnrollmentToken, claim_id, with_for_update=True)
    if claim is None or claim.state == "revoked" or claim.expires_at <= now or claim.hw_id != hw_id:
        raise _refused("the claim does not count any more")
    claim.state, claim.agent_id = "used", agent_id
    return "factory_only" if claim.factory_only else "active"


class EnrollmentTokens:
    """Acts on claims.

    Args:
        database: of the registry.
        cipher: seals what only the server may know of an attempt.
        audit: records.
    """

    def __init__(self, database: Database, cipher: Cipher, audit: Audit) -> None:
        self._database = database
        self._cipher = cipher
        self._audit = audit

    def create(self, hw_id: str | None, factory_only: bool, lifetime_s: int, now: int) -> str:
        """A new claim's text; only its digest is kept.

        Args:
            hw_id: the device that may use it; None binds it to the first one that does.
            factory_only: its agent is for the factory's tests: it gets no licenses.
            lifetime_s: seconds until it ends.
            now: when.
        """
        text = secrets.token_urlsafe(24)
        with self._database.transaction() as session:
            row = EnrollmentToken(
                digest=digest_of(text),
                hw_id=hw_id,
                state="open",
                factory_only=factory_only,
                created_at=now,
                expires_at=now + lifetime_s,
            )
            session.add(row)
            session.flush()
            self._audit.record("admin", "claim.made", "ok", now, session=session, claim=row.id, hw_id=hw_id)
        return text

    def use(self, text: str, hw_id: str, now: int) -> int:
        """The id of a claim that this device may use; it may use it again until its end.

        Raises:
            RequestRefused: there is no such claim, or it is not for this device.
        """
        with self._database.transaction() as session:
            row = session.scalars(
                select(EnrollmentToken).where(EnrollmentToken.digest == digest_of(text)).with_for_update()
            ).first()
            if row is None or row.state == "revoked":
                raise _refused("there is no such claim")
            if row.expires_at <= now:
                raise _refused("the claim has ended: have another one made ('license-server claim make')")
            if row.hw_id is None:
                row.hw_id = hw_id
                self._audit.record(f"device {hw_id[:16]}", "claim.bound", "ok", now, session=session, claim=row.id)
            elif row.hw_id != hw_id:
                raise _refused("the claim is for another device")
            return row.id

    def listed(self) -> list[EnrollmentTokenRow]:
        """All claims, the newest first; never their texts."""
        with self._database.reading() as session:
            rows = session.scalars(select(EnrollmentToken).order_by(EnrollmentToken.id.desc())).all()
        return [
            EnrollmentTokenRow(row.id, row.hw_id, row.state, row.factory_only, row.agent_id, row.created_at, row.expires_at)
            for row in rows
        ]

    def revoke(self, claim_id: int, now: int) -> None:
        """Ends a claim. Raises RegistryError if there is none with that number."""
        with self._database.transaction() as session:
            row = session.get(EnrollmentToken, claim_id, with_for_update=True)
            if row is None:
                raise RegistryError(f"there is no claim {claim_id}; 'license-server claim list' lists them")
            row.state = "revoked"
            self._audit.record("admin", "claim.revoked", "ok", now, session=session, claim=claim_id)

    def start_attempt(
        self, session_id: str, claim_id: int, begin: bytes, nonce: bytes, credential: bytes | None, now: int
    ) -> None:
        """Keeps an attempt for ten minutes."""
        sealed = None
        if credential is not None:
            sealed = self._cipher.seal("provision_session", session_id, "sealed", credential)
        with self._database.transaction() as session:
            session.execute(delete(ProvisioningAttempt).where(ProvisioningAttempt.expires_at <= now))
            session.add(
                ProvisioningAttempt(
                    id=session_id, claim_id=claim_id, begin=begin, nonce=nonce, sealed=sealed, expires_at=now + SESSION_S
                )
            )

    def attempt(self, session_id: str, now: int) -> Attempt:
        """An attempt that is under way.

        Raises:
            RequestRefused: there is none with that name any more.
        """
        with self._database.reading() as session:
            row = session.get(ProvisioningAttempt, session_id)
            if row is None or row.expires_at <= now:
                raise _refused("the attempt took too long: run 'license-agent-cli provision' again")
            credential = None
            if row.sealed is not None:
                credential = self._cipher.open("provision_session", row.id, "sealed", row.sealed)
            return Attempt(row.claim_id, row.begin, row.nonce, credential)
