"""Reads what administrators give to commands: tokens directly, from standard input ('-') or from a file ('@FILE')."""

import codecs
import os
import stat
import sys
from typing import BinaryIO

import click

from ipc.posclient.tokenfile import token_in
from ipc.posclient.tokenhint import enrollment_token_hint, license_token_hint

from .agent import EXIT_NEGATIVE, ROOM


def confirm(question: str) -> None:
    """Asks; ends the command if the answer is no, or if nobody is there to answer."""
    try:
        click.confirm(question, abort=True, err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        text = "nothing was done: this command asks first, and nobody answered yes; --yes answers"
        click.echo(f"\nlicense-agent-cli: {text}", err=True)
        sys.exit(EXIT_NEGATIVE)


def _not_utf16(data: bytes, where: str) -> bytes:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise click.UsageError(f"{where} is UTF-16; save it as plain text (UTF-8)")
    return data


def _decoded(data: bytes, where: str) -> str:
    _not_utf16(data, where)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise click.UsageError(f"{where} is not text") from None


def _read(text: str) -> tuple[bytes, str] | None:
    """What is read for an argument, and where; None for one that is the token itself."""
    if text == "-":
        return sys.stdin.buffer.read(ROOM), "standard input"
    if text.startswith("@"):
        # A pipe of a shell, such as @<(command), may be read too; a directory or device is a mistake.
        with open(text[1:], "rb") as file:
            if not stat.S_ISREG(mode := os.fstat(file.fileno()).st_mode) and not stat.S_ISFIFO(mode):
                raise click.UsageError(f"{text[1:]} is not a file with a token")
            return file.read(ROOM), text[1:]
    return None


def license_token(text: str) -> str:
    """A license token.

    Raises:
        click.UsageError: it is empty.
        OSError: the file cannot be read.
    """
    read = _read(text)
    found = text.strip() if read is None else token_in(_not_utf16(*read))
    if not found:
        raise click.UsageError("the token is empty")
    if not found.isascii():
        raise click.UsageError(f"this is not a license token: {license_token_hint(found)}")
    return found


def hint_at(token: str) -> None:
    """Says on standard error what is wrong with a license token that the agent called malformed."""
    hint = license_token_hint(token)
    if hint is None and os.path.lexists(token):
        hint = "it is the name of a file: did you mean '@FILE'?"
    if hint is not None:
        click.echo(f"license-agent-cli: this is not a license token: {hint}", err=True)


def enrollment_token(_ctx: click.Context, _param: click.Parameter, text: str) -> str:
    """An enrollment token, as a callback of an option.

    Raises:
        click.BadParameter: it cannot be read, or cannot be one.
    """
    try:
        read = _read(text)
        found = text if read is None else _decoded(*read)
    except OSError as error:
        raise click.BadParameter(f"{text[1:]} cannot be read: {error.strerror}") from None
    except click.UsageError as error:
        raise click.BadParameter(error.message) from None
    found = found.strip()
    hint = enrollment_token_hint(found)
    if hint is not None:
        raise click.BadParameter(f"this is not an enrollment token: {hint}")
    return found


def text_of(file: BinaryIO) -> str:
    """The content of a delivery, a policy or a statement: at most `ROOM` bytes, without a byte order mark."""
    return _decoded(file.read(ROOM), file.name)
