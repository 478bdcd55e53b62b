"""The real link as a process, with a configuration of its own, for tests."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentd.uplink.linkclient import LinkClient
from tests.support.otheruser import commands_for
from tests.support.stand import BIN
from tests.support.waiting import READY_S, wait_until

# Puts the inherited socket at 3 as systemd does, then becomes the link.
_LAUNCH = """
import os, sys
number = int(sys.argv[1])
if number != 3:
    os.dup2(number, 3, inheritable=True)
    os.close(number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="link")
os.execv(sys.argv[2], sys.argv[2:])
"""


class Link:
    """A link that can be started, stopped and killed.

    As root it runs as `uid`, otherwise as the caller.
    """

    def __init__(self, directory: Path, uid: int | None = None) -> None:
        self.directory = directory
        self.config = directory / "link.toml"
        self.socket = directory / "link.sock"
        self.log_file = directory / "link.log"
        self.uid = uid if uid is not None else os.geteuid()
        self.commands = BIN if self.uid == os.geteuid() else commands_for(self.uid)
        self.core_uid = os.geteuid()
        self.process: subprocess.Popen[bytes] | None = None
        self.configure()

    def configure(self, text: str = "") -> None:
        """Writes a configuration with these upstreams."""
        self.config.write_text(f"[core]\nuser = {self.core_uid}\n{text}")
        self.config.chmod(0o644)

    @property
    def client(self) -> LinkClient:
        return LinkClient(self.socket, self.uid)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def log(self) -> str:
        return self.log_file.read_text()

    def start(self, *arguments: str, inherited: socket.socket | None = None) -> None:
        """Starts it and returns when its socket is there."""
        command = [
            str(self.commands / "license-agent-link"),
            "--config",
            str(self.config),
            "--socket",
            str(self.socket),
            *arguments,
        ]
        if inherited is not None:
            command = [str(self.commands / "python"), "-I", "-c", _LAUNCH, str(inherited.fileno()), *command]
        else:
            self.socket.unlink(missing_ok=True)
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stderr=log,
                pass_fds=[] if inherited is None else [inherited.fileno()],
                user=self.uid if self.uid != os.geteuid() else None,
                group=self.uid if self.uid != os.geteuid() else None,
                extra_groups=[] if self.uid != os.geteuid() else None,
            )
        process = self.process
        if inherited is None:
            wait_until(self.listening, self.log, lives=lambda: process.poll() is None)

    def listening(self) -> bool:
        """Whether a connection would be accepted; asks the kernel's table, so that the link sees none."""
        # Flags 00010000: the socket listens (__SO_ACCEPTCON).
        lines = Path("/proc/net/unix").read_text().splitlines()
        return any(line.endswith(f" {self.socket}") and line.split()[3] == "00010000" for line in lines)

    def stop(self) -> int:
        """Ends it and returns its status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(READY_S)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(READY_S)


@contextmanager
def running_link(directory: Path, upstreams: str = "", *arguments: str, uid: int | None = None) -> Iterator[Link]:
    """A link in a directory, for the length of a block."""
    link = Link(directory, uid)
    link.configure(upstreams)
    link.start(*arguments)
    try:
        yield link
    finally:
        link.stop()
