"""A real stand for tests: `license-stand up` as a process of its own."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stand.commands import KEPT
from stand.warm import asked
from tests.support.waiting import READY_S, wait_for_file

BIN = Path(sys.executable).parent


class Stand:
    """A running stand.

    Attributes:
        root: its directory.
        process: `license-stand up`.
    """

    def __init__(self, root: Path, process: "subprocess.Popen[str]") -> None:
        self.root = root
        self.process = process

    @property
    def info(self) -> dict[str, Any]:
        """stand.json as it is now."""
        content: dict[str, Any] = json.loads((self.root / "stand.json").read_text())
        return content

    @property
    def env(self) -> dict[str, str]:
        """Variables under which the other commands work on this stand."""
        return {**os.environ, **self.info["env"]}

    def run(self, name: str, *arguments: str, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
        """Runs one of the installed commands on this stand; as a fork of its program where the stand keeps that loaded."""
        command, env = [str(BIN / name), *arguments], self.env
        if name in KEPT:
            with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
                given.write((stdin or "").encode())
                given.seek(0)
                files = (given.fileno(), out.fileno(), errors.fileno())
                status = asked(self.root / "run" / KEPT[name], arguments, env, files)
                if status is not None:
                    out.seek(0)
                    errors.seek(0)
                    return subprocess.CompletedProcess(command, status, out.read().decode(), errors.read().decode())
        return subprocess.run(
            command, env=env, input=stdin, capture_output=True, text=True, check=False, timeout=READY_S
        )  # fmt: skip


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A directory with a path short enough for sockets, that every user may pass through."""
    directory = Path(tempfile.mkdtemp(prefix="la-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def running_stand(backend: str = "software", *arguments: str, commands: Path = BIN) -> Iterator[Stand]:
    """A stand, for the length of a block.

    Args:
        backend: `tpm` or `software`.
        arguments: further ones of `license-stand up`.
        commands: where `license-stand` is.
    """
    with short_directory() as directory:
        root = directory / "stand"
        process = subprocess.Popen(
            [str(commands / "license-stand"), "up", "--dir", str(root), "--backend", backend, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            wait_for_file(root / "stand.json", process, "the stand did not come up")
            yield Stand(root, process)
        finally:
            process.terminate()
            process.communicate(timeout=READY_S)
