"""Decides which connections a listener holds, before any TLS work: by address, by agent, and in all. Pure.

A connection belongs to groups, each with a limit. Where a group is full, its oldest member makes room for the new one: a client
that only holds connections loses them, and a handshake that takes its usual time ends before its turn comes. Until the
handshake has ended the client is unknown, so an address has few handshakes at once. Afterwards a connection belongs to an
agent, or is anonymous: anonymous ones never take the room of agents (threat-model T31).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from server.base.limits import (
    HANDSHAKE_RATE,
    MAX_AGENT_CONNECTIONS,
    MAX_ANONYMOUS,
    MAX_ANONYMOUS_ADDRESS,
    MAX_CONNECTIONS,
    MAX_HANDSHAKES,
    MAX_HANDSHAKES_ADDRESS,
    address_key,
    buckets,
)

_HANDSHAKES, _ANONYMOUS, _AGENT, _ALL = "handshakes", "anonymous", "agent", "all"
_Group = tuple[str, str]


@dataclass(eq=False, slots=True)
class Entry:
    """A connection.

    Attributes:
        address: the bucket of its address.
        close: ends it at once.
        groups: those that it belongs to.
        ended: whether it has made room for another one.
    """

    address: str
    close: Callable[[], None]
    groups: set[_Group] = field(default_factory=set)
    ended: bool = False


class Admission:
    """The connections of a listener.

    Args:
        steady: seconds of a clock that never goes back.
    """

    def __init__(self, steady: Callable[[], float]) -> None:
        self._steady = steady
        self._rate = buckets(HANDSHAKE_RATE)
        self._members: dict[_Group, dict[Entry, None]] = {}

    def arrive(self, address: str, close: Callable[[], None]) -> Entry | None:
        """Admits a connection that has no TLS yet; None if it is to be closed.

        Args:
            address: of the client.
            close: ends the connection at once.
        """
        key = address_key(address)
        if not self._rate.take(key, self._steady()) or not self._room():
            return None
        entry = Entry(key, close)
        self._join(entry, (_ALL, ""), MAX_CONNECTIONS)
        self._join(entry, (_HANDSHAKES, ""), MAX_HANDSHAKES)
        self._join(entry, (_HANDSHAKES, key), MAX_HANDSHAKES_ADDRESS)
        return entry

    def settle(self, entry: Entry, holder: str | None) -> None:
        """Notes that the handshake has ended.

        Args:
            entry: the connection.
            holder: fingerprint of the client certificate; None without one.
        """
        if entry.ended:
            entry.close()  # it has lost its place while its handshake ended
            return
        self._quit(entry, (_HANDSHAKES, ""))
        self._quit(entry, (_HANDSHAKES, entry.address))
        if holder is None:
            self._join(entry, (_ANONYMOUS, ""), MAX_ANONYMOUS)
            self._join(entry, (_ANONYMOUS, entry.address), MAX_ANONYMOUS_ADDRESS)
        else:
            self._join(entry, (_AGENT, holder), MAX_AGENT_CONNECTIONS)

    def leave(self, entry: Entry) -> None:
        """Forgets a connection that has ended."""
        for group in tuple(entry.groups):
            self._quit(entry, group)

    def count(self, kind: str = _ALL, key: str = "") -> int:
        """The connections of a group: `handshakes`, `anonymous`, `agent` or `all`, and an address or agent."""
        return len(self._members.get((kind, key), ()))

    def _room(self) -> bool:
        """Makes room for one more, if need be at the cost of a connection without an agent."""
        if self.count() < MAX_CONNECTIONS:
            return True
        for kind in (_ANONYMOUS, _HANDSHAKES):
            if oldest := next(iter(self._members.get((kind, ""), ())), None):
                self._end(oldest)
                return True
        return False

    def _join(self, entry: Entry, group: _Group, limit: int) -> None:
        members = self._members.setdefault(group, {})
        members[entry] = None
        entry.groups.add(group)
        if len(members) > limit:
            self._end(next(iter(members)))

    def _quit(self, entry: Entry, group: _Group) -> None:
        entry.groups.discard(group)
        members = self._members.get(group, {})
        members.pop(entry, None)
        if not members:
            self._members.pop(group, None)

    def _end(self, entry: Entry) -> None:
        self.leave(entry)
        entry.ended = True
        entry.close()
