"""Moves a server's registry to another, empty database: all of it, or nothing.

1. one transaction of the target makes the tables, copies all rows, and verifies counts, digests, the audit chain and the keys
2. settings.toml gets the new database
3. the old registry is closed: nothing opens it any more, until `reopen`

Meanwhile nobody else can use the old registry. Before step 2 the old one is in use, whole and unchanged; the target is empty
again, or has an unused copy, which the next run removes. After step 2 the new one is in use. A copy is unused until it is
opened.
"""

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import inspect, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from common.files import fsync_directory, write_atomic

from .base.errors import RegistryError
from .base.settings import CREDENTIAL_URL, SETTINGS, Place, credential_url, place_of, settings_of
from .keys import datakey, key_rows, masterkey
from .keys.keyring import Keyring
from .keys.masterkey_rotation import locked
from .registry import audit
from .registry.cipher import Cipher
from .registry.database import MOVED, UNUSED, Database, begin_use, brief, unused
from .registry.migrating import upgrade_within
from .registry.models.core import REVISION, ServerKey, Setting
from .registry.models.tables import Base
from .registry.upkeep import copying
from .registry.upkeep.copying import Content
from .registry.upkeep.sole import sole_access


@dataclass(frozen=True, slots=True)
class Progress:
    """What the move reports its progress to: what is done and how many rows it has, and the number of rows of each batch."""

    begin: Callable[[str, int], None]
    step: Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Moved:
    """What was moved.

    Attributes:
        old: where the registry was; its name has no password.
        old_url: its URL, if it has no password.
        new: where it is.
        tables: what was copied, by table; empty if an earlier run had done it.
        by_credential: whether a systemd credential names the old database, which has precedence over settings.toml.
    """

    old: str
    old_url: str | None
    new: str
    tables: dict[str, Content]
    by_credential: bool


def move_server(directory: Path, to: str | None, now: int, operator: dict[str, str], progress: Progress) -> Moved:
    """Moves the registry, while no other process uses it.

    Args:
        directory: of the server.
        to: URL of the new database; None for the one of the systemd credential.
        now: seconds since 1970 UTC.
        operator: who moves it, as in `Database`.
        progress: hears of each batch.

    Raises:
        RegistryError: it was not moved; the text says why, and what to do.
    """
    old_place, new_place = _places(directory, to)
    old, new = Database(old_place.url), Database(new_place.url)
    old.operator = new.operator = operator
    by_credential = to is not None and old_place.stored_url is not None
    try:
        with locked(directory):
            if old.url == new.url and (to is None or old_place.stored_url is None):
                # An earlier run was interrupted after step 2, or this one has nothing to do.
                new.ready()
                begin_use(new)
                return Moved(old.name, None, new.name, {}, by_credential)
            old.ready()
            if old.revision() != REVISION:
                raise RegistryError(f"{old.name} has tables that this program does not know: move it with the newer release")
            with old.read() as session:
                cipher = Cipher(datakey.opened(session, masterkey.in_use(old_place.master)))
            # settings.toml names it. Without this, a copy that an interrupted move has put to use would look unused.
            begin_use(old)
            made = _prepare(new, _identity(old))
            old.close()
            with sole_access(old) as source:
                try:
                    tables = _copy(source, old, new, cipher, now, progress)
                    _settle(new)
                    Keyring(new, cipher).check()
                    write_atomic(directory / SETTINGS, settings_of(new_place))
                except BaseException:
                    if _stored(directory) != (new_place.stored_url or new_place.url):
                        _remove(new, file=made)
                    raise
                # Step 2 is done. What closes the old registry commits at the end of this block.
                source.add(Setting(name=MOVED, value=new.name))
                audit.record(source, "admin", "registry.moved", "away", now, to=new.name)
            with suppress(SQLAlchemyError):  # or who opens it first notes that
                begin_use(new)
            old_url = None if old.has_password else old.url.render_as_string()
            return Moved(old.name, old_url, new.name, tables, by_credential)
    finally:
        old.close()
        new.close()


def reopen(directory: Path, now: int, operator: dict[str, str]) -> str:
    """Opens a registry again that was moved away, and that settings.toml names again. Returns where the other one is.

    Raises:
        RegistryError: it was not moved.
    """
    database = Database(place_of(directory).url)
    database.operator = operator
    try:
        database.check_schema()
        with database.write() as session:
            moved = session.get(Setting, MOVED, with_for_update=True)
            if moved is None:
                raise RegistryError(f"the registry in {database.name} was not moved away; it is open")
            session.delete(moved)
            audit.record(session, "admin", "registry.reopened", "ok", now, was_moved_to=moved.value)
            return moved.value
    finally:
        database.close()


