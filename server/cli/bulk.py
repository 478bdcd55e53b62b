"""Commands for many licenses at once: issue, import, export; and reports."""

import json
import sys
import time as clock
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import tzinfo
from pathlib import Path
from typing import IO, Any

import click
from sqlalchemy.orm import Session

from common.files import temporary_of, write_atomic
from server.base.errors import RegistryError
from server.base.times import parse_time
from server.licensing import bulk, sheets
from server.licensing.bulk import BAD, HELD, Result
from server.licensing.license_list import DeviceRow, Filter, LicenseRow, devices, ending, listed
from server.licensing.license_states import State
from server.licensing.orders import Wish
from server.licensing.sheets import Wanted
from server.registry.paging import pages

from .licensefilter import filter_options, which
from .listing import limit_option, progress_bar, show_pages
from .options import (
    DurationType,
    TimeType,
    directory_option,
    json_option,
    now,
    opened,
    pairs,
    reason_option,
    utc,
    zone_option,
)
from .output import out_option, writable

_batch_option = click.option(
    "--batch", metavar="NAME", help="Ids of licenses without one: NAME and a number. The same name again issues nothing twice."
)
_rows_option = click.option(
    "--row-by-row", is_flag=True, help="Issue the good lines also if others are bad.  [default: all or none]"
)
_report_option = click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=writable,
    help="Write what became of each line here, with the tokens: CSV, or JSON by the name .json.",
)
_format_option = click.option(
    "--format", "form", type=click.Choice(["csv", "json"]), default="csv", show_default=True, help="The form of the file."
)
_RESULT = ("line", "license_id", "agent", "outcome", "problem", "token")


@click.command("issue-many")
@directory_option
@click.option("--count", type=click.IntRange(1, bulk.MAX_WHOLE), required=True, metavar="N", help="How many.")
@click.option("--batch", required=True, metavar="NAME", help="Their ids are NAME-0001 and so on.")
@click.option("--policy", metavar="ID", help="The policy that says what is licensed, and for how long.")
@click.option("--customer", metavar="ID", help="Whose licenses they are.")
@click.option("--site", metavar="ID", help="Where they are used; it names its customer.")
@click.option("--feature", "features", multiple=True, metavar="NAME", help="A licensed feature; may be repeated.")
@click.option(
    "--metadata", multiple=True, metavar="NAME=VALUE", callback=pairs, help="For the POS application; may be repeated."
)
@click.option("--expires", type=TimeType(ends=True), help="When they end.  [default: by the policy]")
@click.option("--duration", type=DurationType(), help="How long they last: 365d, 52w.  [default: by the policy]")
@zone_option
@_report_option
@reason_option
@json_option
def issue_many(
    directory: Path,
    count: int,
    batch: str,
    policy: str | None,
    customer: str | None,
    site: str | None,
    features: tuple[str, ...],
    metadata: dict[str, str],
    expires: int | None,
    duration: int | None,
    zone: tzinfo,
    report: Path | None,
    reason: str,
    as_json: bool,
) -> None:
    """Issue many licenses that are on no machine yet, all or none. 'licenses assign' gives them machines."""
    _ = zone
    wish = Wish(None, policy, customer, site, None, features, metadata, None, expires, duration)
    _run(directory, lambda: bulk.numbered(count, batch, wish), reason, report, as_json, whole=True)


@click.command("import")
@directory_option
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_batch_option
@_rows_option
@zone_option
@_report_option
@reason_option
@json_option
def import_(
    directory: Path,
    file: Path,
    batch: str | None,
    row_by_row: bool,
    zone: tzinfo,
    report: Path | None,
    reason: str,
    as_json: bool,
) -> None:
    """Issue the licenses that FILE orders, CSV or JSON: to agents, or for no machine yet where a line names none.

    Columns: license_id, agent, policy, customer, site, subject, features (with | between them), metadata (a JSON object),
    not_before, expires.
    """
    moment = now()

    def orders() -> list[Wanted]:
        wanted = sheets.wanted_in(file.read_bytes(), lambda text, ends: parse_time(text, moment, zone, ends=ends))
        return bulk.named(wanted, batch)

    _run(directory, orders, reason, report, as_json, whole=not row_by_row)


def _run(
    directory: Path, orders: Callable[[], list[Wanted]], reason: str, report: Path | None, as_json: bool, *, whole: bool
) -> None:
    begun = clock.monotonic()
    with opened(directory) as server:
        wanted = orders()
        if reason:
            server.database.operator = {**server.database.operator, "why": reason}
        with progress_bar("licenses", len(wanted)) as step:
            results = bulk.issue_many(server.database, server.licenses, wanted, now(), whole=whole, reached=step)
    if report is not None:
        _keep(report, results)
    counts = Counter(each.outcome for each in results)
    summary = {name: counts.get(name, 0) for name in (bulk.ISSUED, bulk.UNCHANGED, BAD, HELD)}
    bad = [each for each in results if each.outcome == BAD]
    if as_json:
        click.echo(json.dumps({"counts": summary, "bad": [_told(each) for each in bad]}, indent=2))
    else:
        said = ", ".join(f"{count} {name}" for name, count in summary.items() if count) or "nothing to do: the file has no line"
        click.echo(f"{said} ({clock.monotonic() - begun:.1f} s)", err=True)
        for each in bad[:20]:
            click.echo(f"line {each.line}: {each.problem}", err=True)
        if len(bad) > 20:
            click.echo(f"and {len(bad) - 20} more bad lines; --report FILE has all of them", err=True)
    if bad:
        sys.exit(1)


def _keep(report: Path, results: list[Result]) -> None:
    try:
        write_atomic(report, _report(results, report.suffix == ".json").encode(), 0o600)
    except OSError as error:
        raise RegistryError(
            f"it is done, but {report} could not be written ({error.strerror}): 'license-server reissue' prints tokens again"
        ) from None


