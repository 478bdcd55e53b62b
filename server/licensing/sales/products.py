"""Keeps what a vendor sells: products, entitlement sets (features under one name), and policies, the templates of licenses.

A change of a policy or set applies to licenses that are issued or upgraded from then on, and to the length of renewals; else a
license keeps what it was sold with.
"""

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.base.errors import Conflict, Invalid
from server.registry.models.licensing import EntitlementSet, Policy, Product

from .rows import checked_features, checked_metadata, checked_text, expect, found, new_id, record, require_new, touch
from .seats import Terms

MIN_DURATION_S, MAX_DURATION_S = 60, 100 * 366 * 86_400


@dataclass(frozen=True, slots=True)
class ProductRow:
    """A product; times are seconds since 1970 UTC. `retired_at` is None while it is sold."""

    product: str
    name: str
    created_at: int
    updated_at: int
    retired_at: int | None
    revision: int


@dataclass(frozen=True, slots=True)
class EntitlementSetRow:
    """Features under one name; times are seconds since 1970 UTC."""

    entitlement_set: str
    name: str
    features: tuple[str, ...]
    created_at: int
    updated_at: int
    revision: int


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """A policy; times are seconds since 1970 UTC.

    Attributes:
        policy: its id.
        product: the product that its licenses are for.
        name: for people.
        entitlement_set: whose features its licenses have besides its own; None if it has no set.
        features: its own.
        metadata: that its licenses carry.
        duration: seconds that a license lasts; None if each order says when it ends.
        trial: whether a machine gets one license of this product by such a policy, ever.
        floating: the terms of their seats, if its licenses are shared by the tills of a site; else None.
        created_at: when it was created.
        updated_at: when it was last changed.
        retired_at: since when no license is issued by it; None while it is used.
        revision: how often it was changed, plus one.
    """

    policy: str
    product: str
    name: str
    entitlement_set: str | None
    features: tuple[str, ...]
    metadata: dict[str, str]
    duration: int | None
    trial: bool
    floating: Terms | None
    created_at: int
    updated_at: int
    retired_at: int | None
    revision: int


@dataclass(frozen=True, slots=True)
class PolicyPlan:
    """What a policy is created with, or changed to: None leaves a member as it is."""

    name: str | None = None
    entitlement_set: str | None = None
    features: tuple[str, ...] | None = None
    metadata: dict[str, str] | None = None
    duration: int | None = None
    floating: Terms | None = None


# Products


def create_product(session: Session, product_id: str | None, name: str, now: int) -> ProductRow:
    """Creates a product; without an id it gets a new one. Raises Invalid and Conflict."""
    made = new_id(product_id, "product")
    require_new(session, Product, made, "product")
    row = Product(id=made, name=checked_text(name, "the name"), created_at=now, updated_at=now, revision=1)
    session.add(row)
    record(session, "product.created", now, product=made)
    return _product(row)


def change_product(session: Session, product_id: str, name: str, now: int, revision: int | None = None) -> ProductRow:
    """Gives a product another name. Raises Invalid, NotFound and Conflict."""
    row = product(session, product_id, lock=True)
    expect(row, revision, f"product {product_id!r}")
    row.name = checked_text(name, "the name")
    touch(row, now)
    record(session, "product.changed", now, product=product_id)
    return _product(row)


def retire_product(session: Session, product_id: str, now: int) -> ProductRow:
    """Ends the sale of a product: its policies issue no more licenses. Licenses that exist stay. Raises NotFound."""
    row = product(session, product_id, lock=True)
    if row.retired_at is None:
        row.retired_at = now
        touch(row, now)
        record(session, "product.retired", now, product=product_id)
    return _product(row)


def product(session: Session, product_id: str, *, lock: bool = False) -> Product:
    """A product. Raises NotFound."""
    return found(session, Product, product_id, "product", "products list", lock=lock)


def show_product(session: Session, product_id: str) -> ProductRow:
    """A product as operators see it. Raises NotFound."""
    return _product(product(session, product_id))


