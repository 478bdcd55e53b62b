"""Makes the terms of a license from an order and its policy, and checks that every agent would take its token.

What the order says counts before what the policy says; features and metadata of both are joined.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.orm import Session

from contracts.claims import MAX_TIME, Claims, check_claims
from contracts.jose import MalformedToken
from contracts.licensetoken import LICENSE_TYPE, MAX_TOKEN_CHARS, MAX_VERSION, key_id
from server.base.errors import Invalid
from server.registry.models.licensing import Policy

from .customers import owner_of
from .products import features_of, sold_by, terms_of_seats
from .rows import checked_features, checked_metadata
from .seats import Terms

UNNAMED = "unnamed"
_NO_AGENT = "x" * 64
"""Stands in the claims of a license without a machine while they are checked: as long as an agent's id may be."""


@dataclass(frozen=True, slots=True)
class Order:
    """A license to issue. Times are seconds since 1970 UTC.

    Attributes:
        jti: its id.
        subject: who it is for, as tills show it: a number or a code, no person's name.
        features: what is licensed.
        metadata: for the POS application.
        not_before: when it begins.
        expires: when it ends.
        policy: the policy that it was made by; None for none. Product and trial follow from it.
        product: the policy's.
        trial: whether the machine may have had no trial of the product.
        customer: whose it is; None if that is not recorded.
        site: where it is used; None if that is not recorded.
        seats: the terms of its seats, if the tills of the site share it.
    """

    jti: str
    subject: str
    features: tuple[str, ...]
    metadata: dict[str, str]
    not_before: int
    expires: int
    policy: str | None = None
    product: str | None = None
    trial: bool = False
    customer: str | None = None
    site: str | None = None
    seats: Terms | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody orders; what is None comes from the policy, or has its default. Times are seconds since 1970 UTC.

    Attributes:
        license_id: None for a new one.
        subject: None for the customer's id, or `UNNAMED`.
        not_before: None for now.
        expires: None for the policy's duration.
        duration: seconds from the beginning, instead of `expires`.
    """

    license_id: str | None = None
    policy: str | None = None
    customer: str | None = None
    site: str | None = None
    subject: str | None = None
    features: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    not_before: int | None = None
    expires: int | None = None
    duration: int | None = None


def order_of(session: Session, wish: Wish, now: int) -> Order:
    """The order that a wish comes to.

    Args:
        session: of any transaction.
        wish: what is ordered.
        now: seconds since 1970 UTC.

    Raises:
        Invalid: it says neither when the license ends nor by which policy, or something is out of bounds.
        NotFound: there is no such policy, customer or site.
        Conflict: the policy is retired, or the site belongs to another customer.
    """
    if wish.license_id in (".", ".."):
        raise Invalid(f"a license cannot have the id {wish.license_id!r}: HTTP clients remove it from paths; choose another id")
    policy = None if wish.policy is None else sold_by(session, wish.policy)
    customer, site = owner_of(session, wish.customer, wish.site)
    begins = now if wish.not_before is None else wish.not_before
    features, metadata = terms_of(session, policy, wish.features, wish.metadata)
    return Order(
        jti=wish.license_id or str(uuid.uuid4()),
        subject=wish.subject or customer or UNNAMED,
        features=features,
        metadata=metadata,
        not_before=begins,
        expires=_end(wish, policy, begins),
        policy=None if policy is None else policy.id,
        product=None if policy is None else policy.product_id,
        trial=policy is not None and policy.trial,
        customer=customer,
        site=site,
        seats=None if policy is None else terms_of_seats(policy),
    )


def terms_of(
    session: Session, policy: Policy | None, features: tuple[str, ...], metadata: Mapping[str, str]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Features and metadata of a license by a policy, with those of the order behind and over them. Raises Invalid."""
    held = () if policy is None else features_of(session, policy)
    added = {} if policy is None else json.loads(policy.added_metadata)
    return checked_features((*held, *features)), checked_metadata({**added, **metadata})


def _end(wish: Wish, policy: Policy | None, begins: int) -> int:
    if wish.expires is not None:
        return wish.expires
    duration = wish.duration or (None if policy is None else policy.duration_s)
    if duration is None:
        raise Invalid("when does the license end? Give --expires, or a policy with a duration")
    return begins + duration


def claims_of(order: Order, issuer: str, agent_id: str | None, now: int) -> dict[str, Any]:
    """The claims of a license, as the registry has them: without a machine, `aud` is None.

    Raises:
        Invalid: an agent would refuse a token with them.
    """
    claims = Claims(
        iss=issuer,
        sub=order.subject,
        aud=agent_id or _NO_AGENT,
        iat=now,
        nbf=order.not_before,
        exp=order.expires,
        jti=order.jti,
        features=order.features,
        metadata=order.metadata,
    )
    return checked_claims({**claims.as_json(), "aud": agent_id})


def checked_claims(claims: dict[str, Any]) -> dict[str, Any]:
    """The same claims, if agents would take a token with them under any secret version. Raises Invalid."""
    begins, ends = claims["nbf"], claims["exp"]
    if 0 <= ends <= begins <= MAX_TIME:
        raise Invalid(f"the license would end at {_utc(ends)}, and begin at {_utc(begins)}: give a later end")
    try:
        found = check_claims({**claims, "aud": claims["aud"] or _NO_AGENT})
    except MalformedToken as error:
        raise Invalid(f"agents would refuse this license: {error}") from None
    chars = token_chars(found)
    if chars > MAX_TOKEN_CHARS:
        raise Invalid(f"agents would refuse this license: its token has {chars} characters, the limit is {MAX_TOKEN_CHARS}")
    return claims


def _utc(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def token_chars(claims: Claims, version: int = MAX_VERSION) -> int:
    """How long a token with these claims is, in characters, under a secret version; by default the longest."""
    payload = json.dumps(claims.as_json(), separators=(",", ":"), ensure_ascii=False)
    inner = _b64({"alg": "ES256", "typ": LICENSE_TYPE, "kid": "x" * 43}) + _b64(payload) + 86 + 2
    outer = {"alg": "dir", "enc": "A256GCM", "cty": "JWT", "kid": key_id(claims.aud, version)}
    return _b64(outer) + 16 + (4 * inner + 2) // 3 + 22 + 4


def _b64(content: dict[str, str] | str) -> int:
    text = content if isinstance(content, str) else json.dumps(content, separators=(",", ":"))
    return (4 * len(text.encode()) + 2) // 3
