"""The command for the certificates of a fleet's agents; it belongs to the group `fleets`."""

from pathlib import Path
from typing import Any

import click

from server.cli.base.acting import listed
from server.cli.base.listing import limit_option, show_pages
from server.cli.base.options import json_option, members, utc, where_option


@click.command("certificates")
@where_option
@click.argument("fleet", metavar="FLEET")
@click.option("--late", is_flag=True, help="Only agents that should have renewed, or whose certificate has ended.")
@limit_option
@json_option
def certificates(directory: Path | None, fleet: str, late: bool, limit: int | None, as_json: bool) -> None:
    """List the agents of FLEET that renew their certificates now, with the time of each, and those that are late."""

    def line(row: Any) -> tuple[object, ...]:
        times = utc(row.renews_at), utc(row.latest), utc(row.ends), utc(row.last_contact)
        return row.device_id, row.state, *times, row.fleet_id or "-"

    headers = ("agent", "state", "renews", "latest", "ends", "last contact", "set by")
    show_pages(listed("fleets.certificates", directory, limit, fleet_id=fleet, late=late), headers, line, as_json, members)


COMMANDS: tuple[click.Command, ...] = (certificates,)
