"""Imports customers and sites from a table, CSV or JSON. What exists with the same fields stays, so a run can be repeated.

An error names a line's number and id: a field of a customer is in no result and no error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.base.errors import Conflict, Invalid, RegistryError
from server.licensing.sales.customers import FIELDS, SITE_FIELDS, Customers
from server.registry.models.licensing import Customer, Site

from .sheets import lines_in

CREATED, UNCHANGED, BAD, HELD = "created", "unchanged", "bad", "not created"
MAX_LINES = 10_000
"""Of one transaction, which keeps others waiting."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a line.

    Attributes:
        line: where it is in the file; 1 is the first.
        id: of the customer or site; None if the line has none.
        outcome: created; unchanged, if it was there already; bad; or not created, because another line is bad.
        problem: what is wrong with a bad line.
    """

    line: int
    id: str | None
    outcome: str
    problem: str | None = None


Lines = list[tuple[int, dict[str, Any] | str]]
CUSTOMER_COLUMNS, SITE_COLUMNS = ("customer", *FIELDS), ("site", "customer", *SITE_FIELDS)


def lines_of(data: bytes, columns: tuple[str, ...]) -> Lines:
    """The lines of a table, CSV or JSON. Raises Invalid: it cannot be read, or one transaction cannot have so many."""
    lines = lines_in(data, columns)
    if len(lines) > MAX_LINES:
        raise Invalid(f"{len(lines)} lines are too many at once ({MAX_LINES}): divide the file")
    return lines


def import_customers(session: Session, customers: Customers, lines: Lines, now: int) -> list[Result]:
    """Creates the customers of a table.

    Args:
        session: of a writing transaction. Bad lines leave no trace in it; the caller ends it without a commit to do nothing.
        customers: the store.
        lines: of `lines_of`, with `CUSTOMER_COLUMNS`.
        now: seconds since 1970 UTC.
    """

    def create(cells: dict[str, Any]) -> bool:
        customer_id, fields = _text(cells, "customer"), _fields(cells, FIELDS)
        known = session.get(Customer, customer_id)
        if known is None:
            customers.create(session, customer_id, fields, now)
        elif known.erased_at is not None:
            raise Conflict(f"customer {customer_id!r} was erased: choose another id")
        elif customers.show(session, customer_id).fields != fields:
            raise Conflict(f"customer {customer_id!r} exists with other fields: change it, or leave the line out")
        return known is None

    return _each(session, lines, "customer", create)


def import_sites(session: Session, customers: Customers, lines: Lines, now: int) -> list[Result]:
    """Creates the sites of a table, with `SITE_COLUMNS`. Args as for `import_customers`."""
    # In the order of their ids, and before the audit's counter: two imports at once would wait for each other.
    owners = sorted({str(cells.get("customer")) for _line, cells in lines if isinstance(cells, dict)})
    for first in range(0, len(owners), 500):
        some = Customer.id.in_(owners[first : first + 500])
        session.scalars(select(Customer).where(some).order_by(Customer.id).with_for_update()).all()

    def create(cells: dict[str, Any]) -> bool:
        site_id, owner, fields = _text(cells, "site"), _text(cells, "customer"), _fields(cells, SITE_FIELDS)
        known = session.get(Site, site_id)
        if known is None:
            customers.create_site(session, site_id, owner, fields, now)
            return True
        row = customers.show_site(session, site_id)
        if (row.customer, row.fields) != (owner, fields):
            raise Conflict(f"site {site_id!r} exists with another customer or other fields: change it, or leave the line out")
        return False

    return _each(session, lines, "site", create)


def _each(session: Session, lines: Lines, key: str, create: Callable[[dict[str, Any]], bool]) -> list[Result]:
    results = []
    for line, cells in lines:
        if isinstance(cells, str):
            results.append(Result(line, None, BAD, cells))
            continue
        named = cells.get(key)
        row_id = named[:64] if isinstance(named, str) else None
        try:
            with session.begin_nested():
                results.append(Result(line, row_id, CREATED if create(cells) else UNCHANGED))
        except RegistryError as error:
            results.append(Result(line, row_id, BAD, str(error)))
    return results


def _text(cells: dict[str, Any], name: str) -> str:
    value = cells.get(name)
    if not isinstance(value, str) or not value:
        raise Invalid(f"it has no {name}: add it, as a text")
    if len(value) > 64 or not value.isprintable():
        raise Invalid(f"its {name} is not an id")
    return value


def _fields(cells: dict[str, Any], names: tuple[str, ...]) -> dict[str, str]:
    fields = {name: cells[name] for name in names if cells.get(name) not in (None, "")}
    for name, value in fields.items():
        if not isinstance(value, str):
            raise Invalid(f"the field {name} must be a text")
    return fields
