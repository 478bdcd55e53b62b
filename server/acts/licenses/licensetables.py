"""Acts on many licenses at once: issue, import, export; and the reports that are made of lists of them.

The order names a license's id, or a batch's name and the line do: a request that is sent again issues nothing
twice, with or without an idempotency key.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field

from contracts.claims import MAX_ID_CHARS
from server.accounts.roles import Role
from server.acts.act import Act, Context, Form, Id, Listed, Number, PageForm, Sheet, Time, VendorId, page
from server.acts.tables import BadRow, Cell, RowsRefused, Table, data_of, require_few
from server.base.errors import Invalid
from server.base.times import parse_time, zone_of
from server.licensing.lists import bulk, sheets
from server.licensing.lists.bulk import BAD, ISSUED, MAX_WHOLE, UNCHANGED, Result
from server.licensing.lists.license_list import DeviceRow, LicenseRow, devices, ending, listed
from server.licensing.lists.sheets import Wanted
from server.licensing.sales.orders import Wish

from .licenses import License, WhichLicenses
from .products import Duration, Entries, Features

DEFAULT_DAYS = 30
Zone = Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9_+/-]+$")]
Batch = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS - 8, pattern=r"^[!-~]+$")]


class LicenseLine(Form):
    """A license of a table; what is missing comes from its policy. Times are seconds since 1970 UTC."""

    license_id: Id | None = None
    agent: Cell | None = None
    policy: Cell | None = None
    customer: Cell | None = None
    site: Cell | None = None
    subject: Cell | None = None
    features: Annotated[list[Cell], Field(max_length=256)] | None = None
    metadata: Annotated[dict[Cell, Cell], Field(max_length=256)] | None = None
    not_before: Time | None = None
    expires: Time | None = None


class LicensesTable(Form):
    """Licenses, as `table` (CSV, or a JSON array, as a text) or as `items`. A line without an id gets `batch` and its number.
    With `row_by_row` the good lines count also if others are bad. `zone` is that of dates in `table`.
    """

    table: Table | None = None
    items: list[LicenseLine] | None = None
    batch: Batch | None = None
    row_by_row: bool = False
    zone: Zone = "UTC"


class IssueMany(Form):
    """So many licenses that are on no machine yet, with ids `BATCH-0001` and so on; all or none."""

    count: Annotated[int, Field(ge=1, le=MAX_WHOLE)]
    batch: Batch
    policy: VendorId | None = None
    customer: VendorId | None = None
    site: VendorId | None = None
    features: Features = Field(default_factory=list)
    metadata: Entries = Field(default_factory=dict)
    expires: Time | None = None
    duration: Duration | None = None


class IssuedLine(Form):
    """What became of a line (1 is the first): issued, unchanged or bad; with the token if its agent has a secret."""

    line: Number
    license_id: str | None
    agent: str | None
    outcome: str
    problem: str | None
    token: str | None


class IssuedMany(Form):
    """What became of an order for many."""

    issued: Number
    unchanged: Number
    bad: Number
    results: tuple[IssuedLine, ...]


class ExportedLicense(Form):
    """A license as `licenses.import` and spreadsheets read it. Times are of ISO 8601, empty for none."""

    license_id: str
    agent: str | None
    policy: str | None
    customer: str | None
    site: str | None
    subject: str
    features: list[str]
    metadata: dict[str, str]
    not_before: str
    expires: str
    product: str | None
    state: str
    created_at: str
    updated_at: str
    revoked_at: str
    suspended_at: str
    revision: Number


class ExpiryForm(WhichLicenses):
    """Which licenses: those that end at `begin` or later, and before `until`; by default in the next 30 days."""

    begin: Time | None = None
    until: Time | None = None


class Device(Form):
    """An agent and the numbers of its licenses; times are seconds since 1970 UTC."""

    agent_id: str
    serial: Number | None
    status: str
    attestation: str
    last_seen: Time | None
    active: Number
    suspended: Number
    expired: Number
    revoked: Number
    next_end: Time | None


def issue_many(context: Context, body: IssueMany) -> IssuedMany:
    """Issue many licenses that are on no machine yet, all or none."""
    wish = Wish(
        policy=body.policy, customer=body.customer, site=body.site, features=tuple(body.features), metadata=body.metadata,
        expires=body.expires, duration=body.duration,
    )  # fmt: skip
    return _run(context, bulk.numbered(body.count, body.batch, wish), whole=True)


def import_licenses(context: Context, body: LicensesTable) -> IssuedMany:
    """Issue the licenses of a table, all or none, or line by line: to agents, or on no machine yet where a line names none."""
    data = data_of(context, body.table, body.items)
    if body.zone == "local" and not context.caller.is_local:
        raise Invalid("'local' is a time zone on the server's own machine only: name one, such as Europe/Berlin")
    try:
        zone = zone_of(body.zone)
    except ValueError as error:
        raise Invalid(str(error)) from None
    wanted = sheets.wanted_in(data, lambda text, ends: parse_time(text, context.now, zone, ends=ends))
    return _run(context, bulk.named(wanted, body.batch), whole=not body.row_by_row)


def _run(context: Context, wanted: Sequence[Wanted], *, whole: bool) -> IssuedMany:
    require_few(context, len(wanted))
    licenses = context.server.licenses
    results = bulk.issue_many(context.database, licenses, wanted, context.now, whole=whole, reached=context.reached)
    bad = [BadRow(line=each.line, id=each.license_id, problem=each.problem or "") for each in results if each.outcome == BAD]
    if bad and whole:
        raise RowsRefused(bad, len(results), results)
    return told(results)


def told(results: Sequence[Result]) -> IssuedMany:
    """What became of lines, with their number by outcome."""
    counts = Counter(each.outcome for each in results)
    lines = tuple(IssuedLine.model_validate(each) for each in results)
    return IssuedMany(issued=counts[ISSUED], unchanged=counts[UNCHANGED], bad=counts[BAD], results=lines)


def export(context: Context, body: WhichLicenses) -> Listed[ExportedLicense]:
    """List licenses by id in the form that an import reads; never a token."""
    which = body.filter(context)
    rows = listed(context.session, context.now, after=body.after, limit=body.limit + 1, which=which, seats=False)
    items = tuple(ExportedLicense.model_validate(sheets.cells_of(row, _iso)) for row in rows[: body.limit])
    return Listed(items=items, after=rows[body.limit - 1].license_id if len(rows) > body.limit else None)


def _iso(seconds: int | None) -> str:
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def expiry(context: Context, body: ExpiryForm) -> Listed[License]:
    """List the licenses that end between two times and are not revoked, by their end."""
    begin = context.now if body.begin is None else body.begin
    until = begin + DEFAULT_DAYS * 86_400 if body.until is None else body.until
    last = _place(body.after)
    rows = ending(context.session, context.now, begin, until, last, body.limit + 1, body.filter(context))
    return page(rows, License, body.limit, lambda row: f"{row.expires} {row.license_id}")


def _place(after: str) -> LicenseRow | None:
    """The row behind which a page of `expiry` begins."""
    if not after:
        return None
    end, _space, license_id = after.partition(" ")
    if not (end.isascii() and end.isdigit() and license_id):
        raise Invalid("the place in the list is not one of its own: begin again without it")
    return LicenseRow(license_id, None, "", "", (), {}, 0, int(end), None, None)


def list_devices(context: Context, body: PageForm) -> Listed[Device]:
    """List agents with the numbers of their licenses, and when the next of them ends."""
    rows: list[DeviceRow] = devices(context.session, context.now, body.after, body.limit + 1)
    return page(rows, Device, body.limit, lambda row: row.agent_id)


def _end_cells(row: License) -> tuple[object, ...]:
    owner = row.customer, row.site, row.product, row.policy
    return _iso(row.expires), row.license_id, row.agent_id, row.state, row.subject, *owner


def _device_cells(row: Device) -> tuple[object, ...]:
    counts = row.active, row.suspended, row.expired, row.revoked
    return row.agent_id, row.serial, row.status, row.attestation, _iso(row.last_seen), *counts, _iso(row.next_end)


EXPORTED = Sheet((*sheets.COLUMNS, *sheets.TOLD), lambda row: sheets.as_cells(row.model_dump()))
ENDS = Sheet(("expires", "license_id", "agent_id", "state", "subject", "customer", "site", "product", "policy"), _end_cells)
DEVICES = Sheet(
    ("agent_id", "serial", "status", "attestation", "last_seen", "active", "suspended", "expired", "revoked", "next_end"),
    _device_cells,
)
_READ, _WRITE, _VIEWER, _ISSUER = "licenses:read", "licenses:write", Role.VIEWER, Role.ISSUER

ACTS = (
    Act("licenses.issue_many", _WRITE, _ISSUER, IssueMany, IssuedMany, issue_many, "/licenses/issue-many", alone=True),
    Act("licenses.import", _WRITE, _ISSUER, LicensesTable, IssuedMany, import_licenses, "/licenses/import", alone=True),
    Act(
        "licenses.export", _READ, _VIEWER, WhichLicenses, Listed[ExportedLicense], export, "/exports/licenses", "GET",
        sheet=EXPORTED,
    ),
    Act("reports.expiry", _READ, _VIEWER, ExpiryForm, Listed[License], expiry, "/reports/expiry", "GET", sheet=ENDS),
    Act("reports.devices", _READ, _VIEWER, PageForm, Listed[Device], list_devices, "/reports/devices", "GET", sheet=DEVICES),
)  # fmt: skip
