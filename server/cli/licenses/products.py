"""Commands for what a vendor sells: products, entitlement sets, policies."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from server.cli.base.acting import listed, perform
from server.cli.base.listing import limit_option, show_one, show_pages
from server.cli.base.options import DurationType, json_option, pairs, reason_option, utc, where_option
from server.licensing.sales.seats import Mode

F = TypeVar("F", bound=Callable[..., Any])
_feature_option = click.option("--feature", "features", multiple=True, metavar="NAME", help="A feature; may be repeated.")
_after_option = click.option("--after", default="", metavar="ID", help="Only those behind this one.")


@click.group()
def products() -> None:
    """Manage what is sold."""


@products.command("create")
@where_option
@click.argument("product_id")
@click.option("--name", required=True, help="Its name, for people.")
@reason_option
@json_option
def products_create(directory: Path | None, product_id: str, name: str, reason: str, as_json: bool) -> None:
    """Create the product PRODUCT_ID."""
    row = perform("products.create", directory, product=product_id, name=name)
    show_one(row, as_json)


@products.command("change")
@where_option
@click.argument("product_id")
@click.option("--name", required=True, help="Its new name.")
@reason_option
@json_option
def products_change(directory: Path | None, product_id: str, name: str, reason: str, as_json: bool) -> None:
    """Give a product another name."""
    row = perform("products.change", directory, product=product_id, name=name)
    show_one(row, as_json)


@products.command("retire")
@where_option
@click.argument("product_id")
@reason_option
@json_option
def products_retire(directory: Path | None, product_id: str, reason: str, as_json: bool) -> None:
    """Stop selling a product: its policies issue no more licenses. Licenses that exist stay."""
    row = perform("products.retire", directory, product=product_id)
    show_one(row, as_json)


@products.command("list")
@where_option
@_after_option
@limit_option
@json_option
def products_list(directory: Path | None, after: str, limit: int | None, as_json: bool) -> None:
    """List products by id."""

    def line(row: Any) -> tuple[object, ...]:
        return row.product, row.name, "sold" if row.retired_at is None else "retired", utc(row.created_at)

    show_pages(listed("products.list", directory, limit, after), ("product", "name", "state", "created"), line, as_json)


@click.group()
def entitlements() -> None:
    """Manage entitlement sets: features under one name, for several policies."""


@entitlements.command("create")
@where_option
@click.argument("set_id")
@click.option("--name", required=True, help="Its name, for people.")
@_feature_option
@reason_option
@json_option
def entitlements_create(
    directory: Path | None, set_id: str, name: str, features: tuple[str, ...], reason: str, as_json: bool
) -> None:
    """Create the entitlement set SET_ID."""
    row = perform("entitlement_sets.create", directory, entitlement_set=set_id, name=name, features=list(features))
    show_one(row, as_json)


@entitlements.command("change")
@where_option
@click.argument("set_id")
@click.option("--name", help="Its new name.")
@click.option("--feature", "features", multiple=True, metavar="NAME", help="All of its features from now on; may be repeated.")
@reason_option
@json_option
def entitlements_change(
    directory: Path | None, set_id: str, name: str | None, features: tuple[str, ...], reason: str, as_json: bool
) -> None:
    """Change an entitlement set, for licenses that are issued or upgraded from now on."""
    row = perform("entitlement_sets.change", directory, entitlement_set=set_id, name=name, features=list(features) or None)
    show_one(row, as_json)


@entitlements.command("list")
@where_option
@_after_option
@limit_option
@json_option
def entitlements_list(directory: Path | None, after: str, limit: int | None, as_json: bool) -> None:
    """List entitlement sets by id."""

    def line(row: Any) -> tuple[object, ...]:
        return row.entitlement_set, row.name, ", ".join(row.features)

    show_pages(listed("entitlement_sets.list", directory, limit, after), ("set", "name", "features"), line, as_json)


@click.group()
def policies() -> None:
    """Manage policies, the templates of licenses."""


_set_option = click.option("--entitlements", "set_id", metavar="SET_ID", help="Features of this entitlement set.")
_metadata_option = click.option(
    "--metadata", multiple=True, metavar="NAME=VALUE", callback=pairs, help="For the POS application; may be repeated."
)
_duration_option = click.option("--duration", type=DurationType(), help="How long a license lasts: 365d, 52w.")


_MODES = [mode.value for mode in Mode]
_floating_options = (
    click.option("--seats", type=click.IntRange(1), metavar="N", help="The tills of a site share each license: N at once."),
    click.option("--mode", type=click.Choice(_MODES), help="With --seats, as in 'seats set'; hard unless given."),
    click.option("--lease", type=DurationType(), help="With --seats: a till renews its seat then; 4h unless given."),
    click.option(
        "--grace", type=DurationType(), help="With --seats: how long a till works offline, at least; 3d unless given."
    ),
    click.option("--idle", type=DurationType(), help="With --seats: a till gives an unused seat back then; 12h unless given."),
)


def floating_options(command: F) -> F:
    """The terms of a policy's seats."""
    for option in reversed(_floating_options):
        command = option(command)
    return command


