"""Sends files, whole or in part. A client that stops reading loses its connection, and downloads at once are bounded."""

import asyncio
from collections import Counter
from typing import Any

from .endpoints import Download
from .problems import Refused
from .ranges import NotSatisfiable, Part, part_of

CHUNK = 256 * 1024
STALL_S = 60
"""How long a client may take for a chunk. A till with 64 kbit/s takes half of that."""
MAX_DOWNLOADS = 128
"""At once, in this process: each may have 2 MB in memory that its client has not read."""
MAX_DOWNLOADS_DEVICE = 2
"""At once, of one device: its present one, and one whose end the server has not seen yet."""
RETRY_S = 60


class Downloads:
    """The downloads that are under way in this process."""

    def __init__(self) -> None:
        self._of: Counter[str] = Counter()

    async def send(self, device_id: str, file: Download, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Sends a file as the request asks for it, and closes it.

        Args:
            device_id: who downloads.
            file: open.
            scope: of the request, whose body was read.
            receive: of ASGI.
            send: of ASGI.

        Raises:
            Refused: too many downloads are under way, or the range begins behind the end.
        """
        with file.file:
            if self._of[device_id] >= MAX_DOWNLOADS_DEVICE or self._of.total() >= MAX_DOWNLOADS:
                raise Refused("rate-limited", "too many downloads are under way", RETRY_S)
            self._of[device_id] += 1
            try:
                await self._send(file, scope, receive, send)
            finally:
                self._of[device_id] -= 1
                if not self._of[device_id]:
                    del self._of[device_id]

    async def _send(self, file: Download, scope: dict[str, Any], receive: Any, send: Any) -> None:
        etag = f'"{file.sha256}"'

        def values(wanted: bytes) -> list[bytes]:
            return [value for name, value in scope["headers"] if name == wanted]

        try:
            part = part_of(file.length, etag, values(b"range"), values(b"if-range"))
        except NotSatisfiable:
            ends = {"content-range": f"bytes */{file.length}"}
            raise Refused("range", "the range begins behind the end of the file", headers=ends) from None
        await send({"type": "http.response.start", "status": 200 if part.whole else 206, "headers": _head(file, part, etag)})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body"})
            return
        await asyncio.to_thread(file.file.seek, part.first)
        left = part.length
        # uvicorn passes over what is sent to a client that is gone, and says so here only.
        gone = asyncio.ensure_future(receive())
        try:
            while left and not gone.done():
                chunk = await asyncio.to_thread(file.file.read, min(CHUNK, left))
                if not chunk:
                    raise OSError("the file of a package is shorter than it was published")
                left -= len(chunk)
                # uvicorn waits here while the client does not read.
                async with asyncio.timeout(STALL_S):
                    await send({"type": "http.response.body", "body": chunk, "more_body": left > 0})
        finally:
            gone.cancel()


def _head(file: Download, part: Part, etag: str) -> list[tuple[bytes, bytes]]:
    found = {
        "content-type": "application/octet-stream",
        "content-length": str(part.length),
        "accept-ranges": "bytes",
        "etag": etag,
        "content-disposition": f'attachment; filename="{file.name}"',
    }
    if not part.whole:
        found["content-range"] = f"bytes {part.first}-{part.first + part.length - 1}/{file.length}"
    return [(name.encode(), value.encode()) for name, value in found.items()]