def _told(result: Result) -> dict[str, object]:
    return {name: getattr(result, name) for name in _RESULT}


def _report(results: list[Result], as_json: bool) -> str:
    if as_json:
        return json.dumps([_told(each) for each in results], indent=2) + "\n"
    return sheets.csv_lines([_RESULT, *(tuple(_told(each).values()) for each in results)])


@click.command("export")
@directory_option
@filter_options
@click.option(
    "--status",
    type=click.Choice(["revoked", "issued", *(state.value for state in State if state is not State.REVOKED)]),
    help="Only those in this state; 'issued': all but revoked ones.",
)
@_format_option
@out_option
def export(directory: Path, filters: Filter, status: str | None, form: str, out: Path | None) -> None:
    """Write licenses to a file that 'licenses import' and spreadsheets read. Never a token."""
    moment, chosen = now(), which(filters, status)

    def page(session: Session, last: LicenseRow | None, most: int) -> list[LicenseRow]:
        return listed(session, moment, after="" if last is None else last.license_id, limit=most, which=chosen)

    with opened(directory) as server:
        with server.database.read() as session:
            chosen.check(session)
        found = ([sheets.cells_of(row, _iso) for row in rows] for rows in pages(server.database, page))
        _write(found, (*sheets.COLUMNS, *sheets.TOLD), sheets.as_cells, form, out)


def _iso(seconds: int | None) -> str:
    return "" if seconds is None else clock.strftime("%Y-%m-%dT%H:%M:%SZ", clock.gmtime(seconds))


def _write(
    found: Iterator[list[dict[str, Any]]],
    headers: Sequence[str],
    cells: Callable[[dict[str, Any]], Sequence[object]],
    form: str,
    out: Path | None,
) -> None:
    """Writes rows page by page; a file gets its name when it is whole."""
    with _file(out) as file:
        if form == "csv":
            file.write(sheets.csv_lines([headers]))
            for rows in found:
                file.write(sheets.csv_lines([cells(row) for row in rows]))
            return
        before = "[\n  "
        for rows in found:
            for row in rows:
                file.write(before + json.dumps(row))
                before = ",\n  "
        file.write("[]\n" if before[0] == "[" else "\n]\n")


@contextmanager
def _file(out: Path | None) -> Iterator[IO[Any]]:
    if out is None:
        yield sys.stdout
        return
    temporary = temporary_of(out)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
        temporary.replace(out)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@click.group()
def reports() -> None:
    """Print reports: licenses by their end, devices and their licenses."""


@reports.command("expiry")
@directory_option
@filter_options
@click.option("--from", "begin", type=TimeType(), default="now", show_default=True, help="Licenses that end then or later.")
@click.option("--until", type=TimeType(ends=True), default="+30d", show_default=True, help="Licenses that end before that.")
@zone_option
@limit_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of a table.")
@json_option
def reports_expiry(
    directory: Path, filters: Filter, begin: int, until: int, zone: tzinfo, limit: int | None, as_csv: bool, as_json: bool
) -> None:
    """List the licenses that end between two times and are not revoked, by their end."""
    _ = zone
    moment = now()

    def page(session: Session, last: LicenseRow | None, most: int) -> list[LicenseRow]:
        return ending(session, moment, begin, until, last, most, filters)

    def line(row: LicenseRow) -> tuple[object, ...]:
        owner = row.customer or "-", row.site or "-", row.product or "-", row.policy or "-"
        return utc(row.expires), row.license_id, row.agent_id or "-", row.state, row.subject, *owner

    headers = ("valid until", "license", "agent", "state", "subject", "customer", "site", "product", "policy")
    with opened(directory) as server:
        with server.database.read() as session:
            filters.check(session)
        _show(pages(server.database, page, limit), headers, line, as_csv, as_json)


@reports.command("devices")
@directory_option
@click.option("--after", default="", metavar="ID", help="Only agents behind this one.")
@limit_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of a table.")
@json_option
def reports_devices(directory: Path, after: str, limit: int | None, as_csv: bool, as_json: bool) -> None:
    """List agents with the numbers of their licenses and when the next of them ends."""
    moment = now()

    def page(session: Session, last: DeviceRow | None, most: int) -> list[DeviceRow]:
        return devices(session, moment, after if last is None else last.agent_id, most)

    def line(row: DeviceRow) -> tuple[object, ...]:
        counts = row.active, row.suspended, row.expired, row.revoked
        serial = "-" if row.serial is None else row.serial
        return row.agent_id, serial, row.status, row.attestation, utc(row.last_seen), *counts, utc(row.next_end)

    headers = (
        "agent",
        "serial",
        "status",
        "attestation",
        "last contact",
        "active",
        "suspended",
        "expired",
        "revoked",
        "next end",
    )
    with opened(directory) as server:
        _show(pages(server.database, page, limit), headers, line, as_csv, as_json)


def _show(
    found: Iterator[Sequence[Any]],
    headers: Sequence[str],
    line: Callable[[Any], tuple[object, ...]],
    as_csv: bool,
    as_json: bool,
) -> None:
    if as_csv and as_json:
        raise click.UsageError("Give --csv or --json, not both.")
    if not as_csv:
        show_pages(found, headers, line, as_json)
        return
    click.echo(sheets.csv_lines([headers]), nl=False)
    for rows in found:
        click.echo(sheets.csv_lines([_empty(line(row)) for row in rows]), nl=False)


def _empty(cells: tuple[object, ...]) -> list[object]:
    return [None if cell == "-" else cell for cell in cells]


COMMANDS: tuple[click.Command, ...] = (reports,)
