"""Writes the whole registry to one file, and fills an empty registry from it. The same form for SQLite and PostgreSQL.

A gzip file of JSON lines:

    {"format": "license-server-backup", "version": 1, "revision": …, "made_at": …, "origin": …}
    [TABLE, {COLUMN: VALUE, …}]                    one line for each row; bytes are {"b64": …}
    {"rows": {TABLE: NUMBER, …}, "sha256": …, "mac": …}

`sha256` is over all lines before the last, and finds what a disk or a transfer has damaged. `mac` is an HMAC of it under a key
that is derived from the data key, and finds what somebody has changed. Secrets and private keys are sealed in the rows, and the
data key is wrapped by the master key, which is not in the file.
"""

import base64
import gzip
import hashlib
import hmac
import json
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from sqlalchemy import MetaData, insert, select
from sqlalchemy.orm import Session

from common.files import fsync_directory, place, temporary_of
from server.base.errors import RegistryError
from server.registry.database import Database
from server.registry.dialect import go_on_behind, highest_given
from server.registry.models.core import REVISION, Setting
from server.registry.models.tables import Base

FORMAT, VERSION = "license-server-backup", 1
MAX_LINE_BYTES = 64 * 1024 * 1024
_BATCH = 500


@dataclass(frozen=True, slots=True)
class Summary:
    """What a backup is.

    Attributes:
        revision: of the schema.
        made_at: seconds since 1970 UTC.
        origin: `sqlite` or `postgresql`.
        rows: their number, by table.
        data_key: the wrapped data key, as the registry stores it.
        digest: SHA-256 over the content, hex.
    """

    revision: str
    made_at: int
    origin: str
    rows: dict[str, int]
    data_key: str
    digest: str


@dataclass(slots=True)
class _Written:
    digest: Any = field(default_factory=hashlib.sha256)
    rows: dict[str, int] = field(default_factory=dict)


