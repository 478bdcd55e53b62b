"""A TPM for tests: swtpm on two loopback ports, its state in a directory of the test's own.

It ends only the process that it started.
"""

import contextlib
import random
import shutil
import socket
import struct
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.waiting import READY_S, wait_until

_HOST = "127.0.0.1"
_CMD_GET_CAPABILITY = struct.pack(">I", 1)  # swtpm's tpm_ioctl.h
_CHOICE = random.SystemRandom()  # not the seeded generator that tests of one process may share with another's


def available() -> bool:
    """Whether swtpm is installed."""
    return shutil.which("swtpm") is not None


def free_port_pair() -> int:
    """A port N such that N and N + 1 were free just now; the TCTI expects the control channel at N + 1.

    Below the ports that the kernel hands out by itself, so that no outgoing connection takes one before swtpm does.
    """
    while True:
        port = 2 * _CHOICE.randrange(5_000, 16_000)
        with socket.socket() as first, socket.socket() as second, contextlib.suppress(OSError):
            first.bind((_HOST, port))
            second.bind((_HOST, port + 1))
            return port


class Swtpm:
    """One emulated TPM 2.0. Use it in a `with` block, or call `start` and `stop`.

    Args:
        state: directory for the TPM's state; made if it is not there.
    """

    def __init__(self, state: Path) -> None:
        self.state = state.absolute()
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def tcti(self) -> str:
        """How tpm2-tss reaches this TPM."""
        return f"swtpm:host={_HOST},port={self.port}"

    def start(self) -> Self:
        """Starts it and returns when it answers; on the ports of an earlier start if there was one."""
        if self._process is not None:
            raise RuntimeError("this swtpm runs already")
        self.state.mkdir(parents=True, exist_ok=True)
        for _attempt in range(5):
            if self._launch(self.port or free_port_pair()):
                return self
        raise RuntimeError(f"swtpm does not start: {self._log().read_text(errors='replace')}")

    def _log(self) -> Path:
        return self.state / "swtpm.log"

    def _launch(self, port: int) -> bool:
        command = [
            *("swtpm", "socket", "--tpm2"),
            *("--tpmstate", f"dir={self.state}"),
            *("--server", f"type=tcp,port={port},bindaddr={_HOST}"),
            *("--ctrl", f"type=tcp,port={port + 1},bindaddr={_HOST}"),
            *("--flags", "not-need-init,startup-clear"),
        ]
        with self._log().open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

        def answers() -> bool:
            with contextlib.suppress(OSError):
                self._control(port + 1, _CMD_GET_CAPABILITY)
                return True
            return False

        try:
            wait_until(answers, "swtpm does not answer", lives=lambda: process.poll() is None)
        except AssertionError:
            process.kill()
            process.wait()
            return False
        self.port, self._process = port, process
        return True

    @staticmethod
    def _control(port: int, command: bytes) -> None:
        with socket.create_connection((_HOST, port), timeout=READY_S) as connection:
            connection.sendall(command)
            answer = connection.recv(64)
            if answer[:4] != bytes(4):
                raise OSError(f"swtpm refused a control command: {answer.hex()}")

    def stop(self) -> None:
        """Ends it; the state stays. May be called twice."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def restart(self) -> None:
        """Stops and starts it on the same ports with the same state."""
        self.stop()
        self.start()

    def clear(self) -> None:
        """Throws the state away, as if the chip were another one. It must not be running."""
        if self._process is not None:
            raise RuntimeError("stop it first")
        shutil.rmtree(self.state)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
