"""Reads and judges byte ranges of HTTP (RFC 9110 section 14): one range, with both ends. Nothing here performs IO."""

import re
from typing import NamedTuple

_RANGE = re.compile(r"bytes=(0|[1-9][0-9]{0,14})-(0|[1-9][0-9]{0,14})")
_CONTENT_RANGE = re.compile(r"bytes (0|[1-9][0-9]{0,14})-(0|[1-9][0-9]{0,14})/([1-9][0-9]{0,14})")
_STRONG = re.compile(r'"[!#-~]{1,200}"')


class ByteRange(NamedTuple):
    """A part of a file, both ends included."""

    first: int
    last: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.last - self.first + 1

    @property
    def header(self) -> str:
        """The value of `Range` that asks for it."""
        return f"bytes={self.first}-{self.last}"


def parse_range(text: str) -> ByteRange | None:
    """What a value of `Range` asks for; None if it is anything but one range with both ends, in order."""
    match = _RANGE.fullmatch(text)
    found = ByteRange(int(match[1]), int(match[2])) if match else None
    return found if found and found.first <= found.last else None


def is_strong(etag: str) -> bool:
    """Whether a text is a strong entity tag (RFC 9110 section 8.8.3), which alone may join parts of a file."""
    return _STRONG.fullmatch(etag) is not None


def range_problem(wanted: ByteRange, status: int, content_range: str | None, length: int | None = None) -> str | None:
    """Says why a successful answer is not the part that was asked for; None if it is.

    A file that ends within the part gives what there is of it.

    Args:
        wanted: the part.
        status: of HTTP, 200 to 299.
        content_range: the header, if there is one.
        length: `Content-Length`, if there is one.
    """
    if status != 206:
        return "the server answered with the whole file: the file has changed, or the server does not support ranges"
    match = _CONTENT_RANGE.fullmatch(content_range or "")
    if match is None:
        return "the server answered with a part and does not say which"
    first, last, total = (int(each) for each in match.groups())
    if first != wanted.first or last != min(wanted.last, total - 1) or first > last:
        return f"the server answered with bytes {first} to {last} of {total}, not with bytes {wanted.first} to {wanted.last}"
    if length is not None and length != last - first + 1:
        return f"the server says that bytes {first} to {last} are {length} bytes"
    return None
