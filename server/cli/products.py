"""Commands for what a vendor sells: products, entitlement sets, policies."""

from pathlib import Path

import click
from sqlalchemy.orm import Session

from server.licensing import products as sold
from server.licensing.products import EntitlementSetRow, PolicyPlan, PolicyRow, ProductRow
from server.registry.paging import pages

from .listing import limit_option, show_one, show_pages
from .options import DurationType, directory_option, json_option, now, opened, pairs, reading, reason_option, utc, writing

_feature_option = click.option("--feature", "features", multiple=True, metavar="NAME", help="A feature; may be repeated.")
_after_option = click.option("--after", default="", metavar="ID", help="Only those behind this one.")


@click.group()
def products() -> None:
    """Manage what is sold."""


@products.command("create")
@directory_option
@click.argument("product_id")
@click.option("--name", required=True, help="Its name, for people.")
@reason_option
@json_option
def products_create(directory: Path, product_id: str, name: str, reason: str, as_json: bool) -> None:
    """Create the product PRODUCT_ID."""
    with writing(directory, reason) as (_server, session):
        row = sold.create_product(session, product_id, name, now())
    show_one(row, as_json)


@products.command("change")
@directory_option
@click.argument("product_id")
@click.option("--name", required=True, help="Its new name.")
@reason_option
@json_option
def products_change(directory: Path, product_id: str, name: str, reason: str, as_json: bool) -> None:
    """Give a product another name."""
    with writing(directory, reason) as (_server, session):
        row = sold.change_product(session, product_id, name, now())
    show_one(row, as_json)


@products.command("retire")
@directory_option
@click.argument("product_id")
@reason_option
@json_option
def products_retire(directory: Path, product_id: str, reason: str, as_json: bool) -> None:
    """Stop selling a product: its policies issue no more licenses. Licenses that exist stay."""
    with writing(directory, reason) as (_server, session):
        row = sold.retire_product(session, product_id, now())
    show_one(row, as_json)


@products.command("list")
@directory_option
@_after_option
@limit_option
@json_option
def products_list(directory: Path, after: str, limit: int | None, as_json: bool) -> None:
    """List products by id."""

    def line(row: ProductRow) -> tuple[object, ...]:
        return row.product, row.name, "sold" if row.retired_at is None else "retired", utc(row.created_at)

    def page(session: Session, last: ProductRow | None, most: int) -> list[ProductRow]:
        return sold.products(session, after if last is None else last.product, most)

    with opened(directory) as server:
        show_pages(pages(server.database, page, limit), ("product", "name", "state", "created"), line, as_json)


@click.group()
def entitlements() -> None:
    """Manage entitlement sets: features under one name, for several policies."""


@entitlements.command("create")
@directory_option
@click.argument("set_id")
@click.option("--name", required=True, help="Its name, for people.")
@_feature_option
@reason_option
@json_option
def entitlements_create(directory: Path, set_id: str, name: str, features: tuple[str, ...], reason: str, as_json: bool) -> None:
    """Create the entitlement set SET_ID."""
    with writing(directory, reason) as (_server, session):
        row = sold.create_set(session, set_id, name, features, now())
    show_one(row, as_json)


@entitlements.command("change")
@directory_option
@click.argument("set_id")
@click.option("--name", help="Its new name.")
@click.option("--feature", "features", multiple=True, metavar="NAME", help="All of its features from now on; may be repeated.")
@reason_option
@json_option
def entitlements_change(
    directory: Path, set_id: str, name: str | None, features: tuple[str, ...], reason: str, as_json: bool
) -> None:
    """Change an entitlement set, for licenses that are issued or upgraded from now on."""
    with writing(directory, reason) as (_server, session):
        row = sold.change_set(session, set_id, name, features or None, now())
    show_one(row, as_json)


@entitlements.command("list")
@directory_option
@_after_option
@limit_option
@json_option
def entitlements_list(directory: Path, after: str, limit: int | None, as_json: bool) -> None:
    """List entitlement sets by id."""

    def line(row: EntitlementSetRow) -> tuple[object, ...]:
        return row.entitlement_set, row.name, ", ".join(row.features)

    def page(session: Session, last: EntitlementSetRow | None, most: int) -> list[EntitlementSetRow]:
        return sold.sets(session, after if last is None else last.entitlement_set, most)

    with opened(directory) as server:
        show_pages(pages(server.database, page, limit), ("set", "name", "features"), line, as_json)


