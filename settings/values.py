"""Readers of single values. Each takes what TOML holds and returns what the program uses, or raises BadValue.

Nothing here performs IO but the look-up of users and groups, which a caller may replace.
"""

import base64
import grp
import os
import pwd
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

OVERFLOW_ID = 65534
"""The UID and GID that the kernel shows for users and groups outside our user namespace; they name nobody."""
_MAX_ID = 2**32 - 2  # (uid_t) -1 means "no change" in chown(2)

Reader = Callable[[Any], Any]
"""Returns a value in its final form, or raises BadValue."""
Lookup = Callable[[str], int]
"""Returns the id of a name, or raises KeyError or ValueError."""


class BadValue(Exception):
    """A value that cannot be used. The text says what it must be, so that "'key' in [section] TEXT" is a sentence."""


def user_id(name: str) -> int:
    """Returns the UID of a user of this machine; raises KeyError."""
    return pwd.getpwnam(name).pw_uid


def group_id(name: str) -> int:
    """Returns the GID of a group of this machine; raises KeyError."""
    return grp.getgrnam(name).gr_gid


def text(value: Any) -> str:
    """Reads a text that is not empty."""
    if not isinstance(value, str) or not value:
        raise BadValue("must be a text in quotes")
    return value


def text_of(most: int) -> Callable[[Any], str]:
    """Makes the reader of a text of 1 to `most` characters."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or not 0 < len(value) <= most:
            raise BadValue(f"must be a text of 1 to {most} characters")
        return value

    return read


def boolean(value: Any) -> bool:
    """Reads true or false."""
    if not isinstance(value, bool):
        raise BadValue("must be true or false, without quotes")
    return value


def absolute_path(value: Any) -> Path:
    """Reads a path that means the same from every working directory."""
    path = Path(text(value))
    if not path.is_absolute() or ".." in path.parts or "\0" in str(path):
        raise BadValue("must be an absolute path without '..' (and without a NUL character)")
    return path


_SUN_PATH = 107
"""Bytes that the name of a Unix socket may have: sun_path has 108, the last of which is NUL (unix(7))."""


def socket_directory(*names: str) -> Callable[[Any], Path]:
    """Makes the reader of an absolute path of a directory for Unix sockets.

    Args:
        names: of the sockets in it; the longest must still fit.
    """
    longest = max(names, key=len)
    most = _SUN_PATH - len(f"/{longest}")

    def read(value: Any) -> Path:
        path = absolute_path(value)
        length = len(os.fsencode(path))
        if length > most:
            raise BadValue(f"must have at most {most} bytes, so that the socket {longest} fits; it has {length}")
        return path

    return read


def integer(least: int, most: int) -> Callable[[Any], int]:
    """Makes the reader of a whole number within bounds."""

    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise BadValue(f"must be a whole number from {least} to {most}")
        return value

    return read


def one_of(*allowed: str) -> Callable[[Any], str]:
    """Makes the reader of one of a few words."""

    def read(value: Any) -> str:
        if value not in allowed:
            raise BadValue(f"must be one of {', '.join(allowed)}")
        return str(value)

    return read


def matching(pattern: re.Pattern[str], what: str) -> Callable[[Any], str]:
    """Makes the reader of a text of a form.

    Args:
        pattern: of the whole text.
        what: what it must be, for the error: "must be a TCTI such as …".
    """

    def read(value: Any) -> str:
        if not pattern.fullmatch(text(value)):
            raise BadValue(what)
        return str(value)

    return read


https_url = matching(re.compile(r"https://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[^\s]*)?"), "must be an https:// address")
"""Reads an address of HTTPS."""


def pin_digest(pin: object) -> bytes:
    """Returns the 32 bytes of a pin: `sha256:` and the SHA-256 of a public key (SPKI) in base64 or hex.

    Raises:
        ValueError: it is anything else.
    """
    kind, _, digest = pin.partition(":") if isinstance(pin, str) else ("", "", "")
    try:
        raw = bytes.fromhex(digest) if len(digest) == 64 else base64.b64decode(digest, validate=True)
    except ValueError:
        raw = b""
    if kind != "sha256" or len(raw) != 32:
        raise ValueError("a pin is 'sha256:' and the SHA-256 of a public key (SPKI) in base64 or hex")
    return raw


def pins(most: int | None = None) -> Callable[[Any], tuple[str, ...]]:
    """Makes the reader of one pin or a list of pins, which stay as they are written."""
    number = "at least one" if most is None else f"1 to {most}"

    def read(value: Any) -> tuple[str, ...]:
        found = value if isinstance(value, list) else [value]
        try:
            for pin in found:
                pin_digest(pin)
            if not found or (most is not None and len(found) > most):
                raise ValueError
        except ValueError:
            raise BadValue(
                'must be "sha256:" and the SHA-256 of the public key (SPKI) of the server or of a CA above it, in base64 or '
                f"hex, or a list of {number} such"
            ) from None
        return tuple(found)

    return read


def one_id(kind: str, lookup: Lookup) -> Callable[[Any], int]:
    """Makes the reader of a user or a group, by name or number.

    Args:
        kind: "user" or "group".
        lookup: finds the id of a name.
    """

    def read(value: Any) -> int:
        if isinstance(value, str) and value:
            try:
                value = lookup(value)
            except (KeyError, ValueError):
                problem = f"names the {kind} {value!r}, which does not exist on this machine; create it or remove it"
                raise BadValue(problem) from None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_ID:
            raise BadValue(f"must be the name or the number of a {kind}; {value!r} is neither")
        if value == OVERFLOW_ID:
            raise BadValue(f"must not be {OVERFLOW_ID}: the kernel shows that number for every {kind} that it cannot name")
        return value

    return read


def ids(kind: str, lookup: Lookup) -> Callable[[Any], frozenset[int]]:
    """Makes the reader of a list of users or groups; as `one_id` for each."""
    each = one_id(kind, lookup)

    def read(value: Any) -> frozenset[int]:
        if not isinstance(value, list):
            raise BadValue(f"must be a list of {kind} names or numbers")
        return frozenset(each(entry) for entry in value)

    return read


def lists_by_id(kind: str, lookup: Lookup, entry: Reader) -> Callable[[Any], dict[int, frozenset[Any]]]:
    """Makes the reader of a table that has a list for each of some users or groups.

    Args:
        kind: as for `one_id`.
        lookup: as for `one_id`.
        entry: reads an entry of a list.
    """
    each = one_id(kind, lookup)

    def read(value: Any) -> dict[int, frozenset[Any]]:
        if not isinstance(value, dict):
            raise BadValue(f"must be a table with a list for each {kind}")
        found: dict[int, frozenset[Any]] = {}
        for name, entries in value.items():
            # A key of TOML is a text, also where it is a number.
            number = each(int(name) if name.isascii() and name.isdecimal() and len(name) <= len(str(_MAX_ID)) else name)
            if number in found:
                raise BadValue(f"has two lists for the {kind} {number}: put them together")
            if not isinstance(entries, list):
                raise BadValue(f"must have a list for each {kind}, and has none for {name!r}")
            try:
                found[number] = frozenset(entry(item) for item in entries)
            except BadValue as bad:
                raise BadValue(f"has a list for {name!r} with an entry that {bad}") from None
        return found

    return read
