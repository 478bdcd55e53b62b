"""Makes an empty registry in a PostgreSQL of its own, for measurements with very many rows."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server import wiring

from .postgresql import postgresql


@dataclass(frozen=True, slots=True)
class Registry:
    """An opened registry. `command` is license-server, `home` its directory."""

    server: wiring.Server
    command: str
    home: Path

    @property
    def serve(self) -> list[str]:
        """The command that serves it."""
        return [self.command, "serve", "--dir", str(self.home)]


@contextmanager
def large_registry(directory: Path) -> Iterator[Registry]:
    """A registry for the length of a block.

    Args:
        directory: for the server's files; it must not exist yet.
    """
    directory.mkdir(parents=True)
    home = directory / "server"
    command = str(Path(sys.executable).with_name("license-server"))
    with postgresql("shared_buffers=1GB", "max_wal_size=8GB") as url:
        made = [command, "init", "--dir", str(home), "--root-key", str(directory / "root.key"), "--database", url]
        subprocess.run(made, check=True, capture_output=True, stdin=subprocess.DEVNULL)
        server = wiring.open_server(home)
        try:
            yield Registry(server, command, home)
        finally:
            server.close()
