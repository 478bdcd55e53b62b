"""Commands for the repository of updates: publication, copies, keys in use, and when metadata ends."""

from pathlib import Path
from typing import Any

import click

from common.text import shown
from server.base.errors import RegistryError
from server.fleet.rollouts import automatic
from server.ota import documents, onlinekeys, publishing
from server.ota.published import AlreadyPublished
from server.ota.repository import Repository
from server.ota.submission import Submission
from server.ota.words import CANDIDATE, RELEASES, ROOT, TARGETS, WARN_AHEAD_S

from ..base.options import changing, directory_option, json_option, now, opened, show, utc
from . import otabundle, otakeys, otapackages, otatrust, updates
from .otaoptions import FOLDER


@click.group()
def ota() -> None:
    """Publish updates, and say which agent installs what."""


@ota.command("publish")
@directory_option
@click.argument("submission", type=FOLDER)
def publish(directory: Path, submission: Path) -> None:
    """Check a SUBMISSION and publish it. Where something is wrong with it, nothing is published."""
    with changing(directory) as server:
        server.keys.check_clock()
        repository = Repository(server.place.updates)
        try:
            done = publishing.publish(server.database, server.cipher, repository, Submission(submission), now())
        except AlreadyPublished as found:
            click.echo(str(found), err=True)
            return
        for role, version in done.documents.items():
            click.echo(f"published {role} version {version}", err=True)
        for what, paths in (("added", done.added), ("promoted", done.moved), ("revoked", done.withdrawn)):
            for path in paths:
                click.echo(shown(f"{what} {path}"), err=True)
        # Said before: what follows may fail, and the publication stands.
        for rollout_id in automatic.start_new(server.database, now()):
            click.echo(shown(f"started rollout {rollout_id}"), err=True)


@ota.command("export")
@directory_option
@click.argument("target", type=click.Path(file_okay=False, path_type=Path), metavar="DIR")
def export(directory: Path, target: Path) -> None:
    """Copy what is published to DIR, from where any web server or object store may serve it. Copies only what is new."""
    with opened(directory) as server:
        copied = Repository(server.place.updates).export(target)
    click.echo(f"copied {copied} files", err=True)


@ota.command("keys")
@directory_option
@json_option
def list_keys(directory: Path, as_json: bool) -> None:
    """List the keys of all roles, and those that the server has."""
    with opened(directory) as server, server.database.read() as session:
        held = {keyid: (role, made) for role, keyid, made in onlinekeys.listed(session)}
        present = Repository(server.place.updates).load()
    rows: list[dict[str, Any]] = []
    if present is not None:
        for delegator in (present.root.signed, present.targets.signed):
            for role in documents.delegator_roles(delegator):
                who = documents.holders_in(delegator, role)
                rows += [
                    _key_row(role, key.keyid, who.threshold, "server" if key.keyid in held else "elsewhere") for key in who.keys
                ]
    named = {row["id"] for row in rows}
    rows += [_key_row(role, keyid, None, "server, in no root") for keyid, (role, _made) in held.items() if keyid not in named]
    show(rows, ("role", "key", "threshold", "where"), lambda row: row.values(), as_json, dict)


def _key_row(role: str, keyid: str, threshold: int | None, where: str) -> dict[str, Any]:
    return {"role": role, "id": keyid, "threshold": threshold, "where": where}


@ota.command("expiry")
@directory_option
@click.option("--renew", is_flag=True, help="Sign snapshot and timestamp again now.")
@json_option
def expiry(directory: Path, renew: bool, as_json: bool) -> None:
    """Show when the metadata of each role ends. Exit status 1 if some has ended or a person has to act."""
    moment = now()
    if renew:
        with changing(directory) as server:
            server.keys.check_clock()
            publishing.renew(server.database, server.cipher, Repository(server.place.updates), moment, force=True)
    with opened(directory) as server:
        present = Repository(server.place.updates).present()
    rows = [
        {"role": role, "version": version, "ends": end, "state": _state(role, end, moment), "by": _by(role)}
        for role, version, end in publishing.expiring(present, moment)
    ]

    def line(row: dict[str, Any]) -> tuple[object, ...]:
        return row["role"], row["version"], utc(row["ends"]), row["state"], row["by"]

    show(rows, ("role", "version", "valid until", "state", "signed again by"), line, as_json, dict)
    if any(row["state"] != "ok" for row in rows):
        raise RegistryError("update metadata has ended or ends soon: sign it again, as the last column says")


def _state(role: str, end: int, moment: int) -> str:
    if end <= moment:
        return "ended"
    return "soon" if end - moment <= WARN_AHEAD_S.get(role, 0) else "ok"


def _by(role: str) -> str:
    ways = {ROOT: "ota change-root", TARGETS: "ota change-targets", RELEASES: "ota prolong", CANDIDATE: "ota prolong"}
    return ways.get(role, "serve, or ota expiry --renew")


for _command in (*otakeys.COMMANDS, *otapackages.COMMANDS, *updates.COMMANDS, otabundle.bundle, otatrust.trust):
    ota.add_command(_command)

COMMANDS: tuple[click.Command, ...] = (ota,)
