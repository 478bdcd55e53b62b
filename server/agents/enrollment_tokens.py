"""Makes and checks enrollment tokens, with which devices are provisioned, and keeps the attempts that use them.

On the wire, in the database and in the audit log a token is called `claim`.
"""

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from contracts.exchange import RefusalCode
from server.base.errors import NotFound
from server.base.refused import RequestRefused
from server.registry import audit
from server.registry.cipher import Cipher
from server.registry.models.core import EnrollmentToken, ProvisioningAttempt

ATTEMPT_S = 600
"""How long a device has for the second step of its provisioning."""
DEFAULT_LIFETIME_S = 7 * 86_400


@dataclass(frozen=True, slots=True)
class EnrollmentTokenRow:
    """An enrollment token as administrators see it. Times are seconds since 1970 UTC."""

    claim_id: int
    hw_id: str | None
    state: str
    factory_only: bool
    agent_id: str | None
    created_at: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class MadeToken:
    """A new enrollment token: the only time that its text is known."""

    claim_id: int
    text: str

    def __repr__(self) -> str:
        return f"<enrollment token {self.claim_id}>"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A provisioning between its two steps.

    Attributes:
        token_id: the enrollment token that was used.
        begin: the first step's request, JSON.
        nonce: what the device's keys must be certified with.
        credential: a secret that only the device's TPM can decrypt; None for software.
    """

    token_id: int
    begin: bytes
    nonce: bytes
    credential: bytes | None

    def __repr__(self) -> str:
        return f"<attempt with enrollment token {self.token_id}>"


def digest_of(text: str) -> str:
    """The SHA-256 of a token, in hex: what the registry keeps. A token is long and random, so it needs no salt."""
    return hashlib.sha256(text.encode()).hexdigest()


def _refused(text: str) -> RequestRefused:
    return RequestRefused(RefusalCode.CLAIM_REFUSED, text)


def spend(session: Session, token_id: int, hw_id: str, agent_id: str, now: int) -> str:
    """Marks a token as used by an agent; returns the status that it gives the agent.

    Raises:
        RequestRefused: it has been revoked, has expired, or belongs to another device.
    """
    token = session.get(EnrollmentToken, token_id, with_for_update=True)
    if token is None or token.state == "revoked" or token.expires_at <= now or token.hw_id != hw_id:
        raise _refused("the enrollment token is no longer valid")
    token.state, token.agent_id = "used", agent_id
    return "factory_only" if token.factory_only else "active"


class EnrollmentTokens:
    """Enrollment tokens, and attempts. Every method works in the transaction of the session that it is given.

    Args:
        cipher: seals the credential of an attempt.
    """

    def __init__(self, cipher: Cipher) -> None:
        self._cipher = cipher

    def create(self, session: Session, hw_id: str | None, factory_only: bool, lifetime_s: int, now: int) -> str:
        """As `make`; returns the text only."""
        return self.make(session, hw_id, factory_only, lifetime_s, now).text

    def make(self, session: Session, hw_id: str | None, factory_only: bool, lifetime_s: int, now: int) -> MadeToken:
        """Makes a token and returns its number and text; the registry keeps the digest only.

        Args:
            session: of a writing transaction.
            hw_id: the device that may use it; None binds it to the first device that does.
            factory_only: the agent is for the factory's tests and gets no licenses.
            lifetime_s: seconds until it expires.
            now: seconds since 1970 UTC.
        """
        text = secrets.token_urlsafe(24)
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
        audit.record(session, "admin", "claim.made", "ok", now, claim=row.id, hw_id=hw_id)
        return MadeToken(row.id, text)

    def use(self, session: Session, text: str, hw_id: str, now: int) -> int:
        """Returns the id of a token that this device may use. The device may use it again until it expires.

        Raises:
            RequestRefused: there is no such token, it has been revoked or has expired, or it is for another device.
        """
        query = select(EnrollmentToken).where(EnrollmentToken.digest == digest_of(text))
        row = session.scalars(query.with_for_update()).first()
        if row is None or row.state == "revoked":
            raise _refused("no such enrollment token")
        if row.expires_at <= now:
            raise _refused("the enrollment token has expired; 'license-server enrollment-token make' makes another")
        if row.hw_id is None:
            row.hw_id = hw_id
            audit.record(session, f"device {hw_id[:16]}", "claim.bound", "ok", now, claim=row.id)
        elif row.hw_id != hw_id:
            raise _refused("the enrollment token is for another device")
        return row.id

    def listed(
        self, session: Session, state: str | None = None, before: int | None = None, limit: int | None = None
    ) -> list[EnrollmentTokenRow]:
        """Tokens, the newest first; never their texts.

        Args:
            session: of any transaction.
            state: only those in this state: open, used or revoked.
            before: only those with a smaller number.
            limit: at most so many.
        """
        query = select(EnrollmentToken).order_by(EnrollmentToken.id.desc()).limit(limit)
        query = query if state is None else query.where(EnrollmentToken.state == state)
        rows = session.scalars(query if before is None else query.where(EnrollmentToken.id < before))
        return [
            EnrollmentTokenRow(row.id, row.hw_id, row.state, row.factory_only, row.agent_id, row.created_at, row.expires_at)
            for row in rows
        ]

    def revoke(self, session: Session, token_id: int, now: int) -> None:
        """Revokes a token.

        Raises:
            RegistryError: there is none with this number.
        """
        row = session.get(EnrollmentToken, token_id, with_for_update=True)
        if row is None:
            raise NotFound(f"no enrollment token {token_id}; 'license-server enrollment-token list' lists them")
        row.state = "revoked"
        audit.record(session, "admin", "claim.revoked", "ok", now, claim=token_id)

    # Attempts

    def start_attempt(
        self,
        session: Session,
        attempt_id: str,
        token_id: int,
        begin: bytes,
        nonce: bytes,
        credential: bytes | None,
        now: int,
    ) -> None:
        """Keeps an attempt for `ATTEMPT_S` seconds."""
        sealed = None
        if credential is not None:
            sealed = self._cipher.seal("provision_session", attempt_id, "sealed", credential)
        session.execute(delete(ProvisioningAttempt).where(ProvisioningAttempt.expires_at <= now))
        session.add(
            ProvisioningAttempt(
                id=attempt_id, claim_id=token_id, begin=begin, nonce=nonce, sealed=sealed, expires_at=now + ATTEMPT_S
            )
        )

    def attempt(self, session: Session, attempt_id: str, now: int) -> Attempt:
        """An attempt that has not expired.

        Raises:
            RequestRefused: there is none with this name.
        """
        row = session.get(ProvisioningAttempt, attempt_id)
        if row is None or row.expires_at <= now:
            raise _refused("the provisioning took too long; run 'license-agent-cli provision' again")
        credential = None
        if row.sealed is not None:
            credential = self._cipher.open("provision_session", row.id, "sealed", row.sealed)
        return Attempt(row.claim_id, row.begin, row.nonce, credential)

    def record_refusal(
        self, session: Session, address: str, event: str, refused: RequestRefused, now: int, fields: dict[str, Any]
    ) -> None:
        """Records an attempt that was refused, with what the device has said of itself."""
        actor = f"address {address}"[:128]
        audit.record(session, actor, event, refused.code.value, now, reason=refused.text[:200], **fields)
