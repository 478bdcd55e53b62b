"""Commands for customers and their sites."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from sqlalchemy.orm import Session

from server.licensing.customers import FIELDS, SITE_FIELDS, CustomerRow, SiteRow
from server.registry.paging import pages

from .listing import limit_option, show_one, show_pages
from .options import directory_option, json_option, now, opened, reading, reason_option, utc, writing

_TEXTS = {
    "name": "Its name.",
    "contact": "The person to talk to.",
    "email": "Where mail goes.",
    "phone": "A telephone number.",
    "address": "Its address, on one line.",
    "note": "What else is to be known.",
}
_after_option = click.option("--after", default="", metavar="ID", help="Only those behind this one.")


def _fields_options(names: tuple[str, ...]) -> Callable[[Any], Any]:
    """An option for each field; an empty text removes what was there."""

    def add(command: Any) -> Any:
        for name in reversed(names):
            command = click.option(f"--{name}", metavar="TEXT", help=_TEXTS[name])(command)
        return command

    return add


def _given(fields: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in fields.items() if value is not None}


@click.group()
def customers() -> None:
    """Manage customers. What is personal is encrypted under a key for each customer."""


@customers.command("create")
@directory_option
@click.argument("customer_id")
@_fields_options(FIELDS)
@reason_option
@json_option
def customers_create(directory: Path, customer_id: str, reason: str, as_json: bool, **fields: str | None) -> None:
    """Create the customer CUSTOMER_ID: a number or code, no name, because audit and licenses keep it."""
    with writing(directory, reason) as (server, session):
        row = server.customers.create(session, customer_id, _given(fields), now())
    show_one(row, as_json)


@customers.command("change")
@directory_option
@click.argument("customer_id")
@_fields_options(FIELDS)
@reason_option
@json_option
def customers_change(directory: Path, customer_id: str, reason: str, as_json: bool, **fields: str | None) -> None:
    """Change what is given of a customer; an empty text removes a field."""
    with writing(directory, reason) as (server, session):
        row = server.customers.change(session, customer_id, _given(fields), now())
    show_one(row, as_json)


@customers.command("show")
@directory_option
@click.argument("customer_id")
@json_option
def customers_show(directory: Path, customer_id: str, as_json: bool) -> None:
    """Print everything that is known of a customer."""
    with reading(directory) as (server, session):
        row = server.customers.show(session, customer_id)
    show_one(row, as_json)


@customers.command("erase")
@directory_option
@click.argument("customer_id")
@click.confirmation_option(prompt="What is known of the customer and its sites goes for good. Continue?")
@reason_option
@json_option
def customers_erase(directory: Path, customer_id: str, reason: str, as_json: bool) -> None:
    """Erase what is known of a customer and its sites: its key is destroyed. Licenses stay, with the ids.

    Backups that were made before still have the key. Delete them, or let them run out.
    """
    with writing(directory, reason) as (server, session):
        row = server.customers.erase(session, customer_id, now())
    show_one(row, as_json)


@customers.command("list")
@directory_option
@_after_option
@limit_option
@json_option
def customers_list(directory: Path, after: str, limit: int | None, as_json: bool) -> None:
    """List customers by id."""

    def line(row: CustomerRow) -> tuple[object, ...]:
        name = "(erased)" if row.erased_at is not None else row.fields.get("name", "-")
        return row.customer, name, row.fields.get("contact", "-"), row.fields.get("email", "-"), utc(row.created_at)

    with opened(directory) as server:

        def page(session: Session, last: CustomerRow | None, most: int) -> list[CustomerRow]:
            return server.customers.listed(session, after if last is None else last.customer, most)

        headers = ("customer", "name", "contact", "email", "created")
        show_pages(pages(server.database, page, limit), headers, line, as_json)


@click.group()
def sites() -> None:
    """Manage the sites of customers: shops, warehouses."""


@sites.command("create")
@directory_option
@click.argument("site_id")
@click.option("--customer", "customer_id", required=True, metavar="ID", help="Whose site it is.")
@_fields_options(SITE_FIELDS)
@reason_option
@json_option
def sites_create(directory: Path, site_id: str, customer_id: str, reason: str, as_json: bool, **fields: str | None) -> None:
    """Create the site SITE_ID of a customer."""
    with writing(directory, reason) as (server, session):
        row = server.customers.create_site(session, site_id, customer_id, _given(fields), now())
    show_one(row, as_json)


@sites.command("change")
@directory_option
@click.argument("site_id")
@_fields_options(SITE_FIELDS)
@reason_option
@json_option
def sites_change(directory: Path, site_id: str, reason: str, as_json: bool, **fields: str | None) -> None:
    """Change what is given of a site; an empty text removes a field."""
    with writing(directory, reason) as (server, session):
        row = server.customers.change_site(session, site_id, _given(fields), now())
    show_one(row, as_json)


@sites.command("list")
@directory_option
@click.option("--customer", "customer_id", metavar="ID", help="Only sites of this customer.")
@_after_option
@limit_option
@json_option
def sites_list(directory: Path, customer_id: str | None, after: str, limit: int | None, as_json: bool) -> None:
    """List sites by id."""

    def line(row: SiteRow) -> tuple[object, ...]:
        return row.site, row.customer, row.fields.get("name", "-"), row.fields.get("address", "-")

    with opened(directory) as server:

        def page(session: Session, last: SiteRow | None, most: int) -> list[SiteRow]:
            return server.customers.sites(session, customer_id, after if last is None else last.site, most)

        show_pages(pages(server.database, page, limit), ("site", "customer", "name", "address"), line, as_json)


COMMANDS: tuple[click.Command, ...] = (customers, sites)
