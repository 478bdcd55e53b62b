"""Debian's PostgreSQL for one test alone, which may be stopped, started again, and short of connections or disk."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from tests.support.postgres import USER, binary
from tests.support.waiting import READY_S, wait_until


class OwnPostgres:
    """A server of its own; its files are in a directory that belongs to the user it runs as.

    Args:
        directory: for its data.
        settings: beside the defaults, `NAME=VALUE`.
    """

    def __init__(self, directory: Path, *settings: str) -> None:
        self.directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._settings = settings
        self._as_user: dict[str, Any] = {}
        if os.geteuid() == 0:  # PostgreSQL does not run as root
            entry = pwd.getpwnam("postgres")
            os.chown(directory, entry.pw_uid, entry.pw_gid)
            self._as_user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        directory.chmod(0o755)
        # The socket is elsewhere: the disk may be full.
        self._sockets = Path(tempfile.mkdtemp(prefix="la-pg-"))
        self._sockets.chmod(0o777)
        command = [binary("initdb"), "-D", str(directory / "data"), "-U", USER, "--auth-local=trust", "--no-sync", "--locale=C"]
        try:
            self._run([*command, "--encoding=UTF8", "--wal-segsize=1"])
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """The URL of a database, for SQLAlchemy."""
        return f"postgresql+psycopg://{USER}@/postgres?host={self._sockets}"

    def connect(self) -> psycopg.Connection[tuple[object, ...]]:
        """A connection of the test's own."""
        return psycopg.connect(f"host={self._sockets} user={USER} dbname=postgres", autocommit=True)

    def start(self) -> None:
        given = ("listen_addresses=", f"unix_socket_directories={self._sockets}", *self._settings)
        command = [binary("postgres"), "-D", str(self.directory / "data"), *(part for each in given for part in ("-c", each))]
        with (self._sockets / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", **self._as_user
            )
        process = self._process
        wait_until(self._answers, "PostgreSQL did not start", lives=lambda: process.poll() is None)

    def _answers(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """Stops it at once, as a crash would; connections are cut."""
        if self._process is not None:
            self._process.send_signal(3)  # SIGQUIT: immediate shutdown
            self._process.wait(READY_S)
            self._process = None

    def close(self) -> None:
        """Stops it for good, and removes the folder of its socket."""
        self.stop()
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _run(self, command: list[str]) -> None:
        subprocess.run(command, check=True, capture_output=True, timeout=READY_S, cwd="/", **self._as_user)

    @classmethod
    @contextmanager
    def made(cls, directory: Path, *settings: str) -> Iterator["OwnPostgres"]:
        """One that ends with the block."""
        made = cls(directory, *settings)
        try:
            yield made
        finally:
            made.close()
