"""Commands for devices that speak hawkBit's DDI."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from server.base.ddisettings import MAX_POLL_S, MIN_POLL_S
from server.cli.base.acting import listed, perform
from server.cli.base.listing import limit_option, show_pages
from server.cli.base.options import confirm as ask
from server.cli.base.options import json_option, members, pairs, utc, where_option, yes_option
from server.cli.base.output import handing_out, out_option, taking, write
from server.fleet.ddi.credentials import MAX_OVERLAP_S, OVERLAP_S


def _overlap(default: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        "--overlap",
        type=click.IntRange(0, MAX_OVERLAP_S),
        default=default,
        show_default=True,
        help="Seconds for which the former tokens count too; 0 if somebody else has one.",
    )


@click.group()
def ddi() -> None:
    """Serve devices with SWUpdate or rauc-hawkbit-updater, over hawkBit's DDI."""


@ddi.group("devices")
def ddi_devices() -> None:
    """Add such devices, and give them what they identify themselves with."""


@ddi_devices.command("add")
@where_option
@click.argument("device_id", metavar="DEVICE")
@click.option("--name", metavar="TEXT", help="For people.")
@click.option("--hardware", metavar="ID", help="The kind of machine that it is: packages for others are not ordered.")
@click.option("--zone", metavar="NAME", help="Its time zone, as Europe/Berlin.")
def devices_add(directory: Path | None, device_id: str, name: str | None, hardware: str | None, zone: str | None) -> None:
    """Add a DEVICE. It needs a token or a certificate besides, or a token of its fleet."""
    perform("ddi.add", directory, device_id=device_id, name=name, hardware=hardware, zone=zone)
    click.echo(f"'license-server ddi devices token {device_id}' makes its token", err=True)


@ddi_devices.command("list")
@where_option
@limit_option
@json_option
def devices_list(directory: Path | None, limit: int | None, as_json: bool) -> None:
    """List the devices, and when each was last seen."""

    def line(row: Any) -> tuple[object, ...]:
        return row.device_id, row.name, row.state, utc(row.seen_at), utc(row.configured_at), "yes" if row.auto_confirm else ""

    headers = ("device", "name", "state", "last seen", "attributes of", "confirms at once")
    show_pages(listed("ddi.list", directory, limit), headers, line, as_json, members)


@ddi_devices.command("token")
@where_option
@click.argument("device_id", metavar="DEVICE")
@_overlap(0)
@out_option
def devices_token(directory: Path | None, device_id: str, overlap: int, out: Path | None) -> None:
    """Make the token of a DEVICE in place of its former ones, and print it. It is not shown again."""
    with handing_out(out, "nobody has the new token: run this command again") as hand:
        perform("ddi.make_token", directory, taking(hand, "token"), device_id=device_id, overlap_s=overlap)


@ddi_devices.command("certificate")
@where_option
@click.argument("device_id", metavar="DEVICE")
@click.option(
    "--csr", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True, metavar="FILE",
    help="Its certificate request (PKCS #10 in PEM), for a P-256 key.",
)  # fmt: skip
@out_option
def devices_certificate(directory: Path | None, device_id: str, csr: Path, out: Path | None) -> None:
    """Issue a client certificate for the key of a DEVICE, and print it with the issuing CA's."""
    made = perform("ddi.issue", directory, device_id=device_id, csr=csr.read_text("utf-8"))
    write("".join(made.chain), out)


@ddi_devices.command("revoke")
@where_option
@click.argument("device_id", metavar="DEVICE")
@yes_option
def devices_revoke(directory: Path | None, device_id: str, yes: bool) -> None:
    """Revoke all tokens and certificates of a DEVICE. To refuse its fleet's tokens for it too, block it."""
    ask(f"revoke all tokens and certificates of {device_id}?", yes=yes)
    done = perform("ddi.revoke_all", directory, device_id=device_id)
    click.echo(f"{done.count} revoked", err=True)


