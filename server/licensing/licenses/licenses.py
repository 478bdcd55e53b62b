"""Issues licenses, re-issues them under the agent's newest secret, revokes them, and validates tokens."""

import json
from collections.abc import Sequence
from dataclasses import replace
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
from server.agents.registry import ACTIVE, enrolled
from server.base.errors import Conflict, Invalid, NotFound, RegistryError
from server.base.refused import RequestRefused
from server.keys.jose import issue_token
from server.keys.keyring import Keyring
from server.licensing.sales import seats
from server.licensing.sales.orders import Order as Order
from server.licensing.sales.orders import claims_of
from server.licensing.secrets.periods import revocations_last
from server.licensing.secrets.secrets import Secrets
from server.licensing.states import trials
from server.licensing.states.history import ISSUED, changed
from server.licensing.states.license_states import Event, locked, receiving, stepped
from server.registry import audit
from server.registry.database import next_number, present_number, skip_ahead
from server.registry.models.core import Agent, License, Secret

REVOCATIONS = "revocations"
"""The counter that numbers revocation lists. A number belongs to the one agent whose list has changed."""
REVOCATIONS_BASE = "revocations.base"
"""The counter with the number of every list that has not changed since: of revision 0005, or of the last restored backup."""


def renumber_revocations(session: Session, now: int) -> None:
    """Gives all revocation lists a new number, so that every agent asks for its list once: a restored registry knows less.

    Args:
        session: of a writing transaction, on a registry of any revision.
        now: seconds since 1970 UTC.
    """
    skip_ahead(session, REVOCATIONS_BASE, next_number(session, REVOCATIONS, now))


def record_issued(session: Session, agent_id: str | None, order: Order, now: int) -> None:
    """Records in the audit that a license was issued."""
    ids = {"policy": order.policy, "customer": order.customer, "site": order.site}
    ids = {name: value for name, value in ids.items() if value is not None}
    audit.record(session, "admin", "license.issued", "ok", now, agent=agent_id, license=order.jti, expires=order.expires, **ids)
    if order.seats is not None:
        seats.record_terms(session, order.jti, order.seats, now)


def _require_same(known: License, agent_id: str | None) -> None:
    """Returns if a license that exists may be issued again."""
    if known.seat_of is not None:
        raise Conflict(f"license {known.jti!r} is a seat of {known.seat_of!r}; choose another id")
    if known.agent_id != agent_id:
        where = "is on no machine: 'license-server licenses assign' gives it one" if known.agent_id is None else (
            f"belongs to agent {known.agent_id!r}; choose another id, or move it with 'license-server licenses transfer'"
        )  # fmt: skip
        raise Conflict(f"license {known.jti!r} {where}")
    if known.revoked_at is not None:
        raise Conflict(f"license {known.jti!r} is revoked; choose another id")
    if known.suspended_at is not None:
        raise Conflict(f"license {known.jti!r} is suspended; 'license-server licenses reinstate {known.jti}' first")


def _require_no_longer_trial(known: License, order: Order) -> None:
    """Returns unless a trial that has begun would end later."""
    if order.trial and known.agent_id is not None and known.product_id == order.product:
        if order.expires > (known.expires_at or json.loads(known.claims)["exp"]):
            raise Conflict(f"license {known.jti!r} is a trial, which cannot be renewed: upgrade it to another policy")


