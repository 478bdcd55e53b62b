"""Runs our other commands to their end. A stand keeps the programs of most of them loaded, for all that is run on it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Self

from .programs import StandError, program
from .warm import asked

KEPT = {"license-server": "server", "license-agent-cli": "agent-cli"}
"""The programs that a stand keeps loaded, and the names of their sockets, no longer than the others beside them."""
_PASSED_ON = "license-stand passes an administrator's certificate on: set LICENSE_AGENT_AUTH_CERT and LICENSE_AGENT_AUTH_KEY"


class Commands:
    """Each command is started by itself, where no program is kept loaded for it.

    Args:
        kept: where a stand has the sockets of the programs that it keeps loaded; None for nowhere.
    """

    def __init__(self, kept: Path | None = None) -> None:
        self._kept = kept

    def run(self, name: str, *arguments: str, env: dict[str, str] | None = None, fine: tuple[int, ...] = (0,)) -> str:
        """Runs one of our commands to its end and returns what it printed.

        Raises:
            StandError: it failed; with its message.
        """
        status, out, errors = self._done(name, arguments, env or {})
        if status not in fine:
            text = errors.strip() or out.strip()
            # These commands take no --auth-cert of their own.
            hint = f"\n{_PASSED_ON}" if "--auth-cert" in text else ""
            raise StandError(f"{name} {arguments[0]} failed: {text}{hint}")
        return out.strip()

    def pass_on(self, name: str, *arguments: str, env: dict[str, str]) -> int:
        """Runs one of our commands with the caller's standard input, output and error; returns its exit status."""
        sys.stdout.flush()
        status = self._ask(name, arguments, env, (0, 1, 2))
        if status is not None:
            return status
        return subprocess.run([program(name), *arguments], env={**os.environ, **env}, check=False).returncode

    def _done(self, name: str, arguments: tuple[str, ...], env: dict[str, str]) -> tuple[int, str, str]:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors, open(os.devnull, "rb") as nothing:
            # No terminal, so that a command asks nothing: a stand's root key has no passphrase.
            status = self._ask(name, arguments, env, (nothing.fileno(), out.fileno(), errors.fileno()))
            if status is None:
                command, whole = [program(name), *arguments], {**os.environ, **env}
                status = subprocess.run(command, stdin=nothing, stdout=out, stderr=errors, check=False, env=whole).returncode
            return status, _text(out), _text(errors)

    def _ask(self, name: str, arguments: tuple[str, ...], env: dict[str, str], files: tuple[int, int, int]) -> int | None:
        if self._kept is None or name not in KEPT:
            return None
        try:
            return asked(self._kept / KEPT[name], arguments, {**os.environ, **env}, files)
        except ConnectionError:
            raise StandError(f"{name} {arguments[0]} failed: the stand's program has ended meanwhile; try again") from None


class Warm(Commands):
    """Loads the programs of KEPT when they are first used, and keeps them until `close`, also for `Commands` elsewhere.

    Args:
        kept: the directory for their sockets.
    """

    def __init__(self, kept: Path) -> None:
        super().__init__(kept)
        self._directory = kept
        self._programs: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the programs, and the commands that they are running."""
        for name, process in self._programs.items():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.communicate()
            (self._directory / KEPT[name]).unlink(missing_ok=True)
        self._programs.clear()

    def _ask(self, name: str, arguments: tuple[str, ...], env: dict[str, str], files: tuple[int, int, int]) -> int | None:
        if name in KEPT and name not in self._programs:
            self._programs[name] = self._load(name)
        return super()._ask(name, arguments, env, files)

    def _load(self, name: str) -> "subprocess.Popen[bytes]":
        path = self._directory / KEPT[name]
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            mask = os.umask(0o177)
            try:
                listener.bind(str(path))
            except OSError as error:
                raise StandError(f"{path} cannot be made: {error.strerror or error}; choose a shorter --dir") from None
            finally:
                os.umask(mask)
            listener.listen()
            number = listener.fileno()
            return subprocess.Popen(
                [sys.executable, "-m", "stand.warm", name, str(number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[number],
                start_new_session=True,
            )


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")