def products(session: Session, after: str = "", limit: int | None = None) -> list[ProductRow]:
    """Products by id, at most so many, behind one."""
    query = select(Product).where(Product.id > after).order_by(Product.id).limit(limit)
    return [_product(row) for row in session.scalars(query)]


# Entitlement sets


def create_set(session: Session, set_id: str | None, name: str, features: tuple[str, ...], now: int) -> EntitlementSetRow:
    """Creates an entitlement set; without an id it gets a new one. Raises Invalid and Conflict."""
    made = new_id(set_id, "entitlement set")
    require_new(session, EntitlementSet, made, "entitlement set")
    held = json.dumps(checked_features(features))
    named = checked_text(name, "the name")
    row = EntitlementSet(id=made, name=named, features=held, created_at=now, updated_at=now, revision=1)
    session.add(row)
    record(session, "entitlement_set.created", now, entitlement_set=made)
    return _set(row)


def change_set(
    session: Session,
    set_id: str,
    name: str | None,
    features: tuple[str, ...] | None,
    now: int,
    revision: int | None = None,
) -> EntitlementSetRow:
    """Changes what is given of an entitlement set. Raises Invalid, NotFound and Conflict."""
    row = entitlement_set(session, set_id, lock=True)
    expect(row, revision, f"entitlement set {set_id!r}")
    row.name = row.name if name is None else checked_text(name, "the name")
    row.features = row.features if features is None else json.dumps(checked_features(features))
    touch(row, now)
    record(session, "entitlement_set.changed", now, entitlement_set=set_id)
    return _set(row)


def entitlement_set(session: Session, set_id: str, *, lock: bool = False) -> EntitlementSet:
    """An entitlement set. Raises NotFound."""
    return found(session, EntitlementSet, set_id, "entitlement set", "entitlements list", lock=lock)


def show_set(session: Session, set_id: str) -> EntitlementSetRow:
    """An entitlement set as operators see it. Raises NotFound."""
    return _set(entitlement_set(session, set_id))


def sets(session: Session, after: str = "", limit: int | None = None) -> list[EntitlementSetRow]:
    """Entitlement sets by id, at most so many, behind one."""
    query = select(EntitlementSet).where(EntitlementSet.id > after).order_by(EntitlementSet.id).limit(limit)
    return [_set(row) for row in session.scalars(query)]


# Policies


def create_policy(
    session: Session, policy_id: str | None, product_id: str, plan: PolicyPlan, now: int, *, trial: bool = False
) -> PolicyRow:
    """Creates a policy; without an id it gets a new one.

    Args:
        session: of a writing transaction.
        policy_id: its id; None for a new one.
        product_id: a product that is sold.
        plan: with a name at least; a trial needs a duration.
        now: seconds since 1970 UTC.
        trial: a machine gets one license of the product by such a policy, ever.

    Raises:
        Invalid: a member is out of bounds.
        NotFound: there is no such product or entitlement set.
        Conflict: the id is taken, or the product is retired.
    """
    made = new_id(policy_id, "policy")
    require_new(session, Policy, made, "policy")
    if product(session, product_id).retired_at is not None:
        raise Conflict(f"product {product_id!r} is retired: it gets no new policies")
    if trial and plan.duration is None:
        raise Invalid("a trial needs a duration: a trial that never ends is a sale")
    if plan.name is None:
        raise Invalid("a policy needs a name")
    row = Policy(id=made, product_id=product_id, trial=trial, created_at=now, updated_at=now, revision=1)
    row.features, row.added_metadata = "[]", "{}"
    _apply(session, row, plan)
    session.add(row)
    record(session, "policy.created", now, policy=made, product=product_id)
    return _policy(row)


def change_policy(session: Session, policy_id: str, plan: PolicyPlan, now: int, revision: int | None = None) -> PolicyRow:
    """Changes what is given of a policy. Product and `trial` stay: they decide what licenses that exist may become.

    Raises:
        Invalid: a member is out of bounds.
        NotFound: there is no such policy or entitlement set.
        Conflict: it has another revision.
    """
    row = policy(session, policy_id, lock=True)
    expect(row, revision, f"policy {policy_id!r}")
    _apply(session, row, plan)
    touch(row, now)
    record(session, "policy.changed", now, policy=policy_id)
    return _policy(row)


