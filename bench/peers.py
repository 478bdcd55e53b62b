"""What the agent is held against: an echo server and a server that decodes and encodes the same messages, both on uvloop."""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import uvloop
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ipc.messages import PosRequest, RequestDecoder, ValidateLicense, VerdictReply, encode_reply
from stand.programs import READY_S


def _serve(path: str, factory: Callable[[], asyncio.Protocol], ready: "multiprocessing.synchronize.Event") -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_unix_server(factory, path)
        ready.set()
        await server.serve_forever()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    uvloop.run(main())


class Echo(asyncio.Protocol):
    """Answers each read with a reply of the agent's size, without looking at what came."""

    reply = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, _data: bytes) -> None:
        self._transport.write(self.reply)  # type: ignore[attr-defined]


class Crypto(Echo):
    """As the echo, after opening and checking as much as a license takes: AES-GCM, ES256."""

    def __init__(self) -> None:
        self._key, self._nonce, self._data = AESGCM(os.urandom(32)), os.urandom(12), os.urandom(450)
        private = ec.generate_private_key(ec.SECP256R1())
        self._algorithm, self._public = ec.ECDSA(hashes.SHA256()), private.public_key()
        self._signature = private.sign(self._data, self._algorithm)
        self._sealed = self._key.encrypt(self._nonce, self._data, b"header")

    def data_received(self, _data: bytes) -> None:
        self._key.decrypt(self._nonce, self._sealed, b"header")
        self._public.verify(self._signature, self._data, self._algorithm)
        self._transport.write(self.reply)  # type: ignore[attr-defined]


class Codec(asyncio.Protocol):
    """Decodes the request, encodes a verdict; judges and logs nothing."""

    _decode = staticmethod(RequestDecoder[ValidateLicense](PosRequest).decode)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        request = self._decode(data[4:])
        reply = VerdictReply(
            1, request.id, request.nonce, True, "ok", 1_900_000_000, ("sales", "fuel"), {"shop": "Rue du Lac 7"},
            "ACTIVE", False, False, False, None, False,
        )  # fmt: skip
        self._transport.write(encode_reply(reply))  # type: ignore[attr-defined]


def _flood(path: str, uid: int, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if uid:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    while os.getppid() == parent:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
                sock.connect(path)


@contextlib.contextmanager
def flood(path: str, uid: int) -> Iterator[None]:
    """A process that only connects to a socket and closes, as fast as it can.

    Args:
        path: of the socket.
        uid: whom it runs as; 0 for the caller's user.
    """
    process = multiprocessing.get_context("fork").Process(target=_flood, args=(path, uid, os.getpid()), daemon=True)
    process.start()
    try:
        time.sleep(1)
        yield
    finally:
        process.kill()
        process.join()


_PEERS: dict[str, Callable[[], asyncio.Protocol]] = {"echo": Echo, "crypto": Crypto, "codec": Codec}


@contextlib.contextmanager
def peer(directory: Path, name: str, reply: bytes = b"") -> Iterator[str]:
    """A peer as a process of its own; gives its socket's path."""
    path = str(directory / f"{name}.sock")
    Echo.reply = reply
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_serve, args=(path, _PEERS[name], ready), daemon=True)
    process.start()
    try:
        if not ready.wait(READY_S):
            raise RuntimeError(f"the peer {name} did not start")
        yield path
    finally:
        process.terminate()
        process.join()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
