"""Acts on customers and their sites.

What is personal is behind acts of its own (`show_details`, `list_details`), for who helps and sells; all others, and every
result, record and event, have ids and times only. No act here needs an approval: that would keep its body.
"""

from typing import Annotated

from pydantic import Field

from server.accounts.roles import Role
from server.acts.act import Act, Context, Form, Listed, Number, PageForm, Time, VendorId, page, revision_tag
from server.acts.tables import BadRow, Cell, RowsRefused, Table, data_of, require_few
from server.licensing.lists.customersheet import (
    BAD,
    CREATED,
    CUSTOMER_COLUMNS,
    SITE_COLUMNS,
    UNCHANGED,
    Result,
    import_customers,
    import_sites,
    lines_of,
)
from server.licensing.sales import customers as known
from server.licensing.sales.customers import MAX_FIELD, CustomerRow, SiteRow

Personal = Annotated[str, Field(max_length=MAX_FIELD, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]


class CustomerFields(Form):
    """What is known of a customer. An empty text removes what was there."""

    name: Personal | None = None
    contact: Personal | None = None
    email: Personal | None = None
    phone: Personal | None = None
    address: Personal | None = None
    note: Personal | None = None


class SiteFields(Form):
    """What is known of a site. An empty text removes what was there."""

    name: Personal | None = None
    address: Personal | None = None
    note: Personal | None = None


class Customer(Form):
    """A customer without what is personal; times are seconds since 1970 UTC."""

    customer: str
    created_at: Time
    updated_at: Time
    erased_at: Time | None
    revision: Number


class CustomerDetails(Customer):
    """A customer with everything that is known of it: personal data."""

    fields: dict[str, str]


class Site(Form):
    """A site without what is personal; times are seconds since 1970 UTC."""

    site: str
    customer: str
    created_at: Time
    updated_at: Time
    revision: Number


class SiteDetails(Site):
    """A site with everything that is known of it: personal data."""

    fields: dict[str, str]


class OneCustomer(Form):
    """Which customer."""

    customer: VendorId


class NewCustomer(Form):
    """A customer to create: its id is a number or a code, no name. Without an id it gets a new one."""

    customer: VendorId | None = None
    fields: CustomerFields = CustomerFields()


class ChangeCustomer(Form):
    """What to change of a customer; what is missing stays."""

    customer: VendorId
    fields: CustomerFields


class OneSite(Form):
    """Which site."""

    site: VendorId


class SitesForm(PageForm):
    """Which sites."""

    customer: VendorId | None = None


class NewSite(Form):
    """A site to create; without an id it gets a new one."""

    site: VendorId | None = None
    customer: VendorId
    fields: SiteFields = SiteFields()


class ChangeSite(Form):
    """What to change of a site; what is missing stays."""

    site: VendorId
    fields: SiteFields


class CustomerLine(Form):
    """A customer of a table."""

    customer: Cell
    name: Cell | None = None
    contact: Cell | None = None
    email: Cell | None = None
    phone: Cell | None = None
    address: Cell | None = None
    note: Cell | None = None


class SiteLine(Form):
    """A site of a table."""

    site: Cell
    customer: Cell
    name: Cell | None = None
    address: Cell | None = None
    note: Cell | None = None


class CustomersTable(Form):
    """Customers, as `table` (CSV, or a JSON array, as a text) or as `items`. With `row_by_row` the good lines count
    also if others are bad.
    """

    table: Table | None = None
    items: list[CustomerLine] | None = None
    row_by_row: bool = False


class SitesTable(Form):
    """Sites, as `table` (CSV, or a JSON array, as a text) or as `items`. With `row_by_row` the good lines count
    also if others are bad.
    """

    table: Table | None = None
    items: list[SiteLine] | None = None
    row_by_row: bool = False


class ImportedLine(Form):
    """What became of a line (1 is the first): created, unchanged or bad."""

    line: Number
    id: str | None
    outcome: str
    problem: str | None


class Imported(Form):
    """What became of a table."""

    created: Number
    unchanged: Number
    bad: Number
    results: tuple[ImportedLine, ...]


def _customer(row: CustomerRow) -> Customer:
    return Customer.model_validate(row)


def _site(row: SiteRow) -> Site:
    return Site.model_validate(row)


# Customers


def list_customers(context: Context, body: PageForm) -> Listed[Customer]:
    """List customers by id, without what is personal."""
    rows = context.server.customers.listed(context.session, body.after, body.limit + 1)
    return page(rows, Customer, body.limit, lambda row: row.customer)


def list_customer_details(context: Context, body: PageForm) -> Listed[CustomerDetails]:
    """List customers by id, with everything that is known of them."""
    rows = context.server.customers.listed(context.session, body.after, body.limit + 1)
    return page(rows, CustomerDetails, body.limit, lambda row: row.customer)


def show_customer(context: Context, body: OneCustomer) -> Customer:
    """Show a customer, without what is personal."""
    return _customer(context.server.customers.show(context.session, body.customer))


def show_customer_details(context: Context, body: OneCustomer) -> CustomerDetails:
    """Show everything that is known of a customer."""
    return CustomerDetails.model_validate(context.server.customers.show(context.session, body.customer))


def create_customer(context: Context, body: NewCustomer) -> Customer:
    """Create a customer. What is known of it is encrypted under a key of its own."""
    fields = body.fields.model_dump(exclude_none=True)
    return _customer(context.server.customers.create(context.session, body.customer, fields, context.now))


def change_customer(context: Context, body: ChangeCustomer) -> Customer:
    """Change what is known of a customer."""
    fields = body.fields.model_dump(exclude_none=True)
    return _customer(context.server.customers.change(context.session, body.customer, fields, context.now))


def erase_customer(context: Context, body: OneCustomer) -> Customer:
    """Erase what is known of a customer and its sites, for good: its key is destroyed. Licenses stay, with the id."""
    return _customer(context.server.customers.erase(context.session, body.customer, context.now))


def import_many_customers(context: Context, body: CustomersTable) -> Imported:
    """Create the customers of a table, all or none, or line by line. Those that are there with the same fields stay."""
    data = data_of(context, body.table, body.items)
    lines = lines_of(data, CUSTOMER_COLUMNS)
    require_few(context, len(lines))
    return _told(import_customers(context.session, context.server.customers, lines, context.now), body.row_by_row)


def present_customer(context: Context, body: OneCustomer | ChangeCustomer) -> Customer:
    """The customer, locked."""
    known.customer(context.session, body.customer, lock=True)
    return _customer(context.server.customers.show(context.session, body.customer))


# Sites


def list_sites(context: Context, body: SitesForm) -> Listed[Site]:
    """List sites by id, without what is personal."""
    rows = context.server.customers.sites(context.session, body.customer, body.after, body.limit + 1)
    return page(rows, Site, body.limit, lambda row: row.site)


def list_site_details(context: Context, body: SitesForm) -> Listed[SiteDetails]:
    """List sites by id, with everything that is known of them."""
    rows = context.server.customers.sites(context.session, body.customer, body.after, body.limit + 1)
    return page(rows, SiteDetails, body.limit, lambda row: row.site)


def show_site(context: Context, body: OneSite) -> Site:
    """Show a site, without what is personal."""
    return _site(context.server.customers.show_site(context.session, body.site))


def show_site_details(context: Context, body: OneSite) -> SiteDetails:
    """Show everything that is known of a site."""
    return SiteDetails.model_validate(context.server.customers.show_site(context.session, body.site))


def create_site(context: Context, body: NewSite) -> Site:
    """Create a site of a customer."""
    fields = body.fields.model_dump(exclude_none=True)
    return _site(context.server.customers.create_site(context.session, body.site, body.customer, fields, context.now))


def change_site(context: Context, body: ChangeSite) -> Site:
    """Change what is known of a site."""
    fields = body.fields.model_dump(exclude_none=True)
    return _site(context.server.customers.change_site(context.session, body.site, fields, context.now))


def import_many_sites(context: Context, body: SitesTable) -> Imported:
    """Create the sites of a table, all or none, or line by line. Those that are there with the same fields stay."""
    data = data_of(context, body.table, body.items)
    lines = lines_of(data, SITE_COLUMNS)
    require_few(context, len(lines))
    return _told(import_sites(context.session, context.server.customers, lines, context.now), body.row_by_row)


def present_site(context: Context, body: ChangeSite) -> Site:
    """The site, locked behind its customer, as a change locks them."""
    owner = known.site(context.session, body.site).customer_id
    known.customer(context.session, owner, lock=True)
    known.site(context.session, body.site, lock=True)
    return _site(context.server.customers.show_site(context.session, body.site))


def _told(results: list[Result], row_by_row: bool) -> Imported:
    """What became of the lines. Raises RowsRefused, which undoes the transaction, where a table is all or none."""
    bad = [BadRow(line=each.line, id=each.id, problem=each.problem or "") for each in results if each.outcome == BAD]
    if bad and not row_by_row:
        raise RowsRefused(bad, len(results), results)
    counts = [sum(each.outcome == outcome for each in results) for outcome in (CREATED, UNCHANGED, BAD)]
    lines = tuple(ImportedLine.model_validate(each) for each in results)
    return Imported(created=counts[0], unchanged=counts[1], bad=counts[2], results=lines)


_READ, _WRITE, _VIEWER, _SUPPORT, _ISSUER = "customers:read", "customers:write", Role.VIEWER, Role.SUPPORT, Role.ISSUER
_CUSTOMER, _SITE = "/customers/{customer}", "/sites/{site}"

ACTS = (
    Act("customers.list", _READ, _VIEWER, PageForm, Listed[Customer], list_customers, "/customers", "GET"),
    Act("customers.show", _READ, _VIEWER, OneCustomer, Customer, show_customer, _CUSTOMER, "GET", etag=revision_tag),
    Act(
        "customers.list_details", _READ, _SUPPORT, PageForm, Listed[CustomerDetails], list_customer_details,
        "/customer-details", "GET",
    ),
    Act(
        "customers.show_details", _READ, _SUPPORT, OneCustomer, CustomerDetails, show_customer_details,
        f"{_CUSTOMER}/details", "GET", etag=revision_tag,
    ),
    Act("customers.create", _WRITE, _ISSUER, NewCustomer, Customer, create_customer, "/customers", etag=revision_tag),
    Act(
        "customers.change", _WRITE, _ISSUER, ChangeCustomer, Customer, change_customer, _CUSTOMER, "PATCH",
        present=present_customer, etag=revision_tag, match_required=True,
    ),
    Act(
        "customers.erase", _WRITE, Role.SECURITY_OFFICER, OneCustomer, Customer, erase_customer, f"{_CUSTOMER}/erase",
        present=present_customer, etag=revision_tag,
    ),
    Act("customers.import", _WRITE, _ISSUER, CustomersTable, Imported, import_many_customers, "/customers/import"),
    Act("sites.list", _READ, _VIEWER, SitesForm, Listed[Site], list_sites, "/sites", "GET"),
    Act("sites.show", _READ, _VIEWER, OneSite, Site, show_site, _SITE, "GET", etag=revision_tag),
    Act(
        "sites.list_details", _READ, _SUPPORT, SitesForm, Listed[SiteDetails], list_site_details, "/site-details", "GET"
    ),
    Act(
        "sites.show_details", _READ, _SUPPORT, OneSite, SiteDetails, show_site_details, f"{_SITE}/details", "GET",
        etag=revision_tag,
    ),
    Act("sites.create", _WRITE, _ISSUER, NewSite, Site, create_site, "/sites", etag=revision_tag),
    Act(
        "sites.change", _WRITE, _ISSUER, ChangeSite, Site, change_site, _SITE, "PATCH",
        present=present_site, etag=revision_tag, match_required=True,
    ),
    Act("sites.import", _WRITE, _ISSUER, SitesTable, Imported, import_many_sites, "/sites/import"),
)  # fmt: skip
