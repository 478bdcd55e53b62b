"""Commands that sign packages: for CI, which has the keys of releases and candidate. They need no server."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from common.text import shown
from server.base.errors import Invalid
from server.ota import documents, packages
from server.ota.published import Published
from server.ota.repository import Repository, digest_of
from server.ota.submission import Submission
from server.ota.words import CANDIDATE, PACKAGE_ROLES
from updatetrust.target import Kind, MalformedTarget, read_target

from ..base.options import now
from .otaoptions import (
    EXISTING,
    FOLDER,
    VERSION,
    key_passphrase_option,
    line_of,
    say_standing,
    sign_option,
    signers,
    submission_option,
)

copy_option = click.option(
    "--repository", type=FOLDER, required=True, metavar="DIR", help="The repository, or a copy of its directory 'metadata'."
)


def _present_of(repository: Path) -> Published:
    return Repository(repository).present()


def _submit(
    present: Published,
    change: Callable[[Any], Iterable[str]],
    keys: tuple[Path, ...],
    passphrase_file: Path | None,
    out: Path,
) -> Submission:
    """Writes a submission with the next metadata of some roles for packages, signed."""
    moment = now()
    made = {role: documents.successor(present.roles[role], role, moment) for role in PACKAGE_ROLES}
    changed = change(made)
    packages.check(made, documents.floors_in(present.targets.signed))
    holders = signers(keys, passphrase_file)
    submission = Submission(out)
    submission.begin(present)
    for role in changed:
        submission.put(role, made[role])
    for signer in holders:
        submission.sign(signer)
    say_standing(submission.standing())
    return submission


@click.command("add")
@click.argument("package", type=EXISTING)
@copy_option
@click.option("--product", required=True, metavar="NAME", help="What it is a version of.")
@click.option("--version", type=VERSION, required=True, metavar="VERSION", help="Its version.")
@click.option("--build-id", required=True, metavar="ID", help="Names this build, and never another one.")
@click.option(
    "--hardware", multiple=True, required=True, metavar="ID", help="A kind of machine that it is for; may be repeated."
)
@click.option(
    "--kind",
    type=click.Choice([each.value for each in Kind]),
    default=Kind.SLOTS.value,
    show_default=True,
    help="How it is installed.",
)
@click.option(
    "--min-agent",
    type=VERSION,
    default="0.1.0",
    show_default=True,
    metavar="VERSION",
    help="The lowest version of the agent that may install it.",
)
@click.option("--notes-file", type=EXISTING, metavar="FILE", help="Release notes, plain text.")
@click.option("--name", metavar="FILE", help="Its name in the repository.  [default: that of PACKAGE]")
@click.option("--role", type=click.Choice(PACKAGE_ROLES), default=CANDIDATE, show_default=True, help="What it is published as.")
@sign_option
@key_passphrase_option
@submission_option
def add(
    package: Path,
    repository: Path,
    product: str,
    version: str,
    build_id: str,
    hardware: tuple[str, ...],
    kind: str,
    min_agent: str,
    notes_file: Path | None,
    name: str | None,
    role: str,
    keys: tuple[Path, ...],
    passphrase_file: Path | None,
    out: Path,
) -> None:
    """Sign PACKAGE, and write what 'ota publish' takes. For CI: needs no server."""
    sha256, length = digest_of(package)
    custom = {
        "product": product, "version": version, "build_id": build_id, "hardware": list(hardware), "kind": kind,
        "min_agent": min_agent, "notes": "" if notes_file is None else notes_file.read_text("utf-8"), "released_at": now(),
    }  # fmt: skip
    try:
        made = packages.Package(role, read_target(f"{product}/{name or package.name}", length, {"sha256": sha256}, custom))
    except MalformedTarget as problem:
        raise Invalid(str(problem)) from None

    def change(roles: Any) -> list[str]:
        packages.add(roles, made)
        return [role]

    _submit(_present_of(repository), change, keys, passphrase_file, out).take(package, made)
    click.echo(shown(line_of(made)), err=True)


@click.command("promote")
@click.argument("target")
@copy_option
@sign_option
@key_passphrase_option
@submission_option
def promote(target: str, repository: Path, keys: tuple[Path, ...], passphrase_file: Path | None, out: Path) -> None:
    """Make the candidate TARGET a release, and write what 'ota publish' takes. Needs no server."""

    def change(roles: Any) -> tuple[str, ...]:
        packages.promote(roles, target)
        return PACKAGE_ROLES

    _submit(_present_of(repository), change, keys, passphrase_file, out)


@click.command("revoke")
@click.argument("target")
@copy_option
@sign_option
@key_passphrase_option
@submission_option
def revoke(target: str, repository: Path, keys: tuple[Path, ...], passphrase_file: Path | None, out: Path) -> None:
    """Take TARGET back: no machine installs it any more. Writes what 'ota publish' takes. Needs no server."""
    _submit(_present_of(repository), lambda roles: [packages.withdraw(roles, target)], keys, passphrase_file, out)


@click.command("prolong")
@copy_option
@click.option(
    "--role", type=click.Choice(PACKAGE_ROLES), multiple=True, default=PACKAGE_ROLES, help="Only this role.  [default: both]"
)
@sign_option
@key_passphrase_option
@submission_option
def prolong(repository: Path, role: tuple[str, ...], keys: tuple[Path, ...], passphrase_file: Path | None, out: Path) -> None:
    """Sign the packages as they are for another 180 days, and write what 'ota publish' takes. Needs no server."""
    _submit(_present_of(repository), lambda _roles: role, keys, passphrase_file, out)


COMMANDS: tuple[click.Command, ...] = (add, promote, revoke, prolong)
