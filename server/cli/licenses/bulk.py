"""Commands for many licenses at once: issue, import, export; and reports."""

import json
import sys
import time as clock
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import tzinfo
from itertools import chain
from pathlib import Path
from typing import IO, Any

import click

from common.files import temporary_of, write_atomic
from server.base.errors import RegistryError
from server.cli.base.acting import listed, perform
from server.cli.base.listing import limit_option, progress_bar, show_pages
from server.cli.base.options import DurationType, TimeType, json_option, pairs, reason_option, utc, where_option, zone_option
from server.cli.base.output import out_option, writable
from server.licensing.lists import bulk, sheets

from .licensefilter import filter_options, status_option
from .tables import NOTHING_DONE, rows_option, say, text_in

_batch_option = click.option(
    "--batch", metavar="NAME", help="Ids of licenses without one: NAME and a number. The same name again issues nothing twice."
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
@where_option
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
    directory: Path | None,
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
    body = {"count": count, "batch": batch, "policy": policy, "customer": customer, "site": site}
    more = {"features": list(features), "metadata": metadata, "expires": expires, "duration": duration}
    _run("licenses.issue_many", directory, report, as_json, count, **body, **more)


@click.command("import")
@where_option
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_batch_option
@rows_option
@zone_option
@_report_option
@reason_option
@json_option
def import_(
    directory: Path | None,
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
    text = text_in(file)
    body = {"table": text, "batch": batch, "row_by_row": row_by_row, "zone": str(zone)}
    _run("licenses.import", directory, report, as_json, max(text.count("\n"), 1), **body)


def _run(act: str, directory: Path | None, report: Path | None, as_json: bool, lines: int, **body: Any) -> None:
    from server.acts.tables import RowsRefused

    begun, before = clock.monotonic(), ""
    with progress_bar("licenses", lines) as step:
        try:
            done = perform(act, directory, lambda _done: None, step, **body)
        except RowsRefused as refused:
            before = NOTHING_DONE
            rows = [_told(each) for each in refused.results]
            # Another server names the bad lines only.
            rows = rows or [
                {
                    "line": row.line,
                    "license_id": row.id,
                    "agent": None,
                    "outcome": bulk.BAD,
                    "problem": row.problem,
                    "token": None,
                }
                for row in refused.rows
            ]
        else:
            rows = [_told(each) for each in done.results]
    if report is not None:
        _keep(report, rows)
    outcomes = (bulk.ISSUED, bulk.UNCHANGED, bulk.BAD, bulk.HELD)
    counts = {name: sum(row["outcome"] == name for row in rows) for name in outcomes}
    bad = [row for row in rows if row["outcome"] == bulk.BAD]
    say(counts, bad, as_json, before, f" ({clock.monotonic() - begun:.1f} s)", "; --report FILE has all of them")


def _keep(report: Path, rows: list[dict[str, Any]]) -> None:
    try:
        write_atomic(report, _report(rows, report.suffix == ".json").encode(), 0o600)
    except OSError as error:
        raise RegistryError(
            f"it is done, but {report} could not be written ({error.strerror}): 'license-server reissue' prints tokens again"
        ) from None


def _told(result: Any) -> dict[str, Any]:
    return {name: getattr(result, name) for name in _RESULT}


def _report(rows: list[dict[str, Any]], as_json: bool) -> str:
    if as_json:
        return json.dumps(rows, indent=2) + "\n"
    return sheets.csv_lines([_RESULT, *(tuple(row.values()) for row in rows)])


@click.command("export")
@where_option
@filter_options
@status_option
@_format_option
@out_option
def export(directory: Path | None, filters: dict[str, Any], status: dict[str, Any], form: str, out: Path | None) -> None:
    """Write licenses to a file that 'licenses import' and spreadsheets read. Never a token."""
    found = ([row.model_dump() for row in rows] for rows in listed("licenses.export", directory, None, **filters, **status))
    _write(found, (*sheets.COLUMNS, *sheets.TOLD), sheets.as_cells, form, out)


def _write(
    found: Iterator[list[dict[str, Any]]],
    headers: Sequence[str],
    cells: Callable[[dict[str, Any]], Sequence[object]],
    form: str,
    out: Path | None,
) -> None:
    """Writes rows page by page; a file gets its name when it is whole. Nothing is written if there is no first page."""
    found = chain([next(found, [])], found)
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
@where_option
@filter_options
@click.option("--from", "begin", type=TimeType(), default="now", show_default=True, help="Licenses that end then or later.")
@click.option("--until", type=TimeType(ends=True), default="+30d", show_default=True, help="Licenses that end before that.")
@zone_option
@limit_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of a table.")
@json_option
def reports_expiry(
    directory: Path | None,
    filters: dict[str, Any],
    begin: int,
    until: int,
    zone: tzinfo,
    limit: int | None,
    as_csv: bool,
    as_json: bool,
) -> None:
    """List the licenses that end between two times and are not revoked, by their end."""
    _ = zone
    if until <= begin:
        raise click.UsageError("--until must be later than --from.")

    def line(row: Any) -> tuple[object, ...]:
        owner = row.customer or "-", row.site or "-", row.product or "-", row.policy or "-"
        return utc(row.expires), row.license_id, row.agent_id or "-", row.state, row.subject, *owner

    headers = ("valid until", "license", "agent", "state", "subject", "customer", "site", "product", "policy")
    found = listed("reports.expiry", directory, limit, begin=begin, until=until, **filters)
    _show(found, headers, line, as_csv, as_json)


@reports.command("devices")
@where_option
@click.option("--after", default="", metavar="ID", help="Only agents behind this one.")
@limit_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of a table.")
@json_option
def reports_devices(directory: Path | None, after: str, limit: int | None, as_csv: bool, as_json: bool) -> None:
    """List agents with the numbers of their licenses and when the next of them ends."""

    def line(row: Any) -> tuple[object, ...]:
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
    _show(listed("reports.devices", directory, limit, after), headers, line, as_csv, as_json)


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
