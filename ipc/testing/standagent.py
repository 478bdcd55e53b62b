"""Drives a real agent for tests: `license-stand` as a process of its own, and its commands. Nothing is simulated.

The command comes with the agent's distribution, not with the client's.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..answers import Reason
from .base import DEFAULT_EXPIRES_IN_S, DEFAULT_FEATURES, MACHINE_REASONS, AgentInTest, NotAvailable

COMMAND = "license-stand"
START_S = 300.0
"""Seconds in which a stand must be up: a machine under load needs many times of what an idle one does."""
LONGEST_WAIT_S = 60
_POLL_S = 0.1


def find_command() -> str | None:
    """Path of `license-stand`: beside this interpreter, or in the path; None if it is not installed."""
    beside = Path(sys.executable).parent / COMMAND
    return str(beside) if beside.exists() else shutil.which(COMMAND)


class StandLicenseAgent(AgentInTest):
    """A real agent with its license server, on this machine, until `close`.

    Args:
        backend: `software`, or `tpm` where swtpm is installed.

    Raises:
        NotAvailable: `license-stand` is not installed, or the stand did not come up; with what it printed.
    """

    is_fake = False

    def __init__(self, backend: str = "software") -> None:
        command = find_command()
        if command is None:
            raise NotAvailable(
                f"{COMMAND} is not installed: install the agent's distribution license-agent[link,server] beside"
            )
        self._command = command
        # The agent's user passes through, and a socket's path is short.
        self._directory = Path(tempfile.mkdtemp(prefix="stand-", dir="/tmp"))
        self._directory.chmod(0o755)
        self._root = self._directory / "s"
        self._issued: dict[str, str] = {}
        self._changed = False  # so that reset, which takes a second or two, is not called for nothing
        self._log = (self._directory / "up.log").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [command, "up", "--dir", str(self._root), "--backend", backend],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            self._await()
        except BaseException:
            self.close()
            raise
        self.socket = str(self._info()["pos_socket"])

    def _await(self) -> None:
        ends = time.monotonic() + START_S
        while not (self._root / "stand.json").exists():
            if self._process.poll() is not None or time.monotonic() >= ends:
                self._log.seek(0)
                raise NotAvailable(f"the stand did not come up:\n{self._log.read()}")
            time.sleep(_POLL_S)

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = json.loads((self._root / "stand.json").read_text("utf-8"))
        return info

    def _run(self, *words: str) -> str:
        done = subprocess.run(
            [self._command, *words, "--dir", str(self._root)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{COMMAND} {' '.join(words)} failed: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout.strip()

    # Tokens

    def token(self, reason: Reason | str = Reason.OK, **license: Any) -> str:
        wanted = Reason(reason)
        dates = {} if wanted in (Reason.EXPIRED, Reason.NOT_YET_VALID) else {"expires_in": DEFAULT_EXPIRES_IN_S}
        license_id, options = _options(**{**dates, **license})
        self._changed = wanted in MACHINE_REASONS  # any other reason puts the stand back
        token = self._run("reason", wanted.value, *options)
        self._issued[token] = license_id
        return token

    def issue(
        self,
        *,
        features: tuple[str, ...] = DEFAULT_FEATURES,
        metadata: Mapping[str, str] | None = None,
        license_id: str | None = None,
        begins_in: int = 0,
        expires_in: int = DEFAULT_EXPIRES_IN_S,
    ) -> str:
        license_id, options = _options(features, metadata, license_id, begins_in, expires_in)
        token = self._run("issue", *options)
        self._issued[token] = license_id
        return token

    def deliver(
        self,
        *,
        features: tuple[str, ...] = DEFAULT_FEATURES,
        metadata: Mapping[str, str] | None = None,
        license_id: str | None = None,
        begins_in: int = 0,
        expires_in: int = DEFAULT_EXPIRES_IN_S,
    ) -> str:
        license_id, options = _options(features, metadata, license_id, begins_in, expires_in)
        token = self._run("deliver", *options)
        self._issued[token] = license_id
        return token

    # What happens in a shop

    def advance(self, seconds: int) -> None:
        if not 0 <= seconds <= LONGEST_WAIT_S:
            raise NotAvailable(f"on a stand time passes as it does: {seconds} s is more than a test waits ({LONGEST_WAIT_S} s)")
        time.sleep(seconds)

    def expire(self, token: str) -> None:
        with self.client(deadline=START_S) as client:
            ends = client.validate(token).expires_at
        if ends is None:
            raise ValueError("the agent cannot open that token")
        self.advance(max(0, int(ends - time.time()) + 1))

    def revoke(self, token: str) -> None:
        if token not in self._issued:
            raise ValueError("that token was not issued here")
        self._run("revoke", self._issued[token])

    def rotate(self) -> int:
        return int(self._run("rotate").split()[2])  # secret version N is ACTIVE

    def invalidate(self, version: int) -> None:
        self._changed = True
        self._run("invalidate", str(version))

    def degrade(self, on: bool = True) -> None:
        self._changed = True
        self._run("degrade", "on" if on else "off")

    def stop(self) -> None:
        self._changed = True
        if self._info()["agent_pid"]:
            self._run("agent", "stop")

    def start(self) -> None:
        if not self._info()["agent_pid"]:
            self._run("agent", "start")

    def reset(self) -> None:
        if self._changed:
            self._run("reason", Reason.OK.value)
            self._changed = False

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, **self._info()["env"]}


def _options(
    features: tuple[str, ...] = DEFAULT_FEATURES,
    metadata: Mapping[str, str] | None = None,
    license_id: str | None = None,
    begins_in: int | None = None,
    expires_in: int | None = None,
) -> tuple[str, list[str]]:
    """The license's id, and the options of `license-stand issue` and `reason`."""
    license_id = license_id or str(uuid.uuid4())
    options = [f"--license-id={license_id}", *(f"--feature={name}" for name in features)]
    options += [f"--metadata={name}={value}" for name, value in (metadata or {}).items()]
    options += [] if begins_in is None else [f"--not-before={begins_in:+d}s"]
    options += [] if expires_in is None else [f"--expires={expires_in:+d}s"]
    return license_id, options
