"""Refuses requests that another HTTP server could read in another way than this one: request smuggling (RFC 9112, 11.2).

h11 takes obs-fold, bare line feeds, repeated lengths, and a length beside chunks. Nobody who speaks to this server sends any of
them. What is left has one reading only; everything else ends the connection.
"""

import re
from typing import Any

import h11

_REQUEST_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+ /[\x21-\x7e]* HTTP/1\.[01]")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\x20-\x7e\t\x80-\xff]*)")
_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_END = b"\r\n\r\n"


def problem_of_head(data: bytes) -> str | None:
    """What is wrong with a request's head, in words; None if nothing is, as far as it has arrived.

    Args:
        data: the head from its first byte, possibly with what follows it, or cut off anywhere.
    """
    head, end, _rest = data.partition(_END)
    if _BARE.search(head):
        return "a line must end with CR LF, and have neither byte elsewhere"
    if not end:
        return None
    lines = head.split(b"\r\n")
    if not _REQUEST_LINE.fullmatch(lines[0]):
        return "the request line must be METHOD /PATH HTTP/1.1"
    found: dict[bytes, list[bytes]] = {b"content-length": [], b"transfer-encoding": [], b"host": []}
    for line in lines[1:]:
        field = _FIELD.fullmatch(line)
        if field is None:
            return "a header field is malformed"
        values = found.get(field[1].lower())
        if values is not None:
            values.append(field[2].strip(b" \t"))
    return _problem_of_framing(found, lines[0].endswith(b"1.0"))


def _problem_of_framing(found: dict[bytes, list[bytes]], old: bool) -> str | None:
    lengths, codings = found[b"content-length"], found[b"transfer-encoding"]
    if any(len(values) > 1 for values in found.values()):
        return "content-length, transfer-encoding or host is there twice"
    if lengths and codings:
        return "content-length and transfer-encoding exclude each other"
    if lengths and not (lengths[0].isdigit() and lengths[0].isascii()):
        return "content-length must be a number"
    if codings and (old or codings[0].lower() != b"chunked"):
        return "transfer-encoding must be chunked, in HTTP/1.1"
    return None


class StrictConnection(h11.Connection):
    """An h11 connection of a server that takes only what has one reading."""

    def next_event(self) -> Any:
        """As h11's.

        Raises:
            h11.RemoteProtocolError: the request has no reading, or more than one.
        """
        if self.their_state is h11.IDLE:
            problem = problem_of_head(self.trailing_data[0])
            if problem is not None:
                raise h11.RemoteProtocolError(problem)
        event = super().next_event()
        if isinstance(event, h11.EndOfMessage) and list(event.headers):
            raise h11.RemoteProtocolError("a body must have no trailer fields")
        return event
