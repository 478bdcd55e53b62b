"""The clients of the benchmark: one that waits for each answer, and one that keeps many connections busy."""

import os
import selectors
import socket
import time

from ipc.clientwire import encode_request


def frames(token: str, count: int) -> list[bytes]:
    """Requests that differ in id and nonce."""
    return [encode_request("validate_license", n % 100, {"token": token, "nonce": os.urandom(16)}) for n in range(count)]


def questions(feature: str, count: int) -> list[bytes]:
    """The same for a feature, without a token."""
    return [
        encode_request("require", n % 100, {"feature": feature, "product": None, "nonce": os.urandom(16)}) for n in range(count)
    ]


def round_trips(path: str, requests: list[bytes]) -> list[float]:
    """Seconds from each request to its whole reply."""
    times = []
    clock = time.perf_counter
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        for request in requests:
            began = clock()
            sock.sendall(request)
            data = sock.recv(65_536)
            while len(data) < 4 + int.from_bytes(data[:4], "big"):
                data += sock.recv(65_536)
            times.append(clock() - began)
    return times


def throughput(path: str, requests: list[bytes], connections: int = 64) -> float:
    """Answers a second over many connections, one request under way on each."""
    selector = selectors.DefaultSelector()
    waiting = iter(requests)
    socks = []
    for _ in range(connections):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        selector.register(sock, selectors.EVENT_READ)
        socks.append(sock)
    began = time.perf_counter()
    for sock in socks:
        sock.sendall(next(waiting))
    done, open_ = 0, connections
    while open_:
        for key, _events in selector.select(5):
            key.fileobj.recv(65_536)  # type: ignore[union-attr]
            done += 1
            following = next(waiting, None)
            if following is None:
                open_ -= 1
                selector.unregister(key.fileobj)
            else:
                key.fileobj.sendall(following)  # type: ignore[union-attr]
    seconds = time.perf_counter() - began
    for sock in socks:
        sock.close()
    selector.close()
    return done / seconds


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
