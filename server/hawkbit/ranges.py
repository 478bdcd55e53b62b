"""Decides which part of a file a request gets: Range and If-Range (RFC 9110, 13.1.5 and 14). Pure."""

import re
from dataclasses import dataclass

_RANGE = re.compile(rb"bytes=(?P<first>[0-9]{0,15})-(?P<last>[0-9]{0,15})\Z")


class NotSatisfiable(Exception):
    """The range begins behind the file's end."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a file.

    Attributes:
        first: offset of its first byte.
        length: bytes.
        whole: whether it was asked for as a whole, so the status is 200.
    """

    first: int
    length: int
    whole: bool


def part_of(length: int, etag: str, asked: list[bytes], if_range: list[bytes]) -> Part:
    """The part that is asked for.

    Args:
        length: of the file.
        etag: of the file, in quotes.
        asked: the values of Range. One that is malformed, or asks for several parts, counts as none, as the standard allows.
        if_range: the values of If-Range: a range of another file than this one is answered with the whole file.

    Raises:
        NotSatisfiable: the range begins behind the end.
    """
    whole = Part(0, length, whole=True)
    found = _RANGE.match(asked[0]) if len(asked) == 1 else None
    if found is None or found[0] == b"bytes=-" or any(value != etag.encode() for value in if_range):
        return whole
    first, last = found["first"], found["last"]
    if not first:  # the last so many bytes
        count = min(int(last), length)
        if not count:
            raise NotSatisfiable
        return Part(length - count, count, whole=False)
    begin, end = int(first), min(int(last), length - 1) if last else length - 1
    if last and int(last) < begin:
        return whole
    if begin >= length:
        raise NotSatisfiable
    return Part(begin, end - begin + 1, whole=False)
