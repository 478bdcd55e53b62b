"""Commands for customers and their sites."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from server.cli.base.acting import listed, perform
from server.cli.base.listing import limit_option, show_one, show_pages
from server.cli.base.options import json_option, reason_option, utc, where_option
from server.licensing.sales.customers import FIELDS, SITE_FIELDS

from .tables import show_imported, table_options, text_in

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
@where_option
@click.argument("customer_id")
@_fields_options(FIELDS)
@reason_option
@json_option
def customers_create(directory: Path | None, customer_id: str, reason: str, as_json: bool, **fields: str | None) -> None:
    """Create the customer CUSTOMER_ID: a number or code, no name, because audit and licenses keep it."""
    row = perform("customers.create", directory, customer=customer_id, fields=_given(fields))
    show_one(row, as_json)


@customers.command("change")
@where_option
@click.argument("customer_id")
@_fields_options(FIELDS)
@reason_option
@json_option
def customers_change(directory: Path | None, customer_id: str, reason: str, as_json: bool, **fields: str | None) -> None:
    """Change what is given of a customer; an empty text removes a field."""
    row = perform("customers.change", directory, customer=customer_id, fields=_given(fields))
    show_one(row, as_json)


@customers.command("show")
@where_option
@click.argument("customer_id")
@json_option
def customers_show(directory: Path | None, customer_id: str, as_json: bool) -> None:
    """Print everything that is known of a customer."""
    row = perform("customers.show_details", directory, customer=customer_id)
    show_one(row, as_json)


@customers.command("erase")
@where_option
@click.argument("customer_id")
@click.confirmation_option(prompt="What is known of the customer and its sites goes for good. Continue?")
@reason_option
@json_option
def customers_erase(directory: Path | None, customer_id: str, reason: str, as_json: bool) -> None:
    """Erase what is known of a customer and its sites: its key is destroyed. Licenses stay, with the ids.

    Backups that were made before still have the key. Delete them, or let them run out.
    """
    row = perform("customers.erase", directory, customer=customer_id)
    show_one(row, as_json)


@customers.command("list")
@where_option
@_after_option
@limit_option
@json_option
def customers_list(directory: Path | None, after: str, limit: int | None, as_json: bool) -> None:
    """List customers by id."""

    def line(row: Any) -> tuple[object, ...]:
        name = "(erased)" if row.erased_at is not None else row.fields.get("name", "-")
        return row.customer, name, row.fields.get("contact", "-"), row.fields.get("email", "-"), utc(row.created_at)

    headers = ("customer", "name", "contact", "email", "created")
    show_pages(listed("customers.list_details", directory, limit, after), headers, line, as_json)


@customers.command("import")
@where_option
@table_options
@reason_option
@json_option
def customers_import(directory: Path | None, file: Path, row_by_row: bool, reason: str, as_json: bool) -> None:
    """Create the customers in FILE, CSV or JSON. Those that are there with the same fields stay.

    Columns: customer, name, contact, email, phone, address, note.
    """
    show_imported(lambda: perform("customers.import", directory, table=text_in(file), row_by_row=row_by_row), as_json)


@click.group()
def sites() -> None:
    """Manage the sites of customers: shops, warehouses."""


@sites.command("create")
@where_option
@click.argument("site_id")
@click.option("--customer", "customer_id", required=True, metavar="ID", help="Whose site it is.")
@_fields_options(SITE_FIELDS)
@reason_option
@json_option
def sites_create(
    directory: Path | None, site_id: str, customer_id: str, reason: str, as_json: bool, **fields: str | None
) -> None:
    """Create the site SITE_ID of a customer."""
    row = perform("sites.create", directory, site=site_id, customer=customer_id, fields=_given(fields))
    show_one(row, as_json)


@sites.command("change")
@where_option
@click.argument("site_id")
@_fields_options(SITE_FIELDS)
@reason_option
@json_option
def sites_change(directory: Path | None, site_id: str, reason: str, as_json: bool, **fields: str | None) -> None:
    """Change what is given of a site; an empty text removes a field."""
    row = perform("sites.change", directory, site=site_id, fields=_given(fields))
    show_one(row, as_json)


@sites.command("list")
@where_option
@click.option("--customer", "customer_id", metavar="ID", help="Only sites of this customer.")
@_after_option
@limit_option
@json_option
def sites_list(directory: Path | None, customer_id: str | None, after: str, limit: int | None, as_json: bool) -> None:
    """List sites by id."""

    def line(row: Any) -> tuple[object, ...]:
        return row.site, row.customer, row.fields.get("name", "-"), row.fields.get("address", "-")

    show_pages(
        listed("sites.list_details", directory, limit, after, customer=customer_id),
        ("site", "customer", "name", "address"),
        line,
        as_json,
    )


@sites.command("import")
@where_option
@table_options
@reason_option
@json_option
def sites_import(directory: Path | None, file: Path, row_by_row: bool, reason: str, as_json: bool) -> None:
    """Create the sites in FILE, CSV or JSON. Those that are there with the same fields stay.

    Columns: site, customer, name, address, note.
    """
    show_imported(lambda: perform("sites.import", directory, table=text_in(file), row_by_row=row_by_row), as_json)


COMMANDS: tuple[click.Command, ...] = (customers, sites)