def _floating(seats: int | None, **terms: object) -> dict[str, object] | None:
    given = {name: value for name, value in terms.items() if value is not None}
    if seats is None and given:
        raise click.UsageError(f"--{min(given)} belongs to --seats N")
    return None if seats is None else {"seats": seats, **given}


@policies.command("create")
@where_option
@click.argument("policy_id")
@click.option("--product", "product_id", required=True, metavar="ID", help="The product that its licenses are for.")
@click.option("--name", required=True, help="Its name, for people.")
@_set_option
@_feature_option
@_metadata_option
@_duration_option
@floating_options
@click.option("--trial", is_flag=True, help="Each machine gets one license of the product by such a policy, ever.")
@reason_option
@json_option
def policies_create(
    directory: Path | None,
    policy_id: str,
    product_id: str,
    name: str,
    set_id: str | None,
    features: tuple[str, ...],
    metadata: dict[str, str],
    duration: int | None,
    seats: int | None,
    mode: str | None,
    lease: int | None,
    grace: int | None,
    idle: int | None,
    trial: bool,
    reason: str,
    as_json: bool,
) -> None:
    """Create the policy POLICY_ID."""
    row = perform(
        "policies.create", directory, policy=policy_id, product=product_id, name=name, entitlement_set=set_id,
        features=list(features), metadata=metadata, duration=duration, trial=trial,
        floating=_floating(seats, mode=mode, lease=lease, grace=grace, idle=idle),
    )  # fmt: skip
    show_one(row, as_json)


@policies.command("change")
@where_option
@click.argument("policy_id")
@click.option("--name", help="Its new name.")
@_set_option
@click.option("--feature", "features", multiple=True, metavar="NAME", help="All of its features from now on; may be repeated.")
@_metadata_option
@_duration_option
@floating_options
@reason_option
@json_option
def policies_change(
    directory: Path | None,
    policy_id: str,
    name: str | None,
    set_id: str | None,
    features: tuple[str, ...],
    metadata: dict[str, str],
    duration: int | None,
    seats: int | None,
    mode: str | None,
    lease: int | None,
    grace: int | None,
    idle: int | None,
    reason: str,
    as_json: bool,
) -> None:
    """Change what is given of a policy, for licenses that are issued or upgraded from now on."""
    row = perform(
        "policies.change", directory, policy=policy_id, name=name, entitlement_set=set_id, features=list(features) or None,
        metadata=metadata or None, duration=duration, floating=_floating(seats, mode=mode, lease=lease, grace=grace, idle=idle),
    )  # fmt: skip
    show_one(row, as_json)


@policies.command("retire")
@where_option
@click.argument("policy_id")
@reason_option
@json_option
def policies_retire(directory: Path | None, policy_id: str, reason: str, as_json: bool) -> None:
    """Issue no more licenses by a policy. Licenses that exist stay, and can be renewed."""
    row = perform("policies.retire", directory, policy=policy_id)
    show_one(row, as_json)


@policies.command("show")
@where_option
@click.argument("policy_id")
@json_option
def policies_show(directory: Path | None, policy_id: str, as_json: bool) -> None:
    """Print everything about a policy."""
    row = perform("policies.show", directory, policy=policy_id)
    show_one(row, as_json)


@policies.command("list")
@where_option
@click.option("--product", "product_id", metavar="ID", help="Only policies of this product.")
@_after_option
@limit_option
@json_option
def policies_list(directory: Path | None, product_id: str | None, after: str, limit: int | None, as_json: bool) -> None:
    """List policies by id."""

    def line(row: Any) -> tuple[object, ...]:
        lasts = "-" if row.duration is None else f"{row.duration / 86_400:g} d"
        kind = (
            "retired" if row.retired_at is not None else "trial" if row.trial else "sale" if row.floating is None else "seats"
        )
        return row.policy, row.product, row.name, kind, lasts, row.entitlement_set or "-", ", ".join(row.features)

    headers = ("policy", "product", "name", "kind", "lasts", "set", "own features")
    show_pages(listed("policies.list", directory, limit, after, product=product_id), headers, line, as_json)


COMMANDS: tuple[click.Command, ...] = (products, entitlements, policies)
