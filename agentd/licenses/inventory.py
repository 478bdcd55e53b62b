"""Remembers which licenses this machine uses and the newest token of each. Only `load` and `save` perform IO.

A token whose secret was destroyed cannot be opened any more; the inventory still knows by its digest which license it was. It
is not trusted: a token that comes from it is validated again.
"""

import asyncio
import hashlib
import logging
from pathlib import Path

import msgspec

from common.files import write_atomic

from .seats import SeatPage, Seats

log = logging.getLogger(__name__)

MAX_LICENSES = 1024
MAX_TOKENS = 4096
KEPT_S = 90 * 86_400


class _Newest(msgspec.Struct):
    iat: int
    token: str
    version: int
    # The server says that the license belongs to this machine, and until when. Release 0.1.0 knows neither, and drops them.
    held: bool = False
    expires: int = 0


class _Seen(msgspec.Struct):
    jti: str
    day: int


class _Page(msgspec.Struct):
    newest: dict[str, _Newest] = {}
    seen: dict[str, _Seen] = {}
    synced: int = 0
    seats: SeatPage | None = None


def token_digest(token: str) -> str:
    """SHA-256 of a token, hex: how the inventory names it."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


class LicenseInventory:
    """The licenses of this machine.

    Args:
        path: its file; None for one that is never saved.

    Attributes:
        dirty: something has changed since it was last saved.
        changes: grows when another token of a license is kept, or none any more.
        seats: the seats of this machine, which are kept in the same file.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._page = _Page({}, {})
        self._saving = asyncio.Lock()
        self.dirty = False
        self.changes = 0
        self.seats = Seats()

    def load(self) -> bool:
        """Reads the file; False if it exists and cannot be read (the inventory starts empty then)."""
        if self._path is None:
            return True
        try:
            self._page = msgspec.json.decode(self._path.read_bytes(), type=_Page)
            self.seats.load(self._page.seats or SeatPage())
            self.changes += 1
        except FileNotFoundError:
            return True
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return False
        return True

    async def save(self) -> None:
        """Writes the file if anything has changed.

        Raises:
            OSError: the disk does not take it; the next call tries again.
        """
        async with self._saving:
            if not (self.dirty or self.seats.dirty) or self._path is None:
                return
            self.dirty = self.seats.dirty = False
            self._page.seats = self.seats.page if self.seats.page != SeatPage() else None
            data = msgspec.json.encode(self._page)
            try:
                await asyncio.to_thread(write_atomic, self._path, data)
            except OSError as error:
                self.dirty = True
                log.error("%s cannot be written: %s", self._path, error.strerror)
                raise OSError(error.errno, error.strerror, str(self._path)) from None

    def saw(self, token: str, jti: str, now: int) -> None:
        """Notes that a token of a license was validated."""
        digest, day = token_digest(token), now // 86_400
        known = self._page.seen.get(digest)
        if known is None or known.day != day:
            # The one that was seen longest ago comes first.
            self._page.seen.pop(digest, None)
            if len(self._page.seen) >= MAX_TOKENS:
                del self._page.seen[next(iter(self._page.seen))]
            self._page.seen[digest] = _Seen(jti, day)
            self.dirty = True

    def still_used(self, token: str, now: int) -> None:
        """Notes that a token that was validated before is still asked about."""
        jti = self.license_of(token)
        if jti is not None:
            self.saw(token, jti, now)

    def license_of(self, token: str) -> str | None:
        """The license of a token that was validated before."""
        known = self._page.seen.get(token_digest(token))
        return None if known is None else known.jti

    def keep(self, jti: str, iat: int, token: str, version: int) -> bool:
        """Keeps a re-issued token; False if it is not newer than the one that is kept."""
        known = self._page.newest.get(jti)
        if known is not None and (known.iat, known.version) >= (iat, version):
            return False
        if known is None and not self._make_room(0):
            return False
        held, expires = (False, 0) if known is None else (known.held, known.expires)
        self._page.newest[jti] = _Newest(iat, token, version, held, expires)
        self._changed()
        return True

    # What the server has said, without anybody having carried a token

    @property
    def synced(self) -> int:
        """Up to which change of its licenses this file has what the server said; 0 before the first."""
        return self._page.synced

    @synced.setter
    def synced(self, number: int) -> None:
        if number != self._page.synced:
            self._page.synced = number
            self.dirty = True

    def hold(self, jti: str, iat: int, token: str, version: int, expires: int, now: int) -> bool:
        """Keeps a license that the server says belongs to this machine; False if there is no room for it.

        Args:
            jti: the license.
            iat: of the token.
            token: a token of the license.
            version: the secret version that the token was made with.
            expires: when the license ends, seconds since 1970 UTC.
            now: likewise.
        """
        known = self._page.newest.get(jti)
        if known is None and not self._make_room(now):
            return False
        if known is not None and (known.iat, known.version) >= (iat, version):
            iat, token, version = known.iat, known.token, known.version
        self._page.newest[jti] = _Newest(iat, token, version, True, expires)
        self._changed()
        return True

    def release(self, jti: str) -> None:
        """Forgets a license that belongs to this machine no longer."""
        if self._page.newest.pop(jti, None) is not None:
            self._changed()

    def held(self) -> list[str]:
        """The licenses that the server says belong to this machine, in order of their ids."""
        return sorted(jti for jti, newest in self._page.newest.items() if newest.held)

    def noted_seats(self) -> None:
        """Notes that the machine has other seats."""
        self._changed()

    def _make_room(self, now: int) -> bool:
        """Makes room for another license: first a held one that has ended goes, then one that the server did not name."""
        if len(self._page.newest) < MAX_LICENSES:
            return True
        ended = (jti for jti, newest in self._page.newest.items() if newest.held and newest.expires <= now)
        others = (jti for jti, newest in self._page.newest.items() if not newest.held)
        for jti in (*ended, *others)[:1]:
            del self._page.newest[jti]
            return True
        return False

    def _changed(self) -> None:
        self.dirty = True
        self.changes += 1

    def newer(self, jti: str, iat: int, version: int) -> bool:
        """Whether there is a token of this license that is newer than one with this `iat` and secret version."""
        known = self._page.newest.get(jti)
        return known is not None and (known.iat, known.version) > (iat, version)

    def newest(self, jti: str) -> str | None:
        """The newest token of a license."""
        known = self._page.newest.get(jti)
        return None if known is None else known.token

    def tokens(self) -> list[tuple[str, str]]:
        """Each license of which a token is kept, with the newest one."""
        return [(jti, newest.token) for jti, newest in self._page.newest.items()]

    def licenses(self) -> list[str]:
        """The licenses of this machine by id: those of which a token was validated, and those that it holds."""
        return sorted({*(seen.jti for seen in self._page.seen.values()), *self.held()})

    def forget_old(self, now: int) -> None:
        """Drops tokens that nobody has validated for 90 days."""
        before = (now - KEPT_S) // 86_400
        old = [digest for digest, seen in self._page.seen.items() if seen.day < before]
        for digest in old:
            del self._page.seen[digest]
            self.dirty = True
