"""Another master key for the registry, in steps that each leave a server that opens.

1. `add`      the new key exists, and the registry's data key is wrapped by both
2. `switch`   the server's settings, or the file itself, have the new one
3. `finish`   the registry forgets what the old one has wrapped

A crash after the first step leaves the old key in use, after the second the new one; the next rotation, or `finish` alone,
tidies up. Who rotates holds a lock on the server's directory, so that no two rotations overwrite each other's keys.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from common.files import write_atomic
from server.base.errors import RegistryError
from server.base.settings import SETTINGS, Place, settings_of
from server.registry import audit
from server.registry.database import Database

from . import datakey, masterkey, pkcs11key
from .datakey import Wrap
from .masterkey import MasterKey, SoftMasterKey


@dataclass(frozen=True, slots=True)
class Shown:
    """The master key, for people. Times are seconds since 1970 UTC.

    Attributes:
        kind: where it is.
        made_at: when it came into use.
        others: kinds of further master keys that still open the registry.
    """

    kind: str
    made_at: int
    others: tuple[str, ...]


class Rotation:
    """One rotation of the master key, step by step.

    Args:
        place: of the server.
        database: its registry, ready.
        to: where the new key is to be; None puts it in the place of the old one.

    Raises:
        RegistryError: there is no such rotation.
    """

    def __init__(self, place: Place, database: Database, to: str | None = None) -> None:
        self._place = place
        self._database = database
        self._to = None if to is None else masterkey.place_of(to)
        self._bytes: bytes | None = None
        if self._to is None and pkcs11key.is_uri(place.master):
            raise RegistryError(
                "a key in a token is not replaced in its place: name another one with --to 'pkcs11:…;object=NEW…'"
            )
        if self._to is not None and masterkey.exists(self._to):
            raise RegistryError(f"there is a key at {self._to} already; name another place with --to")

    def add(self, now: int) -> None:
        """Makes the new key; either key opens the registry from now on."""
        old = masterkey.in_use(self._place.master)
        with self._database.read() as session:
            # Before a key is made: whoever has not the old key gets nothing done.
            datakey.opened(session, old)
        if self._to is None:
            self._bytes = masterkey.fresh()
            new: MasterKey = SoftMasterKey(self._bytes, f"file {self._place.master}")
        else:
            masterkey.make(self._to)
            new = masterkey.of(self._to)
        with self._database.write() as session:
            datakey.add(session, old, new, now)
            audit.record(session, "admin", "master_key.added", "ok", now, kind=new.kind)

    def switch(self) -> None:
        """Puts the new key in use."""
        if self._to is not None:
            self._place = replace(self._place, master=self._to)
            write_atomic(self._place.directory / SETTINGS, settings_of(self._place))
        elif self._bytes is not None:
            write_atomic(Path(self._place.master), self._bytes)

    def finish(self, now: int) -> None:
        """Forgets what the old key has wrapped, once the new one has opened the registry from where it is kept (OP-05)."""
        finish(self._place, self._database, now)


def finish(place: Place, database: Database, now: int) -> int:
    """Has the master key in use be the only one that opens the registry; returns how many others it forgot.

    Raises:
        RegistryError: it does not open the registry itself.
    """
    master = masterkey.in_use(place.master)
    with database.write() as session:
        forgotten = datakey.keep_only(session, master)
        if forgotten:
            audit.record(session, "admin", "master_key.finished", "ok", now, kind=master.kind, forgotten=forgotten)
    return forgotten


def rotate(place: Place, database: Database, now: Callable[[], int], to: str | None, *, keep_old: bool) -> None:
    """A new master key.

    Args:
        place: of the server.
        database: its registry, ready.
        now: the time.
        to: where the new key is to be; None puts it in the place of the old one.
        keep_old: leaves the old one good until `finish`: for other machines, or a systemd credential, that have it still.

    Raises:
        RegistryError: it cannot be done; the key in use stays good.
    """
    if masterkey.from_credential() is not None and (to is None or not keep_old):
        raise RegistryError(
            "the master key is a systemd credential, which is not replaced from here: name a new file with --to, "
            "give --keep-old, have systemd pass that file, and then run 'license-server master-key finish'"
        )
    with locked(place.directory):
        rotation = Rotation(place, database, to)
        rotation.add(now())
        rotation.switch()
        if not keep_old:
            rotation.finish(now())


def shown(place: Place, database: Database) -> Shown:
    """The master key in use.

    Raises:
        RegistryError: it does not open the registry.
    """
    master = masterkey.in_use(place.master)
    with database.read() as session:
        datakey.opened(session, master)
        there = datakey.wraps(session)
    mine = [wrap for wrap in there if _opens(wrap, master)]
    others = tuple(wrap.kind for wrap in there if wrap not in mine)
    return Shown(master.kind, mine[0].made_at, others)


def _opens(wrap: Wrap, master: MasterKey) -> bool:
    return datakey.unwrapped(wrap, master) is not None


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the server's lock; RegistryError if somebody else does."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RegistryError("another rotation of the master key is under way on this machine") from None
        yield
    finally:
        os.close(descriptor)
