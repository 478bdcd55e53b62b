"""Makes and reads the cursors of lists: opaque to the client, and bound to the list and its filters. Pure."""

import hmac
import json

from contracts.jose import MalformedToken, b64decode, b64encode

MAX_CHARS = 1024
_MAC_BYTES = 16


class CursorRefused(Exception):
    """The cursor was changed, or belongs to another list or other filters."""


def seal(key: bytes, name: str, filters: str, after: str) -> str:
    """A cursor.

    Args:
        key: 32 bytes, the same in all processes.
        name: of the list.
        filters: with which it is read.
        after: the place behind which the next page begins.
    """
    place = json.dumps(after).encode()
    return f"{b64encode(place)}.{b64encode(_mac(key, name, filters, place))}"


def open_(key: bytes, name: str, filters: str, cursor: str) -> str:
    """The place in a cursor.

    Raises:
        CursorRefused: this server did not make it for this list with these filters.
    """
    first, dot, second = cursor.partition(".")
    try:
        place, mac = b64decode(first), b64decode(second)
    except (MalformedToken, ValueError):
        raise CursorRefused from None
    if not dot or not hmac.compare_digest(mac, _mac(key, name, filters, place)):
        raise CursorRefused
    after: str = json.loads(place)
    return after


def _mac(key: bytes, name: str, filters: str, place: bytes) -> bytes:
    bound = json.dumps([name, filters]).encode()
    return hmac.digest(key, len(bound).to_bytes(8, "big") + bound + place, "sha256")[:_MAC_BYTES]
