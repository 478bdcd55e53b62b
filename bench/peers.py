"""What the agent is held against: an echo server and a server that decodes and encodes the same messages, both on uvloop."""

import asyncio
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import uvloop

from ipc.messages import PosRequest, RequestDecoder, VerdictReply, encode_reply


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


class Codec(asyncio.Protocol):
    """Decodes the request, encodes a verdict; judges and logs nothing."""

    _decode = staticmethod(RequestDecoder(PosRequest).decode)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        request = self._decode(data[4:])
        reply = VerdictReply(
            1, request.id, request.nonce, True, "ok", 1_900_000_000, ("sales", "fuel"), {"shop": "Rue du Lac 7"},
            "ACTIVE", False, False, False, None, False,
        )  # fmt: skip
        self._transport.write(encode_reply(reply))  # type: ignore[attr-defined]


@contextlib.contextmanager
def peer(directory: Path, name: str, reply: bytes = b"") -> Iterator[str]:
    """A peer as a process of its own; gives its socket's path."""
    path = str(directory / f"{name}.sock")
    Echo.reply = reply
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_serve, args=(path, Echo if name == "echo" else Codec, ready), daemon=True)
    process.start()
    try:
        if not ready.wait(10):
            raise RuntimeError(f"the peer {name} did not start")
        yield path
    finally:
        process.terminate()
        process.join()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