def write_backup(database: Database, path: Path, mac_key: bytes, now: int) -> dict[str, int]:
    """Writes a backup to a new file of mode 0600, durably, while the server may run. Returns the number of rows by table.

    All rows are of one moment: one transaction reads them.

    Args:
        database: ready.
        path: of the new file.
        mac_key: `Cipher.backup_key`.
        now: seconds since 1970 UTC.

    Raises:
        RegistryError: the file exists, or cannot be written.
    """
    if os.path.lexists(path):
        raise RegistryError(f"{path} already exists and is not overwritten")
    temporary = temporary_of(path)
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as raw:
            # No name and no time in gzip's own header: the same registry gives the same bytes.
            with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file:
                written = _write(database, file, mac_key, now)
            raw.flush()
            os.fsync(raw.fileno())
        place(temporary, path)
        fsync_directory(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RegistryError(f"the backup {path} cannot be written: {error.strerror}; nothing is left of it") from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return written.rows


def _write(database: Database, file: gzip.GzipFile, mac_key: bytes, now: int) -> _Written:
    done = _Written()

    def line(content: object) -> None:
        data = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
        done.digest.update(data)
        file.write(data)

    origin = database.url.get_backend_name()
    line({"format": FORMAT, "version": VERSION, "revision": REVISION, "made_at": now, "origin": origin})
    with database.snapshot() as session:
        for table in Base.metadata.sorted_tables:
            count = 0
            rows = session.execute(select(table).order_by(*table.primary_key.columns).execution_options(yield_per=_BATCH))
            for row in rows.mappings():
                line([table.name, {name: _encoded(value) for name, value in row.items()}])
                count += 1
            done.rows[table.name] = count
    digest = done.digest.hexdigest()
    last = {"rows": done.rows, "sha256": digest, "mac": _mac(mac_key, digest)}
    file.write(json.dumps(last, separators=(",", ":")).encode() + b"\n")
    return done


def _mac(key: bytes, digest: str) -> str:
    return hmac.digest(key, digest.encode(), "sha256").hex()


def _encoded(value: object) -> object:
    return {"b64": base64.b64encode(value).decode("ascii")} if isinstance(value, bytes) else value


def _decoded(value: Any) -> Any:
    return base64.b64decode(value["b64"], validate=True) if isinstance(value, dict) else value


class _Reader:
    """Reads a backup line by line, and checks its form and digest."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.head: dict[str, Any] = {}
        self.last: dict[str, Any] = {}
        self.digest = hashlib.sha256()
        self.counts: dict[str, int] = {}

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The rows. Raises RegistryError where the file is not what `write_backup` has written."""
        try:
            with self._path.open("rb") as raw, gzip.GzipFile(fileobj=raw) as file:
                yield from self._rows(cast("BinaryIO", file))
        except OSError as error:
            said = error.strerror or "it is not a gzip file"
            raise RegistryError(f"the backup {self._path} cannot be read: {said}") from None
        except (EOFError, zlib.error, ValueError, AttributeError, KeyError, TypeError, IndexError, RecursionError):
            raise self._damaged() from None

    def _rows(self, file: BinaryIO) -> Iterator[tuple[str, dict[str, Any]]]:
        head = file.readline(MAX_LINE_BYTES)
        self.digest.update(head)
        self.head = json.loads(head)
        if self.head.get("format") != FORMAT:
            raise RegistryError(f"{self._path} is not a backup of a license server")
        if self.head.get("version") != VERSION:
            raise RegistryError(
                f"the backup {self._path} has form {self.head.get('version')}, this program reads {VERSION}; "
                "restore it with the release that made it, or a newer one"
            )
        while line := file.readline(MAX_LINE_BYTES):
            content = json.loads(line)
            if isinstance(content, dict):
                self.last = content
                if file.read(1):
                    raise self._damaged()
                break
            self.digest.update(line)
            name, row = content
            self.counts[name] = self.counts.get(name, 0) + 1
            yield name, {column: _decoded(value) for column, value in row.items()}
        if not hmac.compare_digest(str(self.last.get("sha256")), self.digest.hexdigest()):
            raise self._damaged()
        if {name: count for name, count in self.last["rows"].items() if count} != self.counts:
            raise self._damaged()

    def _damaged(self) -> RegistryError:
        return RegistryError(f"the backup {self._path} is damaged or was cut: use another copy; nothing was changed")


def examine(path: Path) -> Summary:
    """Reads a whole backup and checks its form and digest, not yet its MAC.

    Raises:
        RegistryError: it cannot be read, is damaged, or a newer release made it.
    """
    # Alembic takes a fifth of a second to import; backups are made without it.
    from server.registry.migrating import known_revisions

    reader, data_key = _Reader(path), None
    for name, row in reader.rows():
        if name == Setting.__tablename__ and row.get("name") == "data_key":
            data_key = row.get("value")
    revision = reader.head.get("revision")
    if revision not in known_revisions():
        raise RegistryError(
            f"the backup {path} has revision {revision}, which this program does not know; restore it with the newer release "
            "that made it"
        )
    if not isinstance(data_key, str):
        raise RegistryError(f"the backup {path} has no data key; it is not the backup of a whole registry")
    head = reader.head
    return Summary(
        revision, int(head["made_at"]), str(head["origin"]), reader.last["rows"], data_key, reader.digest.hexdigest()
    )


def check_mac(path: Path, mac_key: bytes) -> None:
    """Raises RegistryError if another registry made the backup, or somebody has changed it."""
    reader = _Reader(path)
    for _row in reader.rows():
        pass
    if not hmac.compare_digest(str(reader.last.get("mac")), _mac(mac_key, reader.digest.hexdigest())):
        raise RegistryError(f"the backup {path} was changed after it was made: do not use it")


def fill(database: Database, path: Path, summary: Summary, also: Callable[[Session], None]) -> None:
    """Fills a registry, migrated to the backup's revision and empty, in one transaction.

    Args:
        database: without a single row.
        path: the backup, which `examine` and `check_mac` have checked.
        summary: of it.
        also: called before the commit, in the same transaction.

    Raises:
        RegistryError: the file has changed since it was checked.
    """
    reader = _Reader(path)
    with database.write() as session:
        metadata = MetaData()
        metadata.reflect(session.connection())
        batch: list[dict[str, Any]] = []
        present = ""

        def flush() -> None:
            if batch:
                session.execute(insert(metadata.tables[present]), batch)
                batch.clear()

        for name, row in reader.rows():
            if name != present or len(batch) >= _BATCH:
                flush()
                present = name
            batch.append(row)
        flush()
        if reader.digest.hexdigest() != summary.digest:
            raise RegistryError(f"the backup {path} changed while it was read; nothing was restored")
        for table in Base.metadata.sorted_tables:
            go_on_behind(session, table, highest_given(session, table))
        also(session)
