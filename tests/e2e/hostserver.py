"""The license server of the guest's agent: a real one, on the host, where it is not emulated; and a mere listener."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

if __name__ == "__main__":  # run by its path, not as a module
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.waiting import READY_S, answers

PROGRAM = Path(__file__).resolve().parents[2] / ".venv/bin/license-server"


class HostServer:
    """A license server, made anew in a directory. To be used in a `with` block.

    Args:
        directory: is emptied.
        name: the address by which agents know it.

    Attributes:
        directory: where it is.
        port: of loopback, on which it listens.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.directory, self._name = directory, name
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, *arguments: str) -> str:
        """What `license-server ARGUMENTS --dir …` prints."""
        done = subprocess.run(
            [PROGRAM, *arguments, "--dir", str(self.directory)],
            stdin=subprocess.DEVNULL,  # at a terminal, `init` would ask for a passphrase
            capture_output=True,
            text=True,
            timeout=READY_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"license-server {arguments[0]} on the host: {done.stderr[-500:]}")
        return done.stdout.strip()

    def __enter__(self) -> Self:
        shutil.rmtree(self.directory, ignore_errors=True)
        self.run("init", "--issuer", "https://license.example", "--name", self._name)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        log = (self.directory.parent / "server.log").open("wb")
        with log:
            self._process = subprocess.Popen(
                [PROGRAM, "serve", "--dir", str(self.directory), "--bind", f"127.0.0.1:{self.port}"], stderr=log
            )
        ends = time.monotonic() + READY_S
        while time.monotonic() < ends and self._process.poll() is None:
            if answers(self.port):
                return self
            time.sleep(0.1)
        self.__exit__(None, None, None)
        raise RuntimeError(f"the license server did not start: {(self.directory.parent / 'server.log').read_text()[-500:]}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(READY_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


@contextmanager
def held_port() -> Iterator[int]:
    """A port of loopback that the kernel gives to nobody else meanwhile; a program that sets SO_REUSEADDR can listen on it."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@contextmanager
def listening() -> Iterator[int]:
    """A port of loopback where connections are taken and closed."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def made_for_the_guest(directory: Path) -> None:
    """A server's directory for the payload, as an administrator brings it from another machine."""
    shutil.rmtree(directory, ignore_errors=True)
    made = HostServer(directory, "127.0.0.1")
    made.run("init", "--issuer", "https://license.example", "--name", "127.0.0.1")
    settings = directory / "settings.toml"
    settings.write_text(settings.read_text().replace(os.fspath(directory), "/var/lib/license-server"))


if __name__ == "__main__":
    made_for_the_guest(Path(sys.argv[1]))
