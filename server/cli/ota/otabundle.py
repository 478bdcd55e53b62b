"""The command that makes a bundle: a package with everything that a machine without a network needs to accept it."""

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import click

from common.files import fsync_directory, temporary_of
from common.text import shown
from server.base.errors import RegistryError
from server.ota.offline import MAX_DAYS
from server.ota.words import DAY_S, LIFETIMES, TIMESTAMP

from ..base.acting import asking, given, server_of
from ..base.options import opened, utc, where_option
from ..base.output import Undelivered, writable
from .otaoptions import EXISTING

ENDS = ".bundle"
"""How its name ends: the agent's AppArmor profiles let it read no other file that it is handed."""


def _named(ctx: click.Context, param: click.Parameter, out: Path) -> Path | None:
    if out.suffix != ENDS:
        raise click.BadParameter(f"the agent takes files only whose names end in {ENDS}: write {out.stem}{ENDS}")
    return writable(ctx, param, out)


@click.command("bundle")
@where_option
@click.argument("agent")
@click.argument("target")
@click.option("--for-days", "days", type=click.IntRange(1, MAX_DAYS), required=True, help="How long it can be installed.")
@click.option(
    "--package", type=EXISTING, metavar="FILE", help="The package's file.  [default: that of the repository on this machine]"
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    callback=_named,
    metavar="FILE",
    help=f"The bundle; its name ends in {ENDS}.",
)
def bundle(directory: Path | None, agent: str, target: str, days: int, package: Path | None, out: Path) -> None:
    """Make a bundle for AGENT, which has no network: the package TARGET that it is ordered to install, and all signatures.

    A second person must approve: until the bundle ends, anyone who has it can hold a machine at the state in it.
    """
    repository = None
    if package is None:
        if server_of(given(), directory) is not None or directory is None:
            raise click.UsageError("the package is on the server's machine: give --package FILE, a copy of it")
        with opened(directory) as server:
            repository = server.place.updates
    temporary = temporary_of(out)

    def hand(result: Any) -> None:
        # Before the commit: where the disk is full, nothing was signed for longer.
        write(temporary, result, package or _file_of(repository, result))

    try:
        with asking(directory) as asked:
            made = asked.perform("updates.bundle", hand, agent_id=agent, target=target, days=days)
        temporary.replace(out)
        fsync_directory(out.parent)
    except Undelivered as problem:
        raise RegistryError(f"it is signed, but {out} could not be written ({problem}): run the command again") from None
    finally:
        temporary.unlink(missing_ok=True)
    usual = LIFETIMES[TIMESTAMP] // DAY_S
    click.echo(
        shown(
            f"{out}: {made.product} {made.version} (build {made.build_id}) for agent {agent}, can be installed until "
            f"{utc(made.valid_until)}"
        ),
        err=True,
    )
    if days > usual:
        click.echo(
            f"its timestamp lasts {days} days instead of {usual}: until then it says that nothing newer exists, so give it to "
            "nobody but who installs it, and put it on no web server",
            err=True,
        )


def _file_of(repository: Path | None, result: Any) -> Path:
    assert repository is not None  # for mypy: without it, the file was named
    product, _, name = str(result.target).partition("/")
    return repository / "targets" / product / f"{result.sha256}.{name}"


def write(out: Path, result: Any, package: Path) -> None:
    """Writes the archive: the signed files, then the package, in the form that `updater.bundle` reads.

    Args:
        out: is created.
        result: of the act.
        package: the file of the package.

    Raises:
        RegistryError: the file is another package; there is no bundle then.
        OSError: it cannot be read or written.
    """
    with out.open("wb") as file, package.open("rb") as content:
        read = _Hashed(content)
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for each in result.files:
                data = each.content.encode()
                archive.addfile(_member(each.name, len(data)), io.BytesIO(data))
            if package.stat().st_size == result.length:
                archive.addfile(_member("package", result.length), read)
    if read.digest.hexdigest() != result.sha256:
        out.unlink()
        raise RegistryError(f"{package} is not {result.target}: it has another length or SHA-256 than was published")


def _member(name: str, size: int) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size = size
    return made


class _Hashed(io.RawIOBase):
    """Reads a file and hashes what was read."""

    def __init__(self, file: Any) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._file.read(size)
        self.digest.update(data)
        return data
