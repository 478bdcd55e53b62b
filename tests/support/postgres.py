"""Debian's own PostgreSQL for a run of the tests: one server, on a Unix socket only, that ends with its last user.

Each process that uses it holds a shared lock on a file for as long as it lives; a guardian waits for the exclusive one and then
ends the server. So it serves all workers of pytest-xdist, and goes even when they are killed.
"""

import contextlib
import fcntl
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from tests.support.waiting import READY_S, wait_until

USER = "license"
_SETTINGS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "listen_addresses=", "max_connections=100")


def binary(name: str) -> str:
    """Path of a program of PostgreSQL: of the newest release that is installed."""
    found = Path("/usr/lib/postgresql").glob(f"*/bin/{name}")
    return str(max(found, key=lambda path: int(path.parents[1].name)))


class Postgres:
    """The server of this run.

    Args:
        directory: of its socket.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def _admin(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(f"host={self.directory} user={USER} dbname=postgres", autocommit=True)

    @contextlib.contextmanager
    def database(self, template: str | None = None) -> Iterator[str]:
        """A new database; its URL.

        Args:
            template: URL of the one to copy, which nobody uses meanwhile; an empty one if None.
        """
        name = f"t{os.getpid()}_{time.monotonic_ns()}"
        with contextlib.closing(self._admin()) as admin:
            admin.execute(f"CREATE DATABASE {name} TEMPLATE {_name(template) if template else 'template1'}".encode())
        try:
            yield self.url(name)
        finally:
            with contextlib.closing(self._admin()) as admin:
                admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())

    def url(self, name: str) -> str:
        """The URL of a database, for SQLAlchemy."""
        return f"postgresql+psycopg://{USER}@/{name}?host={self.directory}"

    def dump(self, url: str) -> bytes:
        """What pg_dump writes of a database."""
        command = [binary("pg_dump"), "-h", str(self.directory), "-U", USER, _name(url)]
        return subprocess.run(command, check=True, capture_output=True, timeout=READY_S).stdout


def _name(url: str) -> str:
    return url.split("@/", 1)[1].split("?", 1)[0]


@contextlib.contextmanager
def shared_postgres(base: Path) -> Iterator[Postgres]:
    """The server of the run whose files are in `base`, started if nobody has done so."""
    known = base / "postgres.json"
    with (base / "postgres.users").open("w") as users, (base / "postgres.start").open("w") as start:
        fcntl.flock(start, fcntl.LOCK_EX)
        # Waits while a guardian ends the server of earlier users.
        fcntl.flock(users, fcntl.LOCK_SH)
        if not known.exists():
            command = [sys.executable, "-m", "tests.support.postgres", str(base)]
            done = subprocess.run(command, cwd=Path(__file__).parents[2], timeout=READY_S, check=False)
            if done.returncode != 0:
                raise RuntimeError((base / "postgres.log").read_text("utf-8", "replace"))
        fcntl.flock(start, fcntl.LOCK_UN)
        yield Postgres(Path(json.loads(known.read_text())["directory"]))


def _guard(base: Path, ready: int) -> None:
    """Starts the server, tells that it is ready, ends it when nobody uses it any more."""
    directory = Path(tempfile.mkdtemp(prefix="la-pg-"))
    known = base / "postgres.json"
    as_user: dict[str, object] = {}
    if os.geteuid() == 0:  # PostgreSQL does not run as root
        entry = pwd.getpwnam("postgres")
        os.chown(directory, entry.pw_uid, entry.pw_gid)
        as_user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    log = (base / "postgres.log").open("ab")
    options = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "cwd": directory, **as_user}
    try:
        data = directory / "data"
        initdb = [binary("initdb"), "-D", str(data), "-U", USER, "--auth-local=trust", "--auth-host=reject"]
        subprocess.run([*initdb, "--no-sync", "--encoding=UTF8", "--locale=C"], check=True, timeout=READY_S, **options)  # type: ignore[call-overload]
        settings = [part for setting in (*_SETTINGS, f"unix_socket_directories={directory}") for part in ("-c", setting)]
        server = subprocess.Popen([binary("postgres"), "-D", str(data), *settings], **options)  # type: ignore[call-overload]
        try:
            _wait(directory, server)
            known.write_text(json.dumps({"directory": str(directory)}))
            os.write(ready, b"ready")
            with (base / "postgres.users").open("w") as users:
                fcntl.flock(users, fcntl.LOCK_EX)
                known.unlink()
                server.send_signal(signal.SIGQUIT)
                server.wait(READY_S)
        finally:
            if server.poll() is None:
                server.kill()
                server.wait()
    finally:
        shutil.rmtree(directory)


def _wait(directory: Path, server: "subprocess.Popen[bytes]") -> None:
    def connects() -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(f"host={directory} user={USER} dbname=postgres").close()
            return True
        return False

    wait_until(connects, "PostgreSQL did not start", lives=lambda: server.poll() is None)


def main(base: Path) -> int:
    """Returns when the server is ready; its guardian stays behind."""
    heard, ready = os.pipe()
    if os.fork():
        os.close(ready)
        return 0 if os.read(heard, 5) == b"ready" else 1
    os.setsid()
    log = os.open(base / "postgres.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (0, 1, 2):
        os.dup2(log, number)
    _guard(base, ready)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
