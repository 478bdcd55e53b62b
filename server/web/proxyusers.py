"""Decides which local users may speak for clients at the Unix socket: the kernel says who has connected (SO_PEERCRED, unix(7)).

The mode of the socket lets the server's group connect. Of these only the proxy's user is believed (threat-model T26).
"""

import logging
import pwd
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Protocol

from server.base.errors import RegistryError
from server.base.limits import REFUSED_PEER_RATE, buckets

DEFAULT = "www-data"
"""The user of Debian's nginx."""
OVERFLOW_UID = 65534
"""What the kernel shows for a user outside of this user namespace: it names nobody, so it is never admitted."""
_UCRED = struct.Struct("iII")
_log = logging.getLogger("license_server")


class Connected(Protocol):
    """The part of a connected Unix socket that is used here; uvloop hands out no `socket.socket`."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        """As `socket.getsockopt`."""
        ...


class ProxyUsers:
    """The users that may connect.

    Args:
        uids: of these users.
        steady: seconds of a clock that never goes back.
    """

    def __init__(self, uids: Iterable[int], steady: Callable[[], float]) -> None:
        self._uids = frozenset(uids) - {OVERFLOW_UID}
        self._steady = steady
        self._told = buckets(REFUSED_PEER_RATE)

    def admits(self, sock: Connected | None) -> bool:
        """Whether the peer of a connection may speak for clients. A refusal is logged, a few times a minute for each user."""
        try:
            if sock is None:
                raise OSError
            _pid, uid, _gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        except (OSError, struct.error):
            _log.error("a connection was refused", extra={"fields": {"why": "the kernel does not say who has connected"}})
            return False
        if uid in self._uids:
            return True
        if self._told.take(uid, self._steady()):
            why = f"user {name_of(uid)} is not the proxy's; 'serve --proxy-user' names that user"
            _log.warning("a connection was refused", extra={"fields": {"uid": uid, "why": why}})
        return False


def uids_of(names: Iterable[str]) -> frozenset[int]:
    """The UIDs of users, by name or number.

    Raises:
        RegistryError: there is no such user.
    """
    return frozenset(_uid_of(name) for name in names)


def _uid_of(name: str) -> int:
    if name.isascii() and name.isdigit() and len(name) < 10:
        uid = int(name)
    else:
        try:
            uid = pwd.getpwnam(name).pw_uid
        except KeyError:
            raise RegistryError(
                f"there is no user {name!r} on this machine; name the user that nginx runs as with --proxy-user"
            ) from None
    if uid == OVERFLOW_UID:
        raise RegistryError(f"--proxy-user must not be user {OVERFLOW_UID}: the kernel shows every unknown user under it")
    return uid


def name_of(uid: int) -> str:
    """A user's name and number, for people."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return str(uid)
