"""Defines the client library's calls as conversations: each yields questions, receives replies and returns its result.

Nothing here performs IO but `TokenFile`; `client` and `aioclient` drive the same conversations over their sockets. What ends
a question without an answer is thrown into its conversation, which decides whether it ends the call.
"""

import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any

from .bounds import MAX_TOKEN_CHARS, NONCE_BYTES
from .clientpolicy import TokenFileError
from .clientwire import (
    AgentInfo,
    Verdict,
    agent_info_from,
    check_token,
    refreshed_token_from,
    verdict_from,
)
from .errors import LicenseAgentError

log = logging.getLogger("license_agent_client")

RefreshCallback = Callable[[str, str], None]
"""Is given the old token and the newer one that takes its place; returns when the newer one is kept.

What it raises does not cost the caller the verdict: the verdict's `refresh_error` says it.
"""


@dataclass(frozen=True, slots=True)
class Question:
    """One request. `fields` is called again for each attempt, so that a nonce is never sent twice."""

    op: str
    fields: Callable[[], dict[str, Any]] = field(default=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply, and the fields with which the answered attempt was made."""

    sent: dict[str, Any]
    reply: dict[str, Any]


def ask_validate(token: str) -> Generator[Question, Answer, Verdict]:
    """One verdict on one token."""
    check_token(token)
    answer = yield Question("validate_license", lambda: {"token": token, "nonce": secrets.token_bytes(NONCE_BYTES)})
    return verdict_from(answer.reply, answer.sent["nonce"])


def ask_refresh(token: str) -> Generator[Question, Answer, str | None]:
    """The newest token of the same license, or None if the agent holds none that is newer."""
    check_token(token)
    answer = yield Question("refresh_license", lambda: {"token": token})
    return refreshed_token_from(answer.reply, token)


def ask_info() -> Generator[Question, Answer, AgentInfo]:
    """What the agent says about itself."""
    answer = yield Question("agent_info")
    return agent_info_from(answer.reply)


def ask_ping() -> Generator[Question, Answer, None]:
    """Whether the agent answers."""
    yield Question("ping")


def validate_and_refresh(token: str, on_refresh: RefreshCallback | None) -> Generator[Question, Answer, Verdict]:
    """A verdict; where the agent holds a newer token of this license, the caller is handed it and it is judged instead.

    Once there is a verdict it is returned, whatever happens to the newer token: a shop does not stop because a file cannot be
    replaced. `Verdict.refresh_error` says what happened.
    """
    verdict = yield from ask_validate(token)
    if on_refresh is None or not verdict.refreshed:
        return verdict
    try:
        newer = yield from ask_refresh(token)
        if newer is None:
            return verdict
        newer_verdict = yield from ask_validate(newer)
    except LicenseAgentError as error:
        return _not_refreshed(verdict, f"the agent did not hand over the newer token: {error}")
    if verdict.valid and not newer_verdict.valid:
        return verdict
    try:
        on_refresh(token, newer)
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        return _not_refreshed(newer_verdict, f"the newer token could not be stored: {where}{error.strerror or error}")
    except Exception as error:  # noqa: BLE001 - the caller's own code; the verdict was there before it failed
        return _not_refreshed(newer_verdict, f"the newer token could not be stored: {type(error).__name__}: {error}")
    return newer_verdict


def _not_refreshed(verdict: Verdict, why: str) -> Verdict:
    log.warning("%s", why)
    return replace(verdict, refresh_error=why)


TOKEN_READ_CHARS = MAX_TOKEN_CHARS + 256
"""What is read of a file that should hold a token: enough to see that it is too long."""


class TokenFile:
    """A license token kept in a file: read for a validation, replaced as a whole when a newer one comes."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)

    def read(self) -> str:
        """The token, without the line break around it.

        Raises:
            TokenFileError: the file cannot be read.
            UnicodeDecodeError: it holds something else than ASCII.
        """
        try:
            with open(self._path, encoding="ascii") as file:
                return file.read(TOKEN_READ_CHARS).strip()
        except OSError as error:
            raise TokenFileError(error.errno, error.strerror, self._path) from None

    def replace(self, _old: str, new: str) -> None:
        """Puts `new` in the file's place at once and durably, with the file's mode. Usable as a `RefreshCallback`.

        Raises:
            TokenFileError: the file or its directory cannot be written; it names the file, not the temporary one.
        """
        try:
            self._replace(new)
        except OSError as error:
            raise TokenFileError(error.errno, error.strerror, self._path) from None

    def _replace(self, new: str) -> None:
        mode = os.stat(self._path).st_mode & 0o777
        temporary = f"{self._path}.{secrets.token_hex(8)}.new"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(new + "\n")
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
            directory = os.open(os.path.dirname(self._path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
