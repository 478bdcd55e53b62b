"""A Unix server that behaves as it is told: one act for each connection, the last one for all that follow."""

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack

from ipc.frames import FrameDecoder, encode_frame
from tests.support.waiting import READY_S

Act = Callable[["FakeAgent", socket.socket], None]


def frame(message: dict[str, Any]) -> bytes:
    return encode_frame(msgpack.packb(message))


class FakeAgent:
    def __init__(self, path: Path, *acts: Act) -> None:
        self.path = str(path)
        self.requests: list[dict[str, Any]] = []
        self.connections = 0
        self.ended = threading.Event()
        self._acts = list(acts)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(16)
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "FakeAgent":
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(READY_S)
        self._listener.close()

    def _serve(self) -> None:
        while not self.ended.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            act = self._acts[min(self.connections, len(self._acts) - 1)]
            self.connections += 1
            # A client whose deadline is over has gone, whatever the agent still wants to tell it.
            with connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.settimeout(READY_S)
                act(self, connection)

    def take(self, connection: socket.socket) -> dict[str, Any] | None:
        """The next request; None once the client has gone."""
        decoder = FrameDecoder()
        while True:
            try:
                data = connection.recv(65_536)
            except OSError:
                return None
            if not data:
                return None
            for body in decoder.receive_data(data):
                request = msgpack.unpackb(body)
                self.requests.append(request)
                return request


def success(request: dict[str, Any]) -> dict[str, Any]:
    head = {"v": 1, "id": request["id"]}
    if request["op"] == "agent_info":
        return {
            **head, "agent_id": "pos-1", "agent_version": "1", "protocol_versions": [1], "degraded": False, "time": 5,
        }  # fmt: skip
    if request["op"] == "refresh_license":
        return {**head, "token": "newer" if request["token"] == "old" else None}
    if request["op"] == "require":
        known = request["feature"] == "a"
        return {
            **head,
            "nonce": request["nonce"],
            "valid": known,
            "reason": "ok" if known else "no_license",
            "license": "l-1" if known else None,
            "product": request["product"] if known else None,
            "features": ["a"] if known else [],
            "metadata": {},
            "degraded": False,
            "clock_suspect": False,
        }
    if request["op"] == "count_usage":
        counted = request["meter"] == "a"
        return {
            **head,
            "count_id": request["count_id"],
            "counted": counted,
            "repeated": False,
            "reason": "ok" if counted else "no_license",
            "license": "l-1" if counted else None,
        }
    if request["op"] == "ota_consent":
        return {**head, "pending": True, "product": "pos", "version": "2.1", "notes": "", "not_before": None}
    if request["op"] == "licenses":
        number = int(request["after"] or 0) + 1
        entry = {"license": str(number), "valid": False, "reason": "expired", "features": [], "metadata": {}}
        return {**head, "nonce": request["nonce"], "licenses": [entry], "next": str(number) if number < 3 else None}
    if request["op"] != "validate_license":
        return head
    return {
        **head,
        "nonce": request["nonce"],
        "valid": request["token"] != "bad",
        "reason": "expired" if request["token"] == "bad" else "ok",
        "features": ["a"],
        "metadata": {},
        "degraded": False,
        "clock_suspect": False,
        "reissue_due": False,
        "refreshed": request["token"] == "old",
    }


def answers(agent: FakeAgent, connection: socket.socket) -> None:
    while (request := agent.take(connection)) is not None:
        connection.sendall(frame(success(request)))


def answers_with(change: Callable[[dict[str, Any]], bytes]) -> Act:
    """Takes one request, sends what `change` makes of it, and closes."""

    def act(agent: FakeAgent, connection: socket.socket) -> None:
        request = agent.take(connection)
        if request is not None:
            connection.sendall(change(request))

    return act


def error(code: int, text: str = "why") -> Act:
    return answers_with(lambda request: frame({"v": 1, "id": request["id"], "error": {"code": code, "text": text}}))


def refuses_at_once(code: int) -> Act:
    """Says so and closes without reading."""

    def act(_agent: FakeAgent, connection: socket.socket) -> None:
        connection.sendall(frame({"v": 1, "id": None, "error": {"code": code, "text": "why"}}))

    return act


def closes(agent: FakeAgent, connection: socket.socket) -> None:
    agent.take(connection)


def silent(agent: FakeAgent, connection: socket.socket) -> None:
    agent.take(connection)
    agent.take(connection)
