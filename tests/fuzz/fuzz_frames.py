"""Bytes of a peer become frames and requests, or a RemoteProtocolError; nothing else."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["ipc"]):
        import ipc.clientwire
        import ipc.frames
        import ipc.messages  # noqa: F401


from ipc.clientwire import decode_reply
from ipc.errors import RemoteProtocolError
from ipc.frames import FrameDecoder
from ipc.messages import AdminRequest, PosRequest, RequestDecoder, encode_error
from ipc.replies import feature_verdict_from, licenses_from, verdict_from

READERS: tuple[Callable[[dict[str, Any]], object], ...] = (
    lambda reply: verdict_from(reply, bytes(16)),
    lambda reply: feature_verdict_from(reply, bytes(16), "fuel", None),
    lambda reply: licenses_from(reply, bytes(16), ""),
)
DECODERS = (RequestDecoder[PosRequest](PosRequest), RequestDecoder[AdminRequest](AdminRequest))


def check(data: bytes) -> None:
    """Feeds the bytes whole and cut, and decodes every body as both kinds of request and as a reply."""
    whole, pieces = _bodies([data]), _bodies([data[:5], data[5:11], data[11:]])
    if whole != pieces:
        raise AssertionError("a cut changes the frames")
    for body in [*whole[0], data]:
        for decoder in DECODERS:
            try:
                decoder.decode(body)
            except RemoteProtocolError as error:
                encode_error(error.code, error.text, error.request_id)
        for read in READERS:
            with contextlib.suppress(RemoteProtocolError):
                read(decode_reply(body, 1))


def _bodies(pieces: list[bytes]) -> tuple[list[bytes], bool]:
    decoder, bodies = FrameDecoder(), []
    for piece in pieces:
        try:
            bodies += decoder.receive_data(piece)
        except RemoteProtocolError:
            break
    return bodies, decoder.error is not None


def main() -> None:
    """Runs under libFuzzer; its options come from the command line."""
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