class Licenses:
    """The agents' licenses. Every method works in the transaction of the session that it is given.

    Args:
        keyring: signs tokens.
        secrets: tokens are encrypted with them.
    """

    def __init__(self, keyring: Keyring, secrets: Secrets) -> None:
        self._keyring = keyring
        self._secrets = secrets

    def issue(self, session: Session, agent_id: str, order: Order, now: int, version: int | None = None) -> str:
        """Issues a license and returns its token. One that the agent has already gets these terms instead.

        Args:
            session: of a writing transaction.
            agent_id: an enrolled agent.
            order: what is licensed.
            now: seconds since 1970 UTC; becomes `iat`.
            version: the secret version to use; None for the newest confirmed one.

        Raises:
            NotFound: there is no such agent or version.
            Conflict: the agent cannot get it now, or the id belongs to another license.
            Invalid: the order is out of bounds.
        """
        token = self.put(session, agent_id, order, now, version, needs_token=True)
        record_issued(session, agent_id, order, now)
        return token or ""

    def stock(self, session: Session, order: Order, now: int) -> None:
        """Issues a license that is on no machine yet: `lifecycle.assign` gives it one.

        Raises:
            Conflict: the id belongs to another license.
            Invalid: the order is out of bounds.
        """
        self.put(session, None, order, now)
        record_issued(session, None, order, now)

    def put(
        self,
        session: Session,
        agent_id: str | None,
        order: Order,
        now: int,
        version: int | None = None,
        *,
        needs_token: bool = False,
    ) -> str | None:
        """As `issue` and `stock`, without the audit record, which locks the audit's counter: for many licenses at once.

        Args:
            session: of a writing transaction.
            agent_id: None for no machine.
            order: what is licensed.
            now: seconds since 1970 UTC.
            version: as for `issue`.
            needs_token: refuse an agent that has no secret yet; else it gets its token later.
        """
        if order.seats is not None and (agent_id is not None or order.site is None):
            raise Conflict(f"licenses by policy {order.policy!r} are shared by the tills of a site: name a site, and no agent")
        claims = claims_of(order, self._keyring.issuer, agent_id, now)
        # Locked: the same license may be issued twice at once.
        agent = None if agent_id is None else receiving(session, agent_id)
        known = session.get(License, order.jti, with_for_update=True, populate_existing=True)
        if known is None:
            seats.require_no_seat(session, order.jti)
        else:
            _require_same(known, agent_id)
            seats.require_place(known, order.site)
            _require_no_longer_trial(known, order)
        if agent is not None and order.trial and order.product is not None:
            trials.begin(session, agent, order.product, order.jti, now, exists=known is not None)
        made = None if agent_id is None else self._token(session, agent_id, claims, version, needed=needs_token)
        row = known or License(jti=order.jti, agent_id=agent_id)
        row.claims, row.subject, row.expires_at = json.dumps(claims), order.subject, order.expires
        row.secret_version = None if made is None else made[1]
        row.policy_id, row.product_id, row.customer_id, row.site_id = order.policy, order.product, order.customer, order.site
        session.add(row)
        about = {"agent": agent_id, "customer": order.customer, "site": order.site, "policy": order.policy}
        changed(session, row, ISSUED if known is None else Event.RENEWED, now, **about, expires=order.expires)
        if order.seats is not None and not row.floating:
            session.flush()
            seats.share(session, order.jti, order.seats, now)
        return None if made is None else made[0]

    def _token(
        self, session: Session, agent_id: str, claims: dict[str, Any], version: int | None, *, needed: bool
    ) -> tuple[str, int] | None:
        if not needed and self._secrets.open(session, agent_id, version) is None:
            return None
        return self._issue_token(session, agent_id, check_claims(claims), version)

    def _issue_token(self, session: Session, agent_id: str, claims: Claims, version: int | None) -> tuple[str, int]:
        opened = self._secrets.open(session, agent_id, version)
        if opened is None and version is None:
            raise Conflict(
                f"agent {agent_id!r} has no confirmed secret yet; it gets one at its first contact, "
                f"or run 'license-server rotate --agent {agent_id}'"
            )
        if opened is None:
            raise NotFound(f"agent {agent_id!r} has no secret version {version} that licenses can be issued under")
        used, secret = opened
        token = issue_token(claims, secret, used, self._keyring.license_key())
        if len(token) > MAX_TOKEN_CHARS:
            raise Invalid(
                f"agents would refuse this license: its token has {len(token)} characters, the limit is {MAX_TOKEN_CHARS}"
            )
        return token, used

    def reissue_all(self, session: Session, agent_id: str, now: int) -> list[str]:
        """New tokens for all of an agent's licenses that have not expired, under its newest confirmed secret.

        Raises:
            RegistryError: there is no such agent, or it has no secret yet.
        """
        enrolled(session, agent_id, lock=False)
        if self._secrets.open(session, agent_id, None) is None:
            raise RegistryError(
                f"agent {agent_id!r} has no confirmed secret yet; run 'license-server rotate --agent {agent_id}'"
            )
        ids = list(session.scalars(select(License.jti).where(License.agent_id == agent_id).order_by(License.jti)))
        return list(self._reissue(session, agent_id, ids, None, now)[0])

    def reissue(
        self, session: Session, agent_id: str, license_ids: Sequence[str], version: int, now: int
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """New tokens for an agent, and the ids of the licenses for which there is none.

        Args:
            session: of a writing transaction.
            agent_id: the agent.
            license_ids: the licenses.
            version: the newest secret version that the agent holds.
            now: seconds since 1970 UTC.

        Raises:
            RequestRefused: the server does not know that version, or holds another secret under its number.
        """
        if self._secrets.open(session, agent_id, version) is None:
            raise RequestRefused(
                RefusalCode.UNKNOWN_VERSION, f"the server has no secret version {version} that licenses can be issued under"
            )
        return self._reissue(session, agent_id, license_ids, version, now)

    def _reissue(
        self, session: Session, agent_id: str, license_ids: Sequence[str], version: int | None, now: int
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        tokens: list[str] = []
        missing: list[str] = []
        agent = session.get(Agent, agent_id)
        # Locked in the order of their ids, so that two callers cannot wait for each other.
        locked = select(License).where(License.jti.in_(license_ids)).order_by(License.jti).with_for_update()
        rows = {row.jti: row for row in session.scalars(locked)}
        for jti in dict.fromkeys(license_ids):
            row = rows.get(jti)
            # A suspended one gets no new token: an agent that does not hear of it loses it with the grace of its secret.
            gone = row is None or row.agent_id != agent_id or row.revoked_at is not None or row.suspended_at is not None
            if row is None or gone or agent is None or agent.status != ACTIVE:
                missing.append(jti)
                continue
            if check_claims(json.loads(row.claims)).exp <= now:
                missing.append(jti)
                continue
            tokens.append(self.renewed_token(session, row, version, now))
        if tokens:
            audit.record(session, f"agent {agent_id}", "license.reissued", "ok", now, count=len(tokens), missing=len(missing))
        return tuple(tokens), tuple(missing)

    def renewed_token(self, session: Session, row: License, version: int | None, now: int) -> str:
        """A new token of a license that is locked and on an agent, under a secret version; None for the newest confirmed one.

        Raises:
            RegistryError: there is no such version, or the token would be too long.
        """
        claims = check_claims(json.loads(row.claims))
        claims = replace(claims, iat=max(now, claims.iat))
        token, used = self._issue_token(session, claims.aud, claims, version)
        row.claims, row.secret_version = json.dumps(claims.as_json()), used
        return token

    def revoke(self, session: Session, jti: str, now: int) -> None:
        """Revokes a license for good.

        Raises:
            RegistryError: there is no such license, or the agent's revocation list is full.
        """
        row, agent = locked(session, jti)
        if row.revoked_at is None:
            stepped(row, Event.REVOKED, now)
            if agent is not None and len(self._revoked(session, agent.id, now)) >= MAX_REVOKED:
                raise Conflict(
                    f"agent {agent.id!r} has {MAX_REVOKED} revoked licenses, which is the limit; revoke the agent instead"
                )
            row.revoked_at = now
            if agent is not None:
                agent.revocations = next_number(session, REVOCATIONS, now)
            self._revoke_seats(session, row, now)
            changed(session, row, Event.REVOKED, now, agent=row.agent_id)
        audit.record(session, "admin", "license.revoked", "ok", now, license=jti, agent=row.agent_id)

    def _revoke_seats(self, session: Session, row: License, now: int) -> None:
        for seat in seats.counted(session, row.jti, now):
            if len(self._revoked(session, seat.agent_id, now)) >= MAX_REVOKED:
                raise Conflict(f"agent {seat.agent_id!r} has {MAX_REVOKED} revoked licenses, which is the limit")
        seats.follow(session, row, now, revocations=REVOCATIONS)

    def revocations(self, session: Session, agent_id: str, now: int) -> tuple[int, int, tuple[str, ...]]:
        """The agent's revocation list: its number, until when it is valid, and the ids of the licenses.

        A license that has expired is not on it.
        """
        agent = session.get(Agent, agent_id)
        number = max(0 if agent is None else agent.revocations or 0, present_number(session, REVOCATIONS_BASE))
        return number, now + revocations_last(session), self._revoked(session, agent_id, now)

    def _revoked(self, session: Session, agent_id: str, now: int) -> tuple[str, ...]:
        query = select(License).where(License.agent_id == agent_id, License.revoked_at.is_not(None)).order_by(License.jti)
        return tuple(row.jti for row in session.scalars(query) if json.loads(row.claims)["exp"] > now)

    def validate(self, session: Session, agent_id: str, token: str, now: int) -> tuple[bool, str, str | None, int | None]:
        """The server's verdict on a token: whether it is valid, the reason, and the license's id and end as far as known."""
        try:
            sealed = parse_token(token)
        except MalformedToken:
            return False, "malformed", None, None
        if sealed.agent_id != agent_id:
            return False, "wrong_audience", None, None
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
        if claims.iss != self._keyring.issuer or license_row is None:
            reason = "bad_signature"
        elif claims.aud != agent_id or license_row.agent_id != agent_id:
            reason = "wrong_audience"
        elif license_row.revoked_at is not None:
            reason = "revoked"
        elif license_row.suspended_at is not None:
            reason = "suspended"
        elif now < claims.nbf:
            reason = "not_yet_valid"
        elif now >= claims.exp:
            reason = "expired"
        return reason == "ok", reason, claims.jti, claims.exp

    def _opened(self, token: str, secret: bytes) -> Claims | None:
        """The claims of a token, decrypted and verified with joserfc; None if this server did not issue it."""
        try:
            inner = jwe.decrypt_compact(token, OctKey.import_key(secret), algorithms=["dir", "A256GCM"]).plaintext
            head = jws.extract_compact(inner or b"").headers()
            key = self._keyring.license_public_keys().get(str(head.get("kid")))
            if key is None or head.get("alg") != "ES256" or head.get("typ") != LICENSE_TYPE:
                return None
            signed = jws.deserialize_compact(inner or b"", ECKey.import_key({**key}), algorithms=["ES256"])
            content: Any = json.loads(signed.payload)
            return check_claims(content)
        except (JoseError, MalformedToken, ValueError, TypeError, KeyError):
            return None
