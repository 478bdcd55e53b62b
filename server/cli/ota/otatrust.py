"""The command that writes `update-trust.json`: whose word about updates a machine takes, and which machine it is."""

import json
from pathlib import Path

import click

from server.base.errors import Invalid
from server.ota.repository import Repository
from updatetrust.trustfile import BadTrustFile, encode_trust_file, parse_trust_file

from ..base.options import directory_option, opened


@click.command("trust")
@directory_option
@click.argument("agent_id", metavar="AGENT")
@click.option("--hardware", required=True, metavar="KIND", help="Which kind of machine it is, as packages name it.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write it there, not to standard output."
)
def trust(directory: Path, agent_id: str, hardware: str, out: Path | None) -> None:
    """Write AGENT's update-trust.json: it names this server's root, the root of the repository, and the machine.

    The file is not secret; bring it to the machine by a way that nobody else can change it on.
    """
    with opened(directory) as server:
        root = Repository(server.place.updates).present().root.to_dict()
        pin = server.keys.root_pins()[0]
    content = {"v": 1, "agent_id": agent_id, "hardware": hardware, "license_roots": [pin], "tuf_root": root}
    try:
        data = encode_trust_file(parse_trust_file(json.dumps(content).encode()))
    except BadTrustFile as problem:
        raise Invalid(f"{problem}; name agent and kind of machine as 'agents list' and 'ota packages' show them") from None
    if out is None:
        click.echo(data.decode(), nl=False)
        return
    out.write_bytes(data)
    out.chmod(0o644)
    click.echo(f"{out}: for agent {agent_id}, a {hardware}; root puts it into /etc/license-agent there", err=True)
