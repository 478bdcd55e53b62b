"""Defines the commands that read and verify the audit log."""

import json
import pwd
import sys
import time
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from audittrail.archive import lines
from audittrail.chain import CLASSES
from audittrail.report import INTACT, TAMPERED
from audittrail.report import Keys as Given
from cli import progress, render
from cli.agent import EXIT_INCOMPLETE, EXIT_NEGATIVE, Agent, for_terminal, pass_agent, readable
from cli.signing import keys

from . import heads
from .records import SEVERITIES, Wanted, exported

FOLLOW_EVERY_S = 0.5
VERIFY_DEADLINE_S = 600.0
"""The agent reads the whole log for it: as much as the configuration keeps."""


class _Time(click.DateTime):
    """A date, or a date and time in UTC; says so in the words of an administrator."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} is not a date or a time in UTC, such as 2027-01-31 or 2027-01-31T12:00:00Z", param, ctx)


times = _Time(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%SZ", "%Y-%m-%dT%H:%MZ", "%Y-%m-%d %H:%MZ"])


def _uids(_ctx: click.Context, _param: click.Parameter, names: tuple[str, ...]) -> tuple[int, ...]:
    """UIDs of names of users, or of numbers."""
    found = []
    for name in names:
        try:
            found.append(int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid)
        except KeyError:
            raise click.BadParameter(f"this machine has no user {name}; give the UID") from None
    return tuple(found)


@click.group()
def audit() -> None:
    """Read and verify the audit log."""


@audit.command("tail")
@click.option("-n", "--lines", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many records.")
@click.option("-f", "--follow", is_flag=True, help="Print new records until Ctrl-C.")
@pass_agent
def audit_tail(agent: Agent, lines: int, follow: bool) -> None:
    """Show the newest records (with --json: one record a line)."""
    if not follow:
        _show_records(agent, -1, lines)
        return
    after = -1
    with agent.reading():
        while True:
            after = _show_records(agent, after, lines if after < 0 else 1000)
            time.sleep(FOLLOW_EVERY_S)


def _show_records(agent: Agent, after: int, limit: int) -> int:
    """Prints the records after a number; returns the number of the last one."""
    for line in agent.ask("audit_tail", after_seq=after, limit=limit)["records"]:
        record = json.loads(line)
        after = max(after, record["seq"])
        click.echo(line if agent.as_json else for_terminal(render.record_text(record)))
    return after


@audit.command("verify")
@click.option("--file", type=readable, help="Check this log, with the files beside it, without the agent.")
@click.option(
    "--head",
    type=readable,
    help="With --file: where the log stood at the last contact, with the machine's keys; from 'license-server audit-head'.",
)
@click.option("--trust", type=readable, help="With --head: the server's keys, from 'license-server trust'.")
@click.option("--root", metavar="PIN", help="With --head, instead of --trust: the pin of the server's root.")
@click.option("--as-of", metavar="TIME", type=times, help="With --head: when the log was copied, UTC.  [default: now]")
@click.option(
    "--open-end", is_flag=True, help="With --file: do without a head. Records removed from the end are then not noticed."
)
@click.option("--archive-key", type=readable, help="With --file: the operator's private key (PEM), to check the archives.")
@click.option("--identity-key", type=readable, help="With --file: the machine's identity key (PEM), to check the anchors.")
@click.option(
    "--attestation-key", type=readable, help="With --file: its attestation key (PEM), to check the checkpoints' certificates."
)
@pass_agent
def audit_verify(
    agent: Agent,
    file: Path | None,
    head: Path | None,
    trust: Path | None,
    root: str | None,
    as_of: datetime | None,
    open_end: bool,
    archive_key: Path | None,
    identity_key: Path | None,
    attestation_key: Path | None,
) -> None:
    """Check the log. It is intact (exit status 0), TAMPERED (1), or the check is incomplete (5)."""
    if file is None:
        if any((head, trust, root, as_of, open_end, archive_key, identity_key, attestation_key)):
            raise click.UsageError("the other options need --file: the agent uses its own keys")
        with progress.waiting("checking the audit log"):
            reply = agent.ask("audit_verify", deadline=VERIFY_DEADLINE_S)
        where = "the agent's log"
    else:
        if head is None and (trust or root or as_of):
            raise click.UsageError("--trust, --root and --as-of need --head")
        if head is not None and open_end:
            raise click.UsageError("give --head, or --open-end to do without one; not both")
        moment = time.time() if as_of is None else as_of.replace(tzinfo=UTC).timestamp()
        said = None if head is None else heads.read_head(head, trust, root, moment)
        given = Given(
            unseal=None if archive_key is None else keys.operator_unseal(archive_key),
            identity=None if identity_key is None else keys.public_point(identity_key),
            attestation=None if attestation_key is None else keys.public_point(attestation_key),
        )
        reply, where = heads.check(file, given, said, open_end=open_end), str(file)
    agent.show(reply, render.verification_text(reply, where))
    outcome = render.outcome_of(reply)
    if outcome != INTACT:
        sys.exit(EXIT_NEGATIVE if outcome == TAMPERED else EXIT_INCOMPLETE)


@audit.command("export")
@click.option("--class", "kind", type=click.Choice(CLASSES), help="Only the records of this retention class.")
@click.option("--after", type=click.IntRange(0), default=0, metavar="SEQ", help="Only records after this number.")
@pass_agent
def audit_export(agent: Agent, kind: str | None, after: int) -> None:
    """Print all records, oldest first, including those in archives: one JSON line each."""
    steps = progress.Steps("exported records")
    try:
        with agent.reading():
            for line, record in exported(agent, after or -1, steps.at):
                if kind in (None, record["class"]):
                    click.echo(line)
    finally:
        steps.end()


@audit.command("search")
@click.option("--event", "events", multiple=True, metavar="PATTERN", help="Such as 'license.*'; may be repeated.")
@click.option("--outcome", "outcomes", multiple=True, metavar="PATTERN", help="Such as 'expired'; may be repeated.")
@click.option("--uid", "uids", multiple=True, metavar="USER", callback=_uids, help="Name or UID of who asked; may be repeated.")
@click.option("--by", "names", multiple=True, metavar="PATTERN", help="Name of the administrator who signed; may be repeated.")
@click.option("--license", "licenses", multiple=True, metavar="ID", help="About this license; may be repeated.")
@click.option("--from", "since", type=times, metavar="TIME", help="From this time on, UTC.")
@click.option("--to", "until", type=times, metavar="TIME", help="Before this time, UTC.")
@click.option("--severity", type=click.Choice(SEVERITIES), help="Only alerts of at least this severity.")
@click.option("--class", "kind", type=click.Choice(CLASSES), help="Only the records of this retention class.")
@click.option("-n", "--limit", type=click.IntRange(1), metavar="N", help="Only the newest N of them.")
@pass_agent
def audit_search(
    agent: Agent,
    events: tuple[str, ...],
    outcomes: tuple[str, ...],
    uids: tuple[int, ...],
    names: tuple[str, ...],
    licenses: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    severity: str | None,
    kind: str | None,
    limit: int | None,
) -> None:
    """Print the records that fit all options, oldest first, also from archives (with --json: one record a line).

    Where no record fits, the exit status is 1.
    """
    wanted = Wanted(events, outcomes, uids, names, licenses, _as_logged(since), _as_logged(until), severity, kind)
    steps = progress.Steps("searched records")
    kept: deque[str] = deque(maxlen=limit)
    found = False
    try:
        with agent.reading():
            for line, record in exported(agent, progress=steps.at):
                if wanted.fits(record):
                    found = True
                    shown = line if agent.as_json else for_terminal(render.record_text(record))
                    if limit is None:
                        click.echo(shown)
                    else:
                        kept.append(shown)
    finally:
        steps.end()
    for shown in kept:
        click.echo(shown)
    if not found:
        click.echo("license-agent-cli: no record fits", err=True)
        sys.exit(EXIT_NEGATIVE)


def _as_logged(moment: datetime | None) -> str:
    """A time as records have it, so that texts compare as times do."""
    return "" if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%S")


@audit.command("open")
@click.argument("archive", type=readable)
@click.option("--archive-key", type=readable, required=True, help="The operator's private key (PEM).")
def audit_open(archive: Path, archive_key: Path) -> None:
    """Print the records in one ARCHIVE; needs no agent."""
    _, compressed = keys.operator_unseal(archive_key)(archive.read_bytes())
    for line in lines(compressed):
        sys.stdout.buffer.write(line)


@click.command("keys")
@click.argument("name", type=click.Choice(["identity", "attestation"]))
@pass_agent
def public_key(agent: Agent, name: str) -> None:
    """Print the machine's public key with this NAME (PEM), for 'audit verify --file' elsewhere."""
    reply = agent.ask("public_keys")
    agent.show(reply, reply[name].rstrip("\n"))
