"""Acts on what is sold: products, entitlement sets, and policies, the templates of licenses.

Two clerks may edit the same one: a change needs `If-Match` with what its author has read.
"""

from typing import Annotated

from pydantic import Field

from contracts.claims import MAX_FEATURES, MAX_METADATA, MAX_NAME_CHARS, MAX_VALUE_CHARS
from server.accounts.roles import Role
from server.acts.act import Act, Context, Form, Listed, Number, PageForm, Time, VendorId, page, revision_tag
from server.licensing.sales import products as sold
from server.licensing.sales.products import MAX_DURATION_S, MIN_DURATION_S, PolicyPlan
from server.licensing.sales.rows import MAX_NAME
from server.licensing.sales.seats import Mode, Terms

from .seats import SeatTerms

PRODUCT = "product"
"""The metadata by which `require` and `[pos.licenses]` on a till know the product of a license."""
_PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f]*$"
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME, pattern=_PRINTABLE)]
Feature = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS, pattern=_PRINTABLE)]
Features = Annotated[list[Feature], Field(max_length=MAX_FEATURES)]
Entries = Annotated[
    dict[Feature, Annotated[str, Field(max_length=MAX_VALUE_CHARS, pattern=_PRINTABLE)]], Field(max_length=MAX_METADATA)
]
"""Metadata for the POS application."""
Duration = Annotated[int, Field(ge=MIN_DURATION_S, le=MAX_DURATION_S)]


class Product(Form):
    """A product; times are seconds since 1970 UTC. `retired_at` is null while it is sold."""

    product: str
    name: str
    created_at: Time
    updated_at: Time
    retired_at: Time | None
    revision: Number


class EntitlementSet(Form):
    """Features under one name, for several policies; times are seconds since 1970 UTC."""

    entitlement_set: str
    name: str
    features: tuple[str, ...]
    created_at: Time
    updated_at: Time
    revision: Number


class Policy(Form):
    """A template of licenses; times are seconds since 1970 UTC, `duration` in seconds, null where each order says the end.
    `metadata` has `product`, the product by which tills ask for its licenses; it is this one unless another was given.
    With `floating`, its licenses are shared by the tills of a site.
    """

    policy: str
    product: str
    name: str
    entitlement_set: str | None
    features: tuple[str, ...]
    metadata: dict[str, str]
    duration: Number | None
    trial: bool
    floating: SeatTerms | None
    created_at: Time
    updated_at: Time
    retired_at: Time | None
    revision: Number


class OneProduct(Form):
    """Which product."""

    product: VendorId


class NamedProduct(Form):
    """A product, and the name that it gets."""

    product: VendorId
    name: Name


class NewProduct(Form):
    """A product to create; without an id it gets a new one."""

    product: VendorId | None = None
    name: Name


class OneSet(Form):
    """Which entitlement set."""

    entitlement_set: VendorId


class NewSet(Form):
    """An entitlement set to create; without an id it gets a new one."""

    entitlement_set: VendorId | None = None
    name: Name
    features: Features = Field(default_factory=list)


class ChangeSet(Form):
    """What to change of an entitlement set; what is missing stays."""

    entitlement_set: VendorId
    name: Name | None = None
    features: Features | None = None


class OnePolicy(Form):
    """Which policy."""

    policy: VendorId


class PoliciesForm(PageForm):
    """Which policies."""

    product: VendorId | None = None


class NewPolicy(Form):
    """A policy to create; without an id it gets a new one. A trial needs a duration."""

    policy: VendorId | None = None
    product: VendorId
    name: Name
    entitlement_set: VendorId | None = None
    features: Features = Field(default_factory=list)
    metadata: Entries = Field(default_factory=dict)
    duration: Duration | None = None
    trial: bool = False
    floating: SeatTerms | None = None


class ChangePolicy(Form):
    """What to change of a policy; what is missing stays."""

    policy: VendorId
    name: Name | None = None
    entitlement_set: VendorId | None = None
    features: Features | None = None
    metadata: Entries | None = None
    duration: Duration | None = None
    floating: SeatTerms | None = None


def _plan(body: NewPolicy | ChangePolicy, product: str) -> PolicyPlan:
    """What a policy becomes. Tills find a license by its metadata `product`, so that is the product unless it is given."""
    metadata = None if body.metadata is None else {PRODUCT: product} | body.metadata
    features = None if body.features is None else tuple(body.features)
    terms = body.floating
    shared = None if terms is None else Terms(terms.seats, Mode(terms.mode), terms.lease, terms.grace, terms.idle)
    return PolicyPlan(
        name=body.name, entitlement_set=body.entitlement_set, features=features, metadata=metadata,
        duration=body.duration, floating=shared,
    )  # fmt: skip


# Products


def list_products(context: Context, body: PageForm) -> Listed[Product]:
    """List products by id."""
    rows = sold.products(context.session, body.after, body.limit + 1)
    return page(rows, Product, body.limit, lambda row: row.product)


def show_product(context: Context, body: OneProduct) -> Product:
    """Show a product."""
    return Product.model_validate(sold.show_product(context.session, body.product))


def create_product(context: Context, body: NewProduct) -> Product:
    """Create a product."""
    return Product.model_validate(sold.create_product(context.session, body.product, body.name, context.now))


def change_product(context: Context, body: NamedProduct) -> Product:
    """Give a product another name."""
    return Product.model_validate(sold.change_product(context.session, body.product, body.name, context.now))


def retire_product(context: Context, body: OneProduct) -> Product:
    """Stop selling a product: its policies issue no more licenses. Licenses that exist stay."""
    return Product.model_validate(sold.retire_product(context.session, body.product, context.now))


