"""Which licenses this machine uses, and the newest token of each. Nothing here performs IO but `load`.

A token whose secret has been destroyed cannot be opened any more; the book still knows which license it was, by its digest.
Nothing in it is trusted: a token that is handed out is judged anew by whoever receives it.
"""

import hashlib
from pathlib import Path

import msgspec

MAX_LICENSES = 1024
MAX_TOKENS = 4096
KEPT_S = 90 * 86_400


class _Newest(msgspec.Struct):
    iat: int
    token: str
    version: int


class _Seen(msgspec.Struct):
    jti: str
    day: int


class _Page(msgspec.Struct):
    newest: dict[str, _Newest] = {}
    seen: dict[str, _Seen] = {}


def token_digest(token: str) -> str:
    """SHA-256 of a token, hex: how the book names it."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


class LicenseBook:
    """The licenses of this machine.

    Attributes:
        dirty: something has changed since the last `take_unsaved`.
    """

    def __init__(self) -> None:
        self._page = _Page({}, {})
        self.dirty = False

    def load(self, path: Path) -> bool:
        """Reads the book; False if there was one and it could not be read (it starts empty then)."""
        try:
            self._page = msgspec.json.decode(path.read_bytes(), type=_Page)
        except FileNotFoundError:
            return True
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return False
        return True

    def take_unsaved(self) -> bytes | None:
        """The bytes to write to the book's file, or None if nothing has changed since the last call."""
        if not self.dirty:
            return None
        self.dirty = False
        return msgspec.json.encode(self._page)

    def saw(self, token: str, jti: str, now: int) -> None:
        """A token of a license has been validated."""
        digest, day = token_digest(token), now // 86_400
        known = self._page.seen.get(digest)
        if known is None or known.day != day:
            # The one that was seen longest ago stands first.
            self._page.seen.pop(digest, None)
            if len(self._page.seen) >= MAX_TOKENS:
                del self._page.seen[next(iter(self._page.seen))]
            self._page.seen[digest] = _Seen(jti, day)
            self.dirty = True

    def license_of(self, token: str) -> str | None:
        """The license of a token that was validated before."""
        known = self._page.seen.get(token_digest(token))
        return None if known is None else known.jti

    def keep(self, jti: str, iat: int, token: str, version: int) -> bool:
        """Takes over a re-issued token; False if it is not newer than the one that is there."""
        known = self._page.newest.get(jti)
        if known is not None and (known.iat, known.version) >= (iat, version):
            return False
        if known is None and len(self._page.newest) >= MAX_LICENSES:
            del self._page.newest[next(iter(self._page.newest))]
        self._page.newest[jti] = _Newest(iat, token, version)
        self.dirty = True
        return True

    def newer(self, jti: str, iat: int, version: int) -> bool:
        """Whether there is a token of this license that is newer than one with this `iat` and secret version."""
        known = self._page.newest.get(jti)
        return known is not None and (known.iat, known.version) > (iat, version)

    def newest(self, jti: str) -> str | None:
        """The newest token of a license."""
        known = self._page.newest.get(jti)
        return None if known is None else known.token

    def licenses(self) -> list[str]:
        """The licenses that this machine uses: those of which a token was validated, in order of their ids."""
        return sorted({seen.jti for seen in self._page.seen.values()})

    def forget_old(self, now: int) -> None:
        """Drops tokens that nobody has validated for 90 days."""
        before = (now - KEPT_S) // 86_400
        old = [digest for digest, seen in self._page.seen.items() if seen.day < before]
        for digest in old:
            del self._page.seen[digest]
            self.dirty = True