def _places(directory: Path, to: str | None) -> tuple[Place, Place]:
    present = place_of(directory)
    if to is not None:
        return present, replace(present, url=_absolute(to), stored_url=None)
    passed = credential_url()
    if passed is None or present.stored_url is None:
        raise RegistryError(
            "name the new database with --to or --to-file, or pass it as the systemd credential license-server-database"
        )
    if present.stored_url == CREDENTIAL_URL:
        return present, present
    return replace(present, url=present.stored_url, stored_url=None), replace(present, url=passed, stored_url=CREDENTIAL_URL)


def _absolute(url: str) -> str:
    """The URL of SQLite with a whole path: the server runs in another directory than this command."""
    database = Database(url)
    path = _file(database)
    return url if path is None else database.url.set(database=str(path.absolute())).render_as_string()


def _stored(directory: Path) -> str:
    place = place_of(directory)
    return place.stored_url or place.url


def _identity(database: Database) -> str | None:
    """What a registry has in common with its copies, and with no other registry: its wrapped data key."""
    with database.read() as session:
        return session.scalar(select(Setting.value).where(Setting.name == "data_key"))


def _prepare(new: Database, identity: str | None) -> bool:
    """Checks that the target is empty, and removes an unused copy from it. Returns whether SQLite's file is made here.

    Args:
        identity: of the registry whose copy may be removed: another one's may be in use by its own settings.toml.

    Raises:
        RegistryError: it is not empty, or does not answer.
    """
    path = _file(new)
    if path is not None and not path.parent.is_dir():
        raise RegistryError(f"{path} cannot be created: there is no directory {path.parent}")
    try:
        if new.is_empty():
            if path is not None or new.revision() is None:
                return path is not None and (not path.exists() or path.stat().st_size == 0)
        elif new.revision() == REVISION and unused(new) and _identity(new) == identity:
            _remove(new, file=False)
            return path is not None
    except SQLAlchemyError as error:
        raise RegistryError(f"the new database does not answer: {brief(error)}") from None
    raise RegistryError(f"{new.name} has a registry already, which is not overwritten: name an empty database")


def _copy(source: Session, old: Database, new: Database, cipher: Cipher, now: int, progress: Progress) -> dict[str, Content]:
    """Step 1. The transaction commits only what is verified."""
    new.make_file()
    rows = copying.count(source)
    with new.write() as target:
        upgrade_within(target.connection())
        progress.begin("copying", rows)
        copied = copying.copy(source, target, progress.step)
        progress.begin("verifying", rows)
        there = copying.content(target, progress.step)
        different = [name for name, content in copied.items() if there[name] != content]
        if different:
            raise RegistryError(f"{new.name} gives back other rows than it got ({', '.join(different)}); nothing was moved")
        held, problem = audit.verify(target, cipher.audit_key())
        if problem is not None:
            raise RegistryError(
                f"the audit log of {old.name} does not verify: {held} records hold, then: {problem}. Nothing was moved; "
                "find out who changed it. 'license-server backup' and 'restore' copy a registry as it is"
            )
        for key in target.scalars(select(ServerKey).where(ServerKey.sealed.is_not(None))):
            key_rows.private_jwk(cipher, key)
        agents, licenses = copied["agent"].rows, copied["license"].rows
        audit.record(target, "admin", "registry.moved", "ok", now, was=old.name, agents=agents, licenses=licenses)
        target.add(Setting(name=UNUSED, value=old.name))
    path = _file(new)
    if path is not None:
        fsync_directory(path.parent)
    return copied


def _settle(new: Database) -> None:
    """Shows that the new database has room for what comes next, before it is put to use.

    SQLite has written the copy to its log; the log goes into the file, which needs the same room once more.
    """
    try:
        if new.is_sqlite:
            with new.driver(writing=False) as lent:
                assert lent.dbapi_connection is not None
                busy = lent.dbapi_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            if busy:
                raise RegistryError(
                    f"another process has opened {new.name}: let it end, then run this again; nothing was moved"
                )
        with new.write() as session:
            session.execute(text("UPDATE setting SET value = value WHERE name = :name"), {"name": UNUSED})
    except (sqlite3.Error, SQLAlchemyError) as error:
        raise RegistryError(f"{new.name} takes no more data: {brief(error)}; nothing was moved") from None


def _file(database: Database) -> Path | None:
    return Path(database.url.database) if database.is_sqlite and database.url.database else None


def _remove(new: Database, *, file: bool) -> None:
    """Empties the target: it has a copy that nobody has used, or nothing.

    Args:
        file: also remove SQLite's file.
    """
    path = _file(new)
    if path is not None and file:
        new.close()
        for end in ("", "-wal", "-shm"):
            path.with_name(path.name + end).unlink(missing_ok=True)
        return
    # If this fails too, the copy stays unused, and the next run removes it.
    with suppress(SQLAlchemyError), new.write() as session:
        connection = session.connection()
        if inspect(connection).has_table(Setting.__tablename__):
            Base.metadata.drop_all(connection)
            connection.execute(text("DROP TABLE alembic_version"))
