"""Commands for rollouts that start without a person."""

from pathlib import Path
from typing import Any

import click

from common.text import shown
from server.cli.base.acting import asking, listed, perform
from server.cli.base.listing import limit_option, show_pages
from server.cli.base.options import confirm, json_option, members, reason_option, utc, where_option, yes_option

from .policyoptions import policy_given, policy_options


@click.group("automatic")
def automatic() -> None:
    """Roll new releases of a product out without a person."""


@automatic.command("on")
@where_option
@click.argument("fleet_id", metavar="FLEET")
@click.argument("product", metavar="PRODUCT")
@click.option("--where", "selection", metavar="SELECTION", help="Only devices of the fleet that this selects.")
@policy_options
@yes_option
@reason_option
def automatic_on(
    directory: Path | None, fleet_id: str, product: str, selection: str | None, yes: bool, reason: str, **given: Any
) -> None:
    """Start a rollout to FLEET of each release of PRODUCT that is published from now on. A second person must approve.

    What is not given is as the fleet's policy has it now. What was approved stays as it is when the fleet's policy changes.
    """
    confirm(f"Each new release of {product} goes to fleet {fleet_id} without anybody being asked. Continue?", yes=yes)
    with asking(directory) as server:
        known = server.perform("rollouts.show_policy", fleet_id=fleet_id).policy.model_dump(mode="json", exclude_none=True)
        policy = {**known, **policy_given(given)}
        wanted = {"fleet_id": fleet_id, "product": product, "selection": selection}
        _say(server.perform("rollouts.automatic_on", **wanted, policy=policy))


@automatic.command("off")
@where_option
@click.argument("fleet_id", metavar="FLEET")
@click.argument("product", metavar="PRODUCT")
@reason_option
def automatic_off(directory: Path | None, fleet_id: str, product: str, reason: str) -> None:
    """Start no rollouts of PRODUCT to FLEET any more unless somebody asks. Those that exist go on."""
    perform("rollouts.automatic_off", directory, fleet_id=fleet_id, product=product)
    click.echo(shown(f"releases of {product} go to fleet {fleet_id} when two people start a rollout"), err=True)


@automatic.command("list")
@where_option
@click.option("--fleet", "fleet_id", metavar="ID", help="Only this fleet's.")
@limit_option
@json_option
def list_automatic(directory: Path | None, fleet_id: str | None, limit: int | None, as_json: bool) -> None:
    """List the fleets and products whose new releases are rolled out without a person."""

    def line(row: Any) -> tuple[object, ...]:
        return row.fleet_id, row.product, row.state, row.newest or "-", utc(row.set_at), row.set_by, row.detail

    headers = ("fleet", "product", "state", "last", "since", "by", "detail")
    show_pages(listed("rollouts.automatic", directory, limit, fleet_id=fleet_id), headers, line, as_json, members)


def _say(row: Any) -> None:
    which = f"releases of {row.product} above {row.floor}" if row.floor else f"releases of {row.product}"
    unknown = "" if row.floor else f"; none of that product is published yet: is {row.product!r} its name?"
    click.echo(shown(f"{which} go to fleet {row.fleet_id} by themselves{unknown}"), err=True)