@ddi.command("gateway-token")
@where_option
@click.argument("fleet_id", metavar="FLEET")
@_overlap(OVERLAP_S)
@out_option
def gateway_token(directory: Path | None, fleet_id: str, overlap: int, out: Path | None) -> None:
    """Make a token for all devices of a FLEET in place of its former ones, and print it. It is not shown again."""
    with handing_out(out, "nobody has the new token: run this command again") as hand:
        perform("ddi.make_gateway_token", directory, taking(hand, "token"), fleet_id=fleet_id, overlap_s=overlap)


@ddi.group("credentials")
def ddi_credentials() -> None:
    """Show and revoke tokens and certificates."""


@ddi_credentials.command("list")
@where_option
@click.option("--device", "device_id", metavar="DEVICE", help="Of this device only.")
@click.option("--fleet", "fleet_id", metavar="FLEET", help="Of this fleet only.")
@limit_option
@json_option
def credentials_list(
    directory: Path | None, device_id: str | None, fleet_id: str | None, limit: int | None, as_json: bool
) -> None:
    """List tokens and certificates; never a token's text."""

    def line(row: Any) -> tuple[object, ...]:
        whose = row.device_id or f"fleet {row.fleet_id}"
        return row.credential_id, row.kind, whose, row.state, utc(row.created_at), utc(row.expires_at)

    headers = ("id", "kind", "of", "state", "made", "ends")
    pages = listed("ddi.list_credentials", directory, limit, device_id=device_id, fleet_id=fleet_id)
    show_pages(pages, headers, line, as_json, members)


@ddi_credentials.command("revoke")
@where_option
@click.argument("credential_id", metavar="ID")
@yes_option
def credentials_revoke(directory: Path | None, credential_id: str, yes: bool) -> None:
    """Revoke the token or certificate ID; it is refused from the next request on."""
    ask(f"revoke {credential_id}?", yes=yes)
    perform("ddi.revoke", directory, credential_id=credential_id)


@ddi.group("policy")
def ddi_policy() -> None:
    """What a fleet asks of such devices."""


def _show(found: Any) -> None:
    for product, attribute in sorted(found.versions.items()):
        click.echo(f"version of {product}: attribute {attribute}")
    click.echo("version of other products: attribute PRODUCT.version")
    click.echo(f"devices confirm deployments: {'yes' if found.confirm else 'no'}")
    click.echo(f"devices ask every: {'by the settings' if found.poll_s is None else f'{found.poll_s} s'}")


@ddi_policy.command("show")
@where_option
@click.argument("fleet_id", metavar="FLEET")
def policy_show(directory: Path | None, fleet_id: str) -> None:
    """Show what a FLEET asks of devices that speak DDI."""
    _show(perform("ddi.show_policy", directory, fleet_id=fleet_id))


@ddi_policy.command("set")
@where_option
@click.argument("fleet_id", metavar="FLEET")
@click.option(
    "--version-attribute", "versions", multiple=True, callback=pairs, metavar="PRODUCT=ATTRIBUTE",
    help="The attribute that names the version of a product; may be repeated.  [default: PRODUCT.version]",
)  # fmt: skip
@click.option("--confirm", is_flag=True, help="Devices must confirm a deployment before it is given to them.")
@click.option(
    "--poll", "poll_s", type=click.IntRange(MIN_POLL_S, MAX_POLL_S), metavar="SECONDS",
    help="How often a device asks.  [default: as in settings.toml]",
)  # fmt: skip
def policy_set(directory: Path | None, fleet_id: str, versions: dict[str, str], confirm: bool, poll_s: int | None) -> None:
    """Set what a FLEET asks of devices that speak DDI, in place of what it asked before."""
    _show(perform("ddi.set_policy", directory, fleet_id=fleet_id, versions=versions, confirm=confirm, poll_s=poll_s))


COMMANDS: tuple[click.Command, ...] = (ddi,)
