"""Hands out what a command has made, so that nothing that is committed is lost on the way to the file.

A file is written completely before the command commits, and gets its name after that: a full disk or an unwritable directory
stops the command before it has done anything.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from common.files import fsync_directory, temporary_of, write_temporary
from server.base.errors import RegistryError


def writable(_ctx: click.Context, _param: click.Parameter, out: Path | None) -> Path | None:
    """Refuses a file that could not be written, before anything is done."""
    if out is None:
        return None
    try:
        if out.exists():
            out.open("a").close()
        elif not out.parent.is_dir():
            raise click.BadParameter(f"{out} cannot be written: there is no directory {out.parent}")
        elif not os.access(out.parent, os.W_OK):
            raise click.BadParameter(f"{out} cannot be written: permission denied")
    except OSError as error:
        raise click.BadParameter(f"{out} cannot be written: {error.strerror}") from None
    return out


out_option = click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=writable,
    help="Write here instead of standard output.",
)


def write(text: str, out: Path | None) -> None:
    """Prints a text, or writes it to a file. For what can be asked for again; else `handing_out`."""
    with handing_out(out) as hand:
        hand(text)


class Undelivered(Exception):
    """What the command hands out is made already, at another server, and could not be written; the text says why."""


@contextmanager
def handing_out(
    out: Path | None, lost: str = "run the command again", *, private: bool = False
) -> Iterator[Callable[[str], None]]:
    """Yields a function that takes what the command hands out. It is printed, or the file gets its name, at the end.

    Enclose the transaction in it: the file's content is written before the transaction commits.

    Args:
        out: the file; None for standard output.
        lost: what to do when it is done and could not be handed out.
        private: a new file is for its owner only.

    Raises:
        RegistryError: that is so.
    """
    taken: list[str] = []
    replaced = out is not None and _is_replaceable(out)

    def hand(text: str) -> None:
        taken.append(text.rstrip("\n") + "\n")
        if out is not None and replaced:
            mode = 0o600 if private and not out.exists() else _mode_of(out)
            write_temporary(temporary_of(out), taken[-1].encode(), mode)

    try:
        try:
            yield hand
        except BaseException:
            if out is not None and replaced and taken:
                temporary_of(out).unlink(missing_ok=True)
            raise
    except Undelivered as problem:
        raise RegistryError(f"it is done, but its output could not be written ({problem}): {lost}") from None
    if not taken:
        return
    try:
        _give(taken[-1], out, replaced)
    except OSError as error:
        raise RegistryError(f"it is done, but its output could not be written ({error.strerror}): {lost}") from None


def taking(hand: Callable[[str], None], name: str) -> Callable[[Any], None]:
    """Takes what a command hands out from the result of an act.

    Args:
        hand: of `handing_out`.
        name: the member of the result.
    """
    return lambda result: hand(getattr(result, name))


def _give(text: str, out: Path | None, replaced: bool) -> None:
    if out is None:
        click.echo(text, nl=False)
    elif replaced:
        temporary_of(out).replace(out)
        fsync_directory(out.parent)
    else:
        out.write_text(text, encoding="utf-8")


def _is_replaceable(out: Path) -> bool:
    """Whether a new file may take this name: not that of a device, a link, or a file of somebody else."""
    try:
        info = out.lstat()
    except FileNotFoundError:
        return os.access(out.parent, os.W_OK)
    return stat.S_ISREG(info.st_mode) and info.st_uid == os.geteuid() and os.access(out.parent, os.W_OK)


def _mode_of(out: Path) -> int:
    if out.exists():
        return stat.S_IMODE(out.stat().st_mode)
    umask = os.umask(0o077)
    os.umask(umask)
    return 0o666 & ~umask
