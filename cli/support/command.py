"""Defines the command `support-bundle`."""

import contextlib
import os
import sys
import time
from pathlib import Path

import click

from common.version import VERSION

from ..agent import EXIT_INCOMPLETE, EXIT_NEGATIVE, Agent, pass_agent


@click.command("support-bundle")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--without-licenses", is_flag=True, help="Number the licenses in the audit records instead of naming them.")
@click.option(
    "--config",
    envvar="LICENSE_AGENT_CONFIG",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The agent's configuration file; link.toml is read beside it.  [default: /etc/license-agent/config.toml]",
)
@pass_agent
def support_bundle(agent: Agent, file: Path, without_licenses: bool, config: Path | None) -> None:
    """Collect what helps support into FILE (a .tar.gz, mode 0600): no secret, no token, no key.

    What could not be read is listed, here and in the archive; the exit status is 5 then.
    """
    # Only here: no other command should wait for these to be imported.
    from ..progress import waiting
    from . import archive, sources

    if os.path.lexists(file):
        raise click.UsageError(f"{file} exists; name a new file")
    read = sources.Sources(agent)
    if config is not None:
        read.config = config.absolute()
        read.link = read.config.with_name("link.toml")
    with waiting("collecting"), agent.reading() if agent.signs else contextlib.nullcontext():
        made = archive.collect(sources.members(read, licenses=not without_licenses))
        data = archive.packed(made, VERSION, int(time.time()))
    hits = archive.leaked(data)
    if hits:
        for name, kind in hits:
            click.echo(f"license-agent-cli: {name} has {kind}", err=True)
        click.echo("license-agent-cli: nothing was written; please report this as a bug, without the data", err=True)
        sys.exit(EXIT_NEGATIVE)
    _write(file, data)
    text = f"{file}: {len(made.files)} files, {len(data)} bytes; nothing in it has the form of a token or a private key"
    text += "".join(f"\n  removed: {kind}, {count} times" for kind, count in sorted(made.removed.items()))
    text += "".join(f"\n  not read: {', '.join(names)}: {why}" for why, names in _by_reason(made.missing).items())
    reply = {"file": str(file), "bytes": len(data), "members": made.manifest, "missing": made.missing, "removed": made.removed}
    agent.show(reply, text)
    if made.missing:
        sys.exit(EXIT_INCOMPLETE)


def _by_reason(missing: list[dict[str, str]]) -> dict[str, list[str]]:
    """Which members are missing for each reason: one cause, such as an agent that is down, is said once."""
    found: dict[str, list[str]] = {}
    for each in missing:
        found.setdefault(each["why"], []).append(f"{each['name']} ({each['what']})")
    return found


def _write(file: Path, data: bytes) -> None:
    """Writes a new file that only its owner may read; leaves none behind that is not whole."""
    opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(opened, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
    except BaseException:
        os.unlink(file)
        raise
