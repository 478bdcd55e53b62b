"""Cuts a byte stream into frames: a 4-byte big-endian length, then that many bytes. Nothing here performs IO.

The same bytes give the same frames however they are cut.
"""

import sys

from .bounds import HEADER_BYTES, MAX_FRAME_BYTES
from .errors import ErrorCode, LocalProtocolError, RemoteProtocolError


def encode_frame(body: bytes, ceiling: int = MAX_FRAME_BYTES) -> bytes:
    """The frame that carries `body`.

    Raises:
        LocalProtocolError: `body` is empty or above `ceiling` bytes.
    """
    if not 0 < len(body) <= ceiling:
        raise LocalProtocolError(ErrorCode.FRAME_TOO_LARGE, f"a frame holds 1 to {ceiling} bytes, this message has {len(body)}")
    return len(body).to_bytes(HEADER_BYTES, "big") + body


class FrameDecoder:
    """Cuts a byte stream into frame bodies.

    After an error the stream has no next frame: every further call raises the same error.

    Attributes:
        error: the error that ended the stream, if one did.
        more: the last call stopped at its limit; whole frames may be waiting.
        partial: a frame has begun and is not complete.
    """

    __slots__ = ("_buffer", "_ceiling", "error", "more", "partial")

    def __init__(self, ceiling: int = MAX_FRAME_BYTES) -> None:
        self._ceiling = ceiling
        self._buffer = bytearray()
        self.error: RemoteProtocolError | None = None
        self.more = False
        self.partial = False

    def hold(self, data: bytes) -> None:
        """Keeps bytes for the next call of `receive_data`."""
        self._buffer += data
        self.more = True
        self.partial = bool(self._buffer)

    def receive_data(self, data: bytes, most: int = sys.maxsize) -> list[bytes]:
        """The bodies that `data` completes, in order; at most `most` of them, the next call goes on.

        A list that comes before an oversized header is still returned; the error is raised by the next call, or at
        once if the list would be empty.

        Raises:
            RemoteProtocolError: a length prefix of 0 or above the ceiling (FRAME_TOO_LARGE).
        """
        if self.error is not None:
            raise self.error
        if not self.partial and len(data) > HEADER_BYTES:
            # Nearly always one read is one frame; then nothing is buffered.
            if int.from_bytes(data[:HEADER_BYTES], "big") == len(data) - HEADER_BYTES <= self._ceiling:
                return [data[HEADER_BYTES:]]
        self._buffer += data
        return self._cut(most)

    def _cut(self, most: int) -> list[bytes]:
        bodies: list[bytes] = []
        buffer, start = self._buffer, 0
        self.more = False
        while len(buffer) - start >= HEADER_BYTES:
            if len(bodies) >= most:
                self.more = True
                break
            length = int.from_bytes(buffer[start : start + HEADER_BYTES], "big")
            if not 0 < length <= self._ceiling:
                self.error = RemoteProtocolError(
                    ErrorCode.FRAME_TOO_LARGE,
                    f"a frame holds 1 to {self._ceiling} bytes, this one says {length}",
                )
                buffer.clear()
                self.partial = False
                if bodies:
                    return bodies
                raise self.error
            end = start + HEADER_BYTES + length
            if len(buffer) < end:
                break
            bodies.append(bytes(buffer[start + HEADER_BYTES : end]))
            start = end
        del buffer[:start]
        self.partial = bool(buffer)
        return bodies
