"""Debian's PostgreSQL for a measurement: a server of its own with its defaults (commits are durable), on a Unix socket."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stand.programs import READY_S

USER, NAME = "license", "postgres"


def _program(name: str) -> Path | None:
    found = list(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return max(found, key=lambda path: int(path.parents[1].name), default=None)


def installed() -> bool:
    """Whether this machine has it."""
    return _program("postgres") is not None


@contextmanager
def postgresql(*settings: str) -> Iterator[str]:
    """An empty database; its URL. The server ends, and its files go, with the block.

    Args:
        settings: beside the defaults, `NAME=VALUE`.
    """
    initdb, server = _program("initdb"), _program("postgres")
    assert initdb is not None and server is not None
    directory = Path(tempfile.mkdtemp(prefix="license-bench-pg-", dir="/tmp"))
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL does not run as root
        entry = pwd.getpwnam("postgres")
        os.chown(directory, entry.pw_uid, entry.pw_gid)
        as_user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": directory, **as_user}
    try:
        command: list[str | Path] = [initdb, "-D", directory / "data", "-U", USER]
        command += ["--auth-local=trust", "--encoding=UTF8", "--locale=C"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **options)
        given = ("listen_addresses=", f"unix_socket_directories={directory}", "max_connections=200", *settings)
        started: list[str | Path] = [server, "-D", directory / "data", *(part for setting in given for part in ("-c", setting))]
        process = subprocess.Popen(started, stdout=subprocess.DEVNULL, **options)
        try:
            ends = time.monotonic() + READY_S
            while not (directory / ".s.PGSQL.5432").exists():
                if process.poll() is not None or time.monotonic() > ends:
                    raise SystemExit("bench: PostgreSQL did not start")
                time.sleep(0.05)
            time.sleep(1)  # its recovery check; it takes no connections before that
            yield f"postgresql+psycopg://{USER}@/{NAME}?host={directory}"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(READY_S)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