def retire_policy(session: Session, policy_id: str, now: int) -> PolicyRow:
    """Lets no more licenses be issued by a policy. Licenses that exist stay, and can be renewed. Raises NotFound."""
    row = policy(session, policy_id, lock=True)
    if row.retired_at is None:
        row.retired_at = now
        touch(row, now)
        record(session, "policy.retired", now, policy=policy_id)
    return _policy(row)


def policy(session: Session, policy_id: str, *, lock: bool = False) -> Policy:
    """A policy. Raises NotFound."""
    return found(session, Policy, policy_id, "policy", "policies list", lock=lock)


def show_policy(session: Session, policy_id: str) -> PolicyRow:
    """A policy as operators see it. Raises NotFound."""
    return _policy(policy(session, policy_id))


def sold_by(session: Session, policy_id: str) -> Policy:
    """A policy by which licenses may be issued now. Raises NotFound and Conflict."""
    row = policy(session, policy_id)
    if row.retired_at is not None or product(session, row.product_id).retired_at is not None:
        raise Conflict(f"policy {policy_id!r} or its product is retired: no license is issued by it; choose another policy")
    return row


def policies(session: Session, product_id: str | None = None, after: str = "", limit: int | None = None) -> list[PolicyRow]:
    """Policies by id, at most so many, behind one, those of a product or all."""
    query = select(Policy).where(Policy.id > after).order_by(Policy.id).limit(limit)
    query = query if product_id is None else query.where(Policy.product_id == product_id)
    return [_policy(row) for row in session.scalars(query)]


def features_of(session: Session, row: Policy) -> tuple[str, ...]:
    """The features that a license by this policy gets: those of its set, then its own."""
    held = [] if row.entitlement_set_id is None else json.loads(entitlement_set(session, row.entitlement_set_id).features)
    return checked_features((*held, *json.loads(row.features)))


def _apply(session: Session, row: Policy, plan: PolicyPlan) -> None:
    if plan.name is not None:
        row.name = checked_text(plan.name, "the name")
    if plan.entitlement_set is not None:
        row.entitlement_set_id = entitlement_set(session, plan.entitlement_set).id
    if plan.features is not None:
        row.features = json.dumps(checked_features(plan.features))
    if plan.metadata is not None:
        row.added_metadata = json.dumps(checked_metadata(plan.metadata))
    if plan.duration is not None:
        if not MIN_DURATION_S <= plan.duration <= MAX_DURATION_S:
            raise Invalid(f"a license lasts {MIN_DURATION_S} seconds to 100 years, not {plan.duration} seconds")
        row.duration_s = plan.duration
    if plan.floating is not None:
        if row.trial:
            raise Invalid("a trial belongs to one machine: it has no seats")
        plan.floating.check()
        row.floating = plan.floating.as_json()
    features_of(session, row)


def terms_of_seats(row: Policy) -> Terms | None:
    """The terms of seats of a policy's licenses; None if these are not shared."""
    return None if row.floating is None else Terms.from_json(row.floating)


def _product(row: Product) -> ProductRow:
    return ProductRow(row.id, row.name, row.created_at, row.updated_at, row.retired_at, row.revision)


def _set(row: EntitlementSet) -> EntitlementSetRow:
    features = tuple(json.loads(row.features))
    return EntitlementSetRow(row.id, row.name, features, row.created_at, row.updated_at, row.revision)


def _policy(row: Policy) -> PolicyRow:
    features: tuple[str, ...] = tuple(json.loads(row.features))
    metadata: dict[str, Any] = json.loads(row.added_metadata)
    return PolicyRow(
        row.id, row.product_id, row.name, row.entitlement_set_id, features, metadata, row.duration_s, row.trial,
        terms_of_seats(row), row.created_at, row.updated_at, row.retired_at, row.revision,
    )  # fmt: skip
