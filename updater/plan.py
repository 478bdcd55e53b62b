"""Decides which part of a package is asked for next, and judges each answer. Nothing here performs IO.

A package comes in one request, or in parts where it is larger than one request may bring or where a part of it is on disk
already. Every number in an answer must be the one that the signed metadata and the request make it: a server can stop a
download, but it cannot make it longer, or other than was asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ipc.byteranges import ByteRange, is_strong, range_problem
from ipc.linkmessages import MAX_ANSWER_BYTES
from ipc.updatermessages import UpdaterCode

from .failures import UpdateFailed

LEAST_PIECE = 1024 * 1024
"""Bytes of the smallest part that is asked for, but for the last one."""
PIECE_S = 600
"""Seconds that a part may take at the limited rate. The link ends a request after an hour."""


def piece_for(rate: int | None) -> int:
    """Bytes that one request asks for.

    Args:
        rate: bytes a second to which the download is limited; None without a limit.
    """
    return MAX_ANSWER_BYTES if rate is None else min(MAX_ANSWER_BYTES, max(LEAST_PIECE, rate * PIECE_S))


@dataclass(frozen=True, slots=True)
class Ask:
    """One request.

    Attributes:
        part: the bytes that it must bring.
        headers: of the request; none where the whole package is asked for.
    """

    part: ByteRange
    headers: Mapping[str, str]


class Plan:
    """The way from what is on disk to a whole package.

    Args:
        length: of the package, bytes; at least 1.
        piece: most bytes of one request.
        done: bytes that are on disk.
        etag: of the file that they come from; None if it is not known.

    Attributes:
        done: bytes that are on disk.
        etag: of the file in the repository; None while it is not known, or if the server names none that counts.
        resumed: whether some bytes come from an earlier download.
    """

    __slots__ = ("_ask", "_length", "_piece", "_received", "done", "etag", "resumed")

    def __init__(self, length: int, piece: int, done: int = 0, etag: str | None = None) -> None:
        if not 0 <= done <= length or length < 1 or piece < 1:
            raise ValueError(f"no download of {length} bytes in pieces of {piece} goes on after {done}")
        self._length = length
        self._piece = piece
        self._ask: Ask | None = None
        self._received = 0
        self.done = done
        self.etag = etag if done and etag is not None and is_strong(etag) else None
        self.resumed = done > 0

    def next(self) -> Ask | None:
        """The next request; None when the package is whole."""
        if self.done == self._length:
            return None
        part = ByteRange(self.done, min(self.done + self._piece, self._length) - 1)
        headers = {}
        if part.size != self._length:
            headers["range"] = part.header
            if self.etag is not None:
                headers["if-range"] = self.etag
        self._ask, self._received = Ask(part, headers), 0
        return self._ask

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """Judges the head of the answer.

        Args:
            status: of HTTP.
            headers: by lower-case name.

        Raises:
            UpdateFailed: STATUS, NO_RANGES, CHANGED, LENGTH or BAD_RESPONSE.
        """
        ask = self._asked()
        etag, length = headers.get("etag"), _number(headers.get("content-length"))
        if status == 416 and "range" in ask.headers:
            raise UpdateFailed(UpdaterCode.LENGTH, f"the file in the repository has no byte {ask.part.first}")
        if not 200 <= status < 300:
            raise UpdateFailed(UpdaterCode.STATUS, _status_text(status))
        if self.etag is not None and etag != self.etag:
            raise UpdateFailed(UpdaterCode.CHANGED, "the file in the repository has another ETag than its earlier part")
        if "range" in ask.headers:
            self._judge_part(ask, status, headers.get("content-range"), length)
        elif status != 200:
            raise UpdateFailed(UpdaterCode.STATUS, _status_text(status))
        elif length is not None and length != self._length:
            raise UpdateFailed(UpdaterCode.LENGTH, f"the file in the repository has {length} bytes instead of {self._length}")
        self.etag = etag if etag is not None and is_strong(etag) else None

    def refused(self) -> UpdateFailed:
        """What it means that the link refused the answer because it is not the part that was asked for."""
        return _other_part(self._asked(), "the answer is not the part that was asked for")

    def received(self, count: int) -> None:
        """Counts bytes of the body.

        Raises:
            UpdateFailed: TOO_LONG.
        """
        self._received += count
        if self._received > self._asked().part.size:
            raise UpdateFailed(
                UpdaterCode.TOO_LONG, f"the repository sent more than the {self._asked().part.size} bytes of the part"
            )
        self.done += count

    def ended(self) -> None:
        """The body has come to its end.

        Raises:
            UpdateFailed: BAD_RESPONSE, if a part of it is missing.
        """
        size = self._asked().part.size
        if self._received != size:
            raise UpdateFailed(UpdaterCode.BAD_RESPONSE, f"the answer ended after {self._received} of {size} bytes")
        self._ask = None

    def _asked(self) -> Ask:
        if self._ask is None:
            raise ValueError("an answer without a request")
        return self._ask

    def _judge_part(self, ask: Ask, status: int, content_range: str | None, length: int | None) -> None:
        if problem := range_problem(ask.part, status, content_range, length):
            raise _other_part(ask, problem)
        total = _number((content_range or "").rpartition("/")[2])
        if total != self._length:
            raise UpdateFailed(UpdaterCode.LENGTH, f"the file in the repository has {total} bytes instead of {self._length}")


def _other_part(ask: Ask, problem: str) -> UpdateFailed:
    # A server that supports ranges answers with the whole file only if the condition is false (RFC 9110 section 13.1.5).
    if "if-range" in ask.headers:
        return UpdateFailed(UpdaterCode.CHANGED, f"{problem}; it was asked for on the condition that the file is as before")
    return UpdateFailed(UpdaterCode.NO_RANGES, problem)


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 15):
        raise UpdateFailed(UpdaterCode.BAD_RESPONSE, "a length in the answer is not a number")
    return int(text)


def _status_text(status: int) -> str:
    if status == 404:
        return "the repository does not have the file (status 404)"
    return f"the repository answered with status {status}"
