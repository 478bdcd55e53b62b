"""Rotates the master key in three steps, each of which leaves a server that opens.

1. `add`      makes the new key, and wraps the registry's data key with both
2. `switch`   writes the new key's place to the settings, or replaces the file itself
3. `finish`   deletes what the old key has wrapped

After a crash behind the first step the old key is in use, behind the second the new one; the next rotation, or `finish` alone,
cleans up. Before a new key is made, the registry notes where it will be, so that the same command can be run again: it uses
a key that is there already only if the note names it. A rotation locks the server's directory, so that no two rotations
overwrite each other's keys.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import delete

from common.files import write_atomic
from server.base.errors import RegistryError
from server.base.settings import SETTINGS, Place, settings_of
from server.registry import audit
from server.registry.database import Database
from server.registry.models.core import Setting

from . import datakey, masterkey, pkcs11key
from .datakey import Wrap
from .masterkey import MasterKey, SoftMasterKey

PENDING = "master_key_pending"
"""The setting that holds the place of a key that a rotation makes."""


@dataclass(frozen=True, slots=True)
class Shown:
    """The master key, for people.

    Attributes:
        kind: where it is.
        made_at: when it came into use; seconds since 1970 UTC.
        others: other master keys that still open the registry.
    """

    kind: str
    made_at: int
    others: tuple[str, ...]


class Rotation:
    """One rotation of the master key, step by step.

    Args:
        place: the server's.
        database: its registry, ready.
        to: the new key's place; None replaces the old key in its place.

    Raises:
        RegistryError: a key in a token cannot be replaced in its place, or there is a key at `to` already.
    """

    def __init__(self, place: Place, database: Database, to: str | None = None) -> None:
        self._place = place
        self._database = database
        self._to = None if to is None else masterkey.place_of(to)
        self._bytes: bytes | None = None
        if self._to is None and pkcs11key.is_uri(place.master):
            raise RegistryError(
                "a key in a token cannot be replaced in its place; name another key with --to 'pkcs11:…;object=NEW…'"
            )
        with database.read() as session:
            noted = session.get(Setting, PENDING)
            self._again = self._to is not None and noted is not None and noted.value == self._to
        if self._to is not None and not self._again and masterkey.exists(self._to):
            raise RegistryError(f"there is already a key at {self._to}; name another place with --to")

    def add(self, now: int) -> None:
        """Makes the new key; either key opens the registry from now on."""
        if self._again and self._to == self._place.master:
            return  # an earlier run was interrupted after it had switched
        old = masterkey.in_use(self._place.master)
        with self._database.read() as session:
            # Before a new key is made: without the old one, nothing happens.
            datakey.opened(session, old)
        if self._to is None:
            self._bytes = masterkey.fresh()
            new: MasterKey = SoftMasterKey(self._bytes, f"file {self._place.master}")
        else:
            with self._database.write() as session:
                session.merge(Setting(name=PENDING, value=self._to))
            if not (self._again and masterkey.exists(self._to)):
                masterkey.make(self._to)
            new = masterkey.of(self._to)
        with self._database.write() as session:
            datakey.add(session, old, new, now)
            audit.record(session, "admin", "master_key.added", "ok", now, kind=new.kind)

    def switch(self) -> None:
        """Puts the new key to use."""
        if self._to is not None:
            self._place = replace(self._place, master=self._to)
            write_atomic(self._place.directory / SETTINGS, settings_of(self._place))
        elif self._bytes is not None:
            write_atomic(Path(self._place.master), self._bytes)

    def finish(self, now: int) -> None:
        """Deletes what the old key has wrapped, once the new key has opened the registry from its place (OP-05)."""
        finish(self._place, self._database, now)

    def settle(self) -> None:
        """Deletes the note: the command is done, and would be refused if it were run again."""
        with self._database.write() as session:
            session.execute(delete(Setting).where(Setting.name == PENDING))


def finish(place: Place, database: Database, now: int) -> int:
    """Makes the master key in use the only one that opens the registry; returns how many other wraps it deleted.

    Raises:
        RegistryError: the master key in use does not open the registry.
    """
    master = masterkey.in_use(place.master)
    with database.write() as session:
        forgotten = datakey.keep_only(session, master)
        if forgotten:
            audit.record(session, "admin", "master_key.finished", "ok", now, kind=master.kind, forgotten=forgotten)
    return forgotten


def rotate(place: Place, database: Database, now: Callable[[], int], to: str | None, *, keep_old: bool) -> None:
    """Rotates the master key.

    Args:
        place: the server's.
        database: its registry, ready.
        now: returns seconds since 1970 UTC.
        to: the new key's place; None replaces the old key in its place.
        keep_old: keeps the old key valid until `finish`, for other machines or a systemd credential that still have it.

    Raises:
        RegistryError: the rotation failed; the key in use stays valid.
    """
    if masterkey.from_credential() is not None and (to is None or not keep_old):
        raise RegistryError(
            "the master key is a systemd credential, which this command cannot replace: name a new file with --to, "
            "give --keep-old, make systemd pass that file, and then run 'license-server master-key finish'"
        )
    with locked(place.directory):
        rotation = Rotation(place, database, to)
        rotation.add(now())
        rotation.switch()
        if not keep_old:
            rotation.finish(now())
        rotation.settle()


def shown(place: Place, database: Database) -> Shown:
    """Describes the master key in use.

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
    """Locks the server's directory. Raises RegistryError if another command has locked it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RegistryError(
                "another command changes this server's settings on this machine: let it end, then run this again"
            ) from None
        yield
    finally:
        os.close(descriptor)
