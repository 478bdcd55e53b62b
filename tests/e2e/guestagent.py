"""What is said to the agent inside the guest (qemu-ga): JSON lines over a Unix socket of QEMU, a virtio-serial port inside.

The channel has no notion of a connection: the guest may restart between a question and its answer, and bytes of an older talk
may still lie in it. So every talk begins with a synchronization that only the present listener can answer (QEMU's
qga/qapi-schema.json, guest-sync-delimited), and a talk that misses a deadline is dropped as a whole.
"""

import base64
import contextlib
import json
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PUT_CHUNK = 256 * 1024
GET_CHUNK = 1024 * 1024


class NoAnswer(Exception):
    """Nobody answers in the guest: not booted yet, restarting, or hanging."""


class Refused(Exception):
    """The agent answered, and would or could not do what was asked."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: the exit status, or the negative number of the signal that ended it.
        stdout: what was captured, at most 16 MB.
        stderr: likewise.
    """

    status: int
    stdout: bytes
    stderr: bytes


class GuestAgent:
    """Talks to qemu-ga. Threads may share one object: a question and its answer stay together."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._unread = b""
        self._turn = threading.RLock()

    def close(self) -> None:
        """Drops the talk; the next question begins a new one."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._unread = None, b""

    def ask(self, question: str, arguments: Mapping[str, Any] | None = None, *, timeout: float = 60) -> Any:
        """Asks one question and returns the answer's value.

        Args:
            question: the command's name in QEMU's schema.
            arguments: of the command.
            timeout: seconds, for the synchronization and for the answer each.

        Raises:
            NoAnswer: nobody answered in time.
            Refused: the agent answered with an error.
        """
        with self._turn:
            try:
                if self._socket is None:
                    self._synchronize(timeout)
                answer = self._exchange({"execute": question, "arguments": dict(arguments or {})}, timeout)
            except (OSError, ValueError) as error:
                self.close()
                raise NoAnswer(f"The guest did not answer {question} within {timeout:g} s ({error}).") from error
        if "error" in answer:
            raise Refused(f"{question}: {answer['error'].get('desc', answer['error'])}")
        return answer["return"]

    def start(self, command: list[str], environment: Mapping[str, str], *, stdin: bytes = b"", capture: bool = True) -> int:
        """Starts a program and returns its process id in the guest."""
        arguments = {
            "path": command[0],
            "arg": command[1:],
            "env": [f"{name}={value}" for name, value in environment.items()],
            "capture-output": capture,
        }
        if stdin:
            arguments["input-data"] = base64.b64encode(stdin).decode()
        return int(self.ask("guest-exec", arguments)["pid"])

    def ended(self, pid: int) -> Ended | None:
        """How the program `pid` of `start` ended, or None while it runs.

        The answer that it ended is given once; then the agent forgets the program.
        """
        answer = self.ask("guest-exec-status", {"pid": pid})
        if not answer["exited"]:
            return None
        status = answer["exitcode"] if "exitcode" in answer else -int(answer.get("signal", 0))
        return Ended(status, base64.b64decode(answer.get("out-data", "")), base64.b64decode(answer.get("err-data", "")))

    def write(self, remote: str, data: bytes) -> None:
        """Makes or overwrites the file `remote`. 1 to 3 MB/s under emulation: large things belong on the payload disk."""
        handle = self.ask("guest-file-open", {"path": remote, "mode": "w"})
        try:
            for begin in range(0, len(data), PUT_CHUNK):
                piece = data[begin : begin + PUT_CHUNK]
                done = self.ask("guest-file-write", {"handle": handle, "buf-b64": base64.b64encode(piece).decode()})
                if done["count"] != len(piece):
                    raise Refused(f"guest-file-write: only {done['count']} of {len(piece)} bytes of {remote} were written")
        finally:
            with contextlib.suppress(NoAnswer):
                self.ask("guest-file-close", {"handle": handle})

    def read(self, remote: str, *, timeout: float = 60) -> bytes:
        """The whole content of the file `remote`; `timeout` seconds for each question of several."""
        handle = self.ask("guest-file-open", {"path": remote, "mode": "r"}, timeout=timeout)
        pieces = []
        try:
            while True:
                answer = self.ask("guest-file-read", {"handle": handle, "count": GET_CHUNK}, timeout=timeout)
                pieces.append(base64.b64decode(answer["buf-b64"]))
                # Files of /proc have no end to see beforehand: an empty piece is the end too.
                if answer["eof"] or not answer["count"]:
                    return b"".join(pieces)
        finally:
            with contextlib.suppress(NoAnswer):
                self.ask("guest-file-close", {"handle": handle}, timeout=timeout)

    def _synchronize(self, timeout: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        self._socket.connect(str(self._path))
        token = secrets.randbelow(2**31)
        # 0xFF ends whatever half a question an earlier talk left in the agent's parser.
        self._send(b"\xff", {"execute": "guest-sync-delimited", "arguments": {"id": token}})
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            line = self._line(deadline).rpartition(b"\xff")[2]
            with contextlib.suppress(ValueError):
                if json.loads(line).get("return") == token:
                    return
        raise TimeoutError("no synchronization")

    def _exchange(self, question: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        self._send(b"", question)
        answer = json.loads(self._line(time.monotonic() + timeout))
        if not isinstance(answer, dict):
            raise ValueError(f"not an answer: {answer!r}")
        return answer

    def _send(self, before: bytes, question: Mapping[str, Any]) -> None:
        assert self._socket is not None
        self._socket.sendall(before + json.dumps(question).encode() + b"\n")

    def _line(self, deadline: float) -> bytes:
        assert self._socket is not None
        pieces = [self._unread]
        while b"\n" not in pieces[-1]:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            piece = self._socket.recv(1 << 18)
            if not piece:
                raise ConnectionError("QEMU closed the port")
            pieces.append(piece)
        line, _, self._unread = b"".join(pieces).partition(b"\n")
        return line