@click.group()
def policies() -> None:
    """Manage policies, the templates of licenses."""


_set_option = click.option("--entitlements", "set_id", metavar="SET_ID", help="Features of this entitlement set.")
_metadata_option = click.option(
    "--metadata", multiple=True, metavar="NAME=VALUE", callback=pairs, help="For the POS application; may be repeated."
)
_duration_option = click.option("--duration", type=DurationType(), help="How long a license lasts: 365d, 52w.")


@policies.command("create")
@directory_option
@click.argument("policy_id")
@click.option("--product", "product_id", required=True, metavar="ID", help="The product that its licenses are for.")
@click.option("--name", required=True, help="Its name, for people.")
@_set_option
@_feature_option
@_metadata_option
@_duration_option
@click.option("--trial", is_flag=True, help="Each machine gets one license of the product by such a policy, ever.")
@reason_option
@json_option
def policies_create(
    directory: Path,
    policy_id: str,
    product_id: str,
    name: str,
    set_id: str | None,
    features: tuple[str, ...],
    metadata: dict[str, str],
    duration: int | None,
    trial: bool,
    reason: str,
    as_json: bool,
) -> None:
    """Create the policy POLICY_ID."""
    plan = PolicyPlan(name, set_id, features, metadata, duration)
    with writing(directory, reason) as (_server, session):
        row = sold.create_policy(session, policy_id, product_id, plan, now(), trial=trial)
    show_one(row, as_json)


@policies.command("change")
@directory_option
@click.argument("policy_id")
@click.option("--name", help="Its new name.")
@_set_option
@click.option("--feature", "features", multiple=True, metavar="NAME", help="All of its features from now on; may be repeated.")
@_metadata_option
@_duration_option
@reason_option
@json_option
def policies_change(
    directory: Path,
    policy_id: str,
    name: str | None,
    set_id: str | None,
    features: tuple[str, ...],
    metadata: dict[str, str],
    duration: int | None,
    reason: str,
    as_json: bool,
) -> None:
    """Change what is given of a policy, for licenses that are issued or upgraded from now on."""
    plan = PolicyPlan(name, set_id, features or None, metadata or None, duration)
    with writing(directory, reason) as (_server, session):
        row = sold.change_policy(session, policy_id, plan, now())
    show_one(row, as_json)


@policies.command("retire")
@directory_option
@click.argument("policy_id")
@reason_option
@json_option
def policies_retire(directory: Path, policy_id: str, reason: str, as_json: bool) -> None:
    """Issue no more licenses by a policy. Licenses that exist stay, and can be renewed."""
    with writing(directory, reason) as (_server, session):
        row = sold.retire_policy(session, policy_id, now())
    show_one(row, as_json)


@policies.command("show")
@directory_option
@click.argument("policy_id")
@json_option
def policies_show(directory: Path, policy_id: str, as_json: bool) -> None:
    """Print everything about a policy."""
    with reading(directory) as (_server, session):
        row = sold.show_policy(session, policy_id)
    show_one(row, as_json)


@policies.command("list")
@directory_option
@click.option("--product", "product_id", metavar="ID", help="Only policies of this product.")
@_after_option
@limit_option
@json_option
def policies_list(directory: Path, product_id: str | None, after: str, limit: int | None, as_json: bool) -> None:
    """List policies by id."""

    def line(row: PolicyRow) -> tuple[object, ...]:
        lasts = "-" if row.duration is None else f"{row.duration / 86_400:g} d"
        kind = "retired" if row.retired_at is not None else "trial" if row.trial else "sale"
        return row.policy, row.product, row.name, kind, lasts, row.entitlement_set or "-", ", ".join(row.features)

    def page(session: Session, last: PolicyRow | None, most: int) -> list[PolicyRow]:
        return sold.policies(session, product_id, after if last is None else last.policy, most)

    with opened(directory) as server:
        if product_id is not None:
            with server.database.read() as session:
                sold.show_product(session, product_id)
        headers = ("policy", "product", "name", "kind", "lasts", "set", "own features")
        show_pages(pages(server.database, page, limit), headers, line, as_json)


COMMANDS: tuple[click.Command, ...] = (products, entitlements, policies)
