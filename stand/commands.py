"""Runs our other commands to their end. A `Warm` one keeps their programs loaded, for the many commands of a stand's start."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import Self

from .programs import StandError, program

_PASSED_ON = "license-stand passes an administrator's certificate on: set LICENSE_AGENT_AUTH_CERT and LICENSE_AGENT_AUTH_KEY"


class Commands:
    """Each command is started by itself."""

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

    def _done(self, name: str, arguments: tuple[str, ...], env: dict[str, str]) -> tuple[int, str, str]:
        # No terminal, so that a command asks nothing: a stand's root key has no passphrase.
        done = subprocess.run(
            [program(name), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **env},
        )
        return done.returncode, done.stdout, done.stderr


class Warm(Commands):
    """Programs are loaded once, and stay for the length of a `with` block (see `stand.warm`)."""

    def __init__(self) -> None:
        self._programs: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._programs.values():
            # Its process group: also the command that it may be running.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.communicate()
        self._programs.clear()

    def _done(self, name: str, arguments: tuple[str, ...], env: dict[str, str]) -> tuple[int, str, str]:
        process = self._programs.get(name)
        if process is None:
            process = self._programs[name] = subprocess.Popen(
                [sys.executable, "-m", "stand.warm", name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        assert process.stdin is not None and process.stdout is not None  # for mypy: both are pipes
        line = ""
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps({"arguments": arguments, "env": env}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        if not line:
            raise StandError(f"{name} {arguments[0]} failed: its program ended with status {process.wait()}")
        reply = json.loads(line)
        return reply["status"], reply["stdout"], reply["stderr"]
