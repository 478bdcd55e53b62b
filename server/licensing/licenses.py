"""Licenses: issued, re-issued under the agent's newest secret, revoked, judged."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from joserfc import jwe, jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OctKey
from sqlalchemy import select
from sqlalchemy.orm import Session

from contracts.claims import Claims, check_claims
from contracts.exchange import MAX_REVOKED, RefusalCode
from contracts.jose import MalformedToken
from contracts.licensetoken import LICENSE_TYPE, MAX_TOKEN_CHARS, parse_token
from server.base.errors import RegistryError
from server.base.refused import RequestRefused
from server.keys.jose import issue_token
from server.keys.keyring import Keys
from server.registry.audit import Audit
from server.registry.database import Database, next_number, present_number
from server.registry.models import Agent, License, Secret

from .secrets import Secrets

REVOCATIONS_LAST_S = 7 * 86_400
"""A revocation list is good for so long; agents fetch a newer one when half of it is over."""
REVOCATIONS = "revocations"


@dataclass(frozen=True, slots=True)
class Order:
    """A license to be issued. Times are seconds since 1970 UTC."""

    jti: str
    subject: str
    features: tuple[str, ...]
    metadata: dict[str, str]
    not_before: int
    expires: int


class Licenses:
    """Acts on licenses.

    Args:
        database: of the registry.
        keys: sign.
        secrets: encrypt.
        audit: records.
    """

    def __init__(self, database: Database, keys: Keys, secrets: Secrets, audit: Audit) -> None:
        self._database = database
        self._keys = keys
        self._secrets = secrets
        self._audit = audit

    def issue(self, agent_id: str, order: Order, now: int, version: int | None = None) -> str:
        """A token for a new license.

        Args:
            agent_id: an enrolled agent.
            order: what is licensed.
            now: becomes `iat`.
            version: the secret version to use; the newest that is confirmed if None.

        Raises:
            RegistryError: no such agent or version, or the order is out of bounds.
        """
        claims = Claims(
            iss=self._keys.issuer,
            sub=order.subject,
            aud=agent_id,
            iat=now,
            nbf=order.not_before,
            exp=order.expires,
            jti=order.jti,
            features=order.features,
            metadata=order.metadata,
        )
        try:
            check_claims(claims.as_json())
        except MalformedToken as error:
            raise RegistryError(f"such a license would be refused: {error}") from None
        with self._database.transaction() as session:
            # Locked: the same license may be issued twice at once.
            agent = session.get(Agent, agent_id, with_for_update=True)
            if agent is None:
                raise RegistryError(f"no agent {agent_id!r} is enrolled; 'license-server agents list' lists them")
            if agent.status != "active":
                raise RegistryError(f"agent {agent_id!r} is {agent.status}: it gets no licenses")
            known = session.get(License, order.jti)
            if known is not None and known.agent_id != agent_id:
                raise RegistryError(f"license {order.jti!r} belongs to agent {known.agent_id!r}: choose another id")
            if known is not None and known.revoked_at is not None:
                raise RegistryError(f"license {order.jti!r} is revoked: choose another id")
            token, used = self._issue_token(session, agent_id, claims, version)
            session.merge(License(jti=order.jti, agent_id=agent_id, claims=json.dumps(claims.as_json()), secret_version=used))
            self._audit.record(
                "admin", "license.issued", "ok", now, session=session, agent=agent_id, license=order.jti, expires=order.expires
            )
            return token

    def _issue_token(self, session: Session, agent_id: str, claims: Claims, version: int | None) -> tuple[str, int]:
        opened = self._secrets.open(session, agent_id, version)
        if opened is None and version is None:
            raise RegistryError(f"agent {agent_id!r} has no secret yet: it gets one at its first contact, or by 'rotate'")
        if opened is None:
            raise RegistryError(f"agent {agent_id!r} has no secret version {version} that licenses can be made with")
        used, secret = opened
        token = issue_token(claims, secret, used, self._keys.license_key())
        if len(token) > MAX_TOKEN_CHARS:
            raise RegistryError(f"such a license would be refused: its token has more than {MAX_TOKEN_CHARS} characters")
        return token, used

    def reissue_all(self, agent_id: str, now: int) -> list[str]:
        """New tokens for all of an agent's licenses that have not ended, under its newest secret."""
        with self._database.reading() as session:
            if session.get(Agent, agent_id) is None:
                raise RegistryError(f"no agent {agent_id!r} is enrolled; 'license-server agents list' lists them")
            query = select(License.jti).where(License.agent_id == agent_id).order_by(License.jti)
            ids = list(session.scalars(query))
        return list(self._reissue(agent_id, ids, None, now)[0])

    def reissue(
        self, agent_id: str, license_ids: Sequence[str], version: int, now: int
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """New tokens for an agent, and the licenses for which there is none.

        Args:
            agent_id: whose.
            license_ids: which.
            version: the newest secret version that the agent holds.
            now: when.

        Raises:
            RequestRefused: that version is not known, or differs here.
        """
        return self._reissue(agent_id, license_ids, version, now)

    def _reissue(
        self, agent_id: str, license_ids: Sequence[str], version: int | None, now: int
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        tokens: list[str] = []
        missing: list[str] = []
        with self._database.transaction() as session:
            if self._secrets.open(session, agent_id, version) is None:
                if version is None:
                    raise RegistryError(f"agent {agent_id!r} has no secret yet: run 'license-server rotate --agent {agent_id}'")
                raise RequestRefused(RefusalCode.UNKNOWN_VERSION, f"there is no secret version {version} to make licenses with")
            agent = session.get(Agent, agent_id)
            # Locked in an order, so that two who do this wait for each other in one direction only.
            locked = select(License).where(License.jti.in_(license_ids)).order_by(License.jti).with_for_update()
            rows = {row.jti: row for row in session.scalars(locked)}
            for jti in dict.fromkeys(license_ids):
                row = rows.get(jti)
                gone = row is None or row.agent_id != agent_id or row.revoked_at is not None
                if row is None or gone or agent is None or agent.status != "active":
                    missing.append(jti)
                    continue
                claims = check_claims(json.loads(row.claims))
                if claims.exp <= now:
                    missing.append(jti)
                    continue
                claims = replace(claims, iat=max(now, claims.iat))
                token, used = self._issue_token(session, agent_id, claims, version)
                row.claims, row.secret_version = json.dumps(claims.as_json()), used
                tokens.append(token)
            if tokens:
                self._audit.record(
                    f"agent {agent_id}", "license.reissued", "ok", now, session=session, count=len(tokens), missing=len(missing)
                )
        return tuple(tokens), tuple(missing)

    def revoke(self, jti: str, now: int) -> None:
        """Revokes a license for good.

        Raises:
            RegistryError: there is no such license, or the agent's list is full.
        """
        with self._database.transaction() as session:
            row = session.get(License, jti, with_for_update=True)
            if row is None:
                raise RegistryError(f"there is no license {jti!r}")
            if row.revoked_at is None:
                if len(self._revoked(session, row.agent_id, now)) >= MAX_REVOKED:
                    raise RegistryError(f"agent {row.agent_id!r} has {MAX_REVOKED} revoked licenses already: revoke the agent")
                row.revoked_at = now
                next_number(session, REVOCATIONS, now)
            self._audit.record("admin", "license.revoked", "ok", now, session=session, license=jti, agent=row.agent_id)

    def revocations(self, agent_id: str, now: int) -> tuple[int, int, tuple[str, ...]]:
        """Number of the agent's revocation list, until when it is good, and the licenses on it.

        A license whose time is over needs no revocation.
        """
        with self._database.reading() as session:
            return present_number(session, REVOCATIONS), now + REVOCATIONS_LAST_S, self._revoked(session, agent_id, now)

    def _revoked(self, session: Session, agent_id: str, now: int) -> tuple[str, ...]:
        query = select(License).where(License.agent_id == agent_id, License.revoked_at.is_not(None)).order_by(License.jti)
        return tuple(row.jti for row in session.scalars(query) if json.loads(row.claims)["exp"] > now)

    def validate(self, agent_id: str, token: str, now: int) -> tuple[bool, str, str | None, int | None]:
        """The server's verdict on a token: whether it stands by it, why, which license it is and when that ends."""
        try:
            sealed = parse_token(token)
        except MalformedToken:
            return False, "malformed", None, None
        if sealed.agent_id != agent_id:
            return False, "wrong_audience", None, None
        with self._database.reading() as session:
            row = session.get(Secret, (agent_id, sealed.version))
            if row is None:
                return False, "unknown_secret", None, None
            opened = self._secrets.open(session, agent_id, sealed.version)
            if opened is None or now >= row.grace_until:
                return False, "secret_invalidated", None, None
            claims = self._opened(token, opened[1])
            if claims is None:
                return False, "bad_signature", None, None
            license_row = session.get(License, claims.jti)
        reason = "ok"
        if claims.iss != self._keys.issuer or license_row is None:
            reason = "bad_signature"
        elif claims.aud != agent_id or license_row.agent_id != agent_id:
            reason = "wrong_audience"
        elif license_row.revoked_at is not None:
            reason = "revoked"
        elif now < claims.nbf:
            reason = "not_yet_valid"
        elif now >= claims.exp:
            reason = "expired"
        return reason == "ok", reason, claims.jti, claims.exp

    def _opened(self, token: str, secret: bytes) -> Claims | None:
        """What is in a token, opened with joserfc; None if it is not one of ours."""
        try:
            inner = jwe.decrypt_compact(token, OctKey.import_key(secret), algorithms=["dir", "A256GCM"]).plaintext
            head = jws.extract_compact(inner or b"").headers()
            key = self._keys.license_public_keys().get(str(head.get("kid")))
            if key is None or head.get("alg") != "ES256" or head.get("typ") != LICENSE_TYPE:
                return None
            signed = jws.deserialize_compact(inner or b"", ECKey.import_key({**key}), algorithms=["ES256"])
            content: Any = json.loads(signed.payload)
            return check_claims(content)
        except (JoseError, MalformedToken, ValueError, TypeError, KeyError):
            return None