def present_product(context: Context, body: OneProduct | NamedProduct) -> Product:
    """The product, locked."""
    sold.product(context.session, body.product, lock=True)
    return Product.model_validate(sold.show_product(context.session, body.product))


# Entitlement sets


def list_sets(context: Context, body: PageForm) -> Listed[EntitlementSet]:
    """List entitlement sets by id."""
    rows = sold.sets(context.session, body.after, body.limit + 1)
    return page(rows, EntitlementSet, body.limit, lambda row: row.entitlement_set)


def show_set(context: Context, body: OneSet) -> EntitlementSet:
    """Show an entitlement set."""
    return EntitlementSet.model_validate(sold.show_set(context.session, body.entitlement_set))


def create_set(context: Context, body: NewSet) -> EntitlementSet:
    """Create an entitlement set: features under one name, for several policies."""
    row = sold.create_set(context.session, body.entitlement_set, body.name, tuple(body.features), context.now)
    return EntitlementSet.model_validate(row)


def change_set(context: Context, body: ChangeSet) -> EntitlementSet:
    """Change an entitlement set, for licenses that are issued or upgraded from now on."""
    features = None if body.features is None else tuple(body.features)
    row = sold.change_set(context.session, body.entitlement_set, body.name, features, context.now)
    return EntitlementSet.model_validate(row)


def present_set(context: Context, body: ChangeSet) -> EntitlementSet:
    """The entitlement set, locked."""
    sold.entitlement_set(context.session, body.entitlement_set, lock=True)
    return EntitlementSet.model_validate(sold.show_set(context.session, body.entitlement_set))


# Policies


def list_policies(context: Context, body: PoliciesForm) -> Listed[Policy]:
    """List policies by id."""
    if body.product is not None:
        sold.product(context.session, body.product)
    rows = sold.policies(context.session, body.product, body.after, body.limit + 1)
    return page(rows, Policy, body.limit, lambda row: row.policy)


def show_policy(context: Context, body: OnePolicy) -> Policy:
    """Show a policy."""
    return Policy.model_validate(sold.show_policy(context.session, body.policy))


def create_policy(context: Context, body: NewPolicy) -> Policy:
    """Create a policy: what a license by it allows, and how long it lasts."""
    row = sold.create_policy(
        context.session, body.policy, body.product, _plan(body, body.product), context.now, trial=body.trial
    )
    return Policy.model_validate(row)


def change_policy(context: Context, body: ChangePolicy) -> Policy:
    """Change a policy, for licenses that are issued or upgraded from now on."""
    plan = _plan(body, sold.policy(context.session, body.policy, lock=True).product_id)
    return Policy.model_validate(sold.change_policy(context.session, body.policy, plan, context.now))


def retire_policy(context: Context, body: OnePolicy) -> Policy:
    """Issue no more licenses by a policy. Licenses that exist stay, and can be renewed."""
    return Policy.model_validate(sold.retire_policy(context.session, body.policy, context.now))


def present_policy(context: Context, body: OnePolicy | ChangePolicy) -> Policy:
    """The policy, locked."""
    sold.policy(context.session, body.policy, lock=True)
    return Policy.model_validate(sold.show_policy(context.session, body.policy))


_READ, _WRITE, _VIEWER, _ISSUER = "products:read", "products:write", Role.VIEWER, Role.ISSUER
_PRODUCT, _SET, _POLICY = "/products/{product}", "/entitlement-sets/{entitlement_set}", "/policies/{policy}"

ACTS = (
    Act("products.list", _READ, _VIEWER, PageForm, Listed[Product], list_products, "/products", "GET"),
    Act("products.show", _READ, _VIEWER, OneProduct, Product, show_product, _PRODUCT, "GET", etag=revision_tag),
    Act("products.create", _WRITE, _ISSUER, NewProduct, Product, create_product, "/products", etag=revision_tag),
    Act(
        "products.change", _WRITE, _ISSUER, NamedProduct, Product, change_product, _PRODUCT, "PATCH",
        present=present_product, etag=revision_tag, match_required=True,
    ),
    Act(
        "products.retire", _WRITE, _ISSUER, OneProduct, Product, retire_product, f"{_PRODUCT}/retire",
        present=present_product, etag=revision_tag,
    ),
    Act("entitlement_sets.list", _READ, _VIEWER, PageForm, Listed[EntitlementSet], list_sets, "/entitlement-sets", "GET"),
    Act("entitlement_sets.show", _READ, _VIEWER, OneSet, EntitlementSet, show_set, _SET, "GET", etag=revision_tag),
    Act("entitlement_sets.create", _WRITE, _ISSUER, NewSet, EntitlementSet, create_set, "/entitlement-sets", etag=revision_tag),
    Act(
        "entitlement_sets.change", _WRITE, _ISSUER, ChangeSet, EntitlementSet, change_set, _SET, "PATCH",
        present=present_set, etag=revision_tag, match_required=True,
    ),
    Act("policies.list", _READ, _VIEWER, PoliciesForm, Listed[Policy], list_policies, "/policies", "GET"),
    Act("policies.show", _READ, _VIEWER, OnePolicy, Policy, show_policy, _POLICY, "GET", etag=revision_tag),
    Act("policies.create", _WRITE, _ISSUER, NewPolicy, Policy, create_policy, "/policies", etag=revision_tag),
    Act(
        "policies.change", _WRITE, _ISSUER, ChangePolicy, Policy, change_policy, _POLICY, "PATCH",
        present=present_policy, etag=revision_tag, match_required=True,
    ),
    Act(
        "policies.retire", _WRITE, _ISSUER, OnePolicy, Policy, retire_policy, f"{_POLICY}/retire",
        present=present_policy, etag=revision_tag,
    ),
)  # fmt: skip
