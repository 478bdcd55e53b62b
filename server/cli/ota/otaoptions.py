"""Options and helpers that the commands for the repository of updates share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from securesystemslib.signer import CryptoSigner, SSlibKey

from server.keys.rootkey import needs_passphrase
from server.ota import documents, keyfiles, packages
from server.ota.submission import Signed, Submission
from server.ota.words import PACKAGE_ROLES, ROOT, TARGETS
from updatetrust.version import MalformedVersion, Version

from ..base.options import passphrase_in, utc

_Command = TypeVar("_Command", bound=Callable[..., Any])
EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


class _VersionType(click.ParamType[str]):
    """A version of a product, as text; refused with what one looks like before anything is read."""

    name = "version"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return Version.parse(str(value)).text
        except MalformedVersion as error:
            self.fail(str(error), param, ctx)


VERSION = _VersionType()
sign_option = click.option(
    "--key",
    "keys",
    type=EXISTING,
    multiple=True,
    required=True,
    metavar="FILE",
    help="A private key that signs; may be repeated.",
)
key_passphrase_option = click.option(
    "--passphrase-file",
    type=EXISTING,
    metavar="FILE",
    help="A file whose first line is the passphrase. Without it, the command asks on the terminal if it needs one.",
)
submission_option = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="Write the submission here: a new directory.",
)


def public_option(name: str, into: str, text: str, *, required: bool = False) -> Callable[[_Command], _Command]:
    """An option for files with public keys."""
    return click.option(name, into, type=EXISTING, multiple=True, required=required, metavar="FILE", help=text)


def publics(files: tuple[Path, ...]) -> tuple[SSlibKey, ...]:
    """The public keys in some files. Raises RegistryError."""
    return tuple(keyfiles.read_public(file) for file in files)


def _passphrase_for(key: Path, file: Path | None) -> bytes | None:
    return passphrase_in(file, f"passphrase of {key}") if needs_passphrase(key) else None


def signers(keys: tuple[Path, ...], passphrase_file: Path | None) -> list[CryptoSigner]:
    """The private keys in some files, to sign with. Raises RegistryError."""
    return [keyfiles.read_signer(key, _passphrase_for(key, passphrase_file)) for key in keys]


def described(submission: Submission) -> list[str]:
    """What the documents of a submission say, for who signs them."""
    lines = []
    for role, document in submission.documents().items():
        ends = utc(documents.seconds_of(document.signed.expires))
        lines.append(f"{role} version {document.signed.version}, valid until {ends}")
        if role in (ROOT, TARGETS):
            for name in documents.delegator_roles(document.signed):
                who = documents.holders_in(document.signed, name)
                ids = ", ".join(key.keyid[:16] for key in who.keys)
                lines.append(f"  {name}: {who.threshold} of {len(who.keys)} keys: {ids}")
        if role == TARGETS:
            lines += [
                f"  lowest version of {product}: {floor}" for product, floor in documents.floors_in(document.signed).items()
            ]
        if role in PACKAGE_ROLES:
            lines += [f"  {line_of(each)}" for each in packages.packages_in({role: document})]
    return lines


def line_of(package: packages.Package) -> str:
    """A package in a line."""
    target = package.target
    return (
        f"{package.path}: {target.product} {target.version}, build {target.build_id}, {target.length} bytes, "
        f"SHA-256 {target.sha256}, for {', '.join(target.hardware)}"
    )


def say_standing(rows: list[Signed]) -> None:
    """Says on standard error how far documents are signed."""
    for row in rows:
        counts = " and ".join(f"{have} of {need}" for have, need in row.counts) or "unknown"
        state = "complete" if row.complete else "incomplete"
        click.echo(f"{row.role} version {row.version}: signatures {counts}, {state}", err=True)
