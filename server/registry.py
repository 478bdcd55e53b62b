"""What the server remembers: its keys, agents, secret versions and licenses, in one SQLite file of mode 0600."""

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE agent (
    id TEXT PRIMARY KEY, agreement_key TEXT NOT NULL, backend TEXT NOT NULL, enrolled_at INTEGER NOT NULL
) STRICT;
CREATE TABLE secret (
    agent_id TEXT NOT NULL REFERENCES agent (id), version INTEGER NOT NULL, secret BLOB NOT NULL,
    valid_from INTEGER NOT NULL, valid_until INTEGER NOT NULL, grace_until INTEGER NOT NULL,
    PRIMARY KEY (agent_id, version)
) STRICT;
CREATE TABLE license (
    jti TEXT PRIMARY KEY, agent_id TEXT NOT NULL REFERENCES agent (id), claims TEXT NOT NULL, secret_version INTEGER NOT NULL
) STRICT;
"""


class RegistryError(Exception):
    """The registry cannot do what was asked; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class SecretRow:
    """One secret version of an agent. Times are seconds since 1970 UTC."""

    version: int
    secret: bytes
    valid_from: int
    valid_until: int
    grace_until: int

    def __repr__(self) -> str:
        return f"<secret version {self.version}>"


class Registry:
    """The server's file.

    Args:
        directory: holds `server.db`.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / "server.db"
        if not path.exists():
            raise RegistryError(f"{path} does not exist: run 'license-server init --dir {directory}' first")
        self._db = _open(path)
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if found != SCHEMA_VERSION:
            raise RegistryError(f"{path} has schema version {found}, this program needs {SCHEMA_VERSION}")

    @staticmethod
    def create(directory: Path, settings: dict[str, str]) -> None:
        """Makes a new registry.

        Raises:
            RegistryError: there is one already.
        """
        path = directory / "server.db"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            raise RegistryError(f"{path} exists already; it is not overwritten") from None
        db = _open(path)
        with db:
            db.executescript(_SCHEMA)
            db.executemany("INSERT INTO setting VALUES (?, ?)", settings.items())
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.close()

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def setting(self, name: str) -> str:
        """A setting made at creation."""
        (value,) = self._db.execute("SELECT value FROM setting WHERE name = ?", (name,)).fetchone()
        return str(value)

    def add_agent(self, agent_id: str, agreement_key: dict[str, str], backend: str, now: int) -> bool:
        """Enrolls an agent, or gives a known one the key of its new enrolment. Returns whether it was new."""
        known = self._db.execute("SELECT 1 FROM agent WHERE id = ?", (agent_id,)).fetchone()
        with self._db:
            self._db.execute(
                "INSERT INTO agent VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
                "agreement_key = excluded.agreement_key, backend = excluded.backend, enrolled_at = excluded.enrolled_at",
                (agent_id, json.dumps(agreement_key), backend, now),
            )
        return known is None

    def agents(self) -> list[tuple[str, str, int]]:
        """Id, backend and time of enrolment of each agent."""
        return self._db.execute("SELECT id, backend, enrolled_at FROM agent ORDER BY id").fetchall()

    def agreement_key(self, agent_id: str) -> dict[str, str]:
        """The agent's public key.

        Raises:
            RegistryError: no such agent.
        """
        row = self._db.execute("SELECT agreement_key FROM agent WHERE id = ?", (agent_id,)).fetchone()
        if row is None:
            raise RegistryError(f"no agent {agent_id!r} is enrolled; 'license-server agents' lists them")
        key: dict[str, str] = json.loads(row[0])
        return key

    def secrets(self, agent_id: str) -> list[SecretRow]:
        """The agent's secret versions, oldest first."""
        self.agreement_key(agent_id)
        rows = self._db.execute(
            "SELECT version, secret, valid_from, valid_until, grace_until FROM secret WHERE agent_id = ? ORDER BY version",
            (agent_id,),
        )
        return [SecretRow(*row) for row in rows]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, with the write lock taken at once."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def add_secret(self, agent_id: str, row: SecretRow) -> None:
        """Records a secret version; within a transaction."""
        self._db.execute(
            "INSERT INTO secret VALUES (?, ?, ?, ?, ?, ?)",
            (agent_id, row.version, row.secret, row.valid_from, row.valid_until, row.grace_until),
        )

    def put_license(self, jti: str, agent_id: str, claims: dict[str, Any], version: int) -> None:
        """Records a license, or its newest token's claims."""
        with self._db:
            self._db.execute(
                "INSERT INTO license VALUES (?, ?, ?, ?) ON CONFLICT (jti) DO UPDATE SET "
                "claims = excluded.claims, secret_version = excluded.secret_version",
                (jti, agent_id, json.dumps(claims), version),
            )

    def owner_of(self, jti: str) -> str | None:
        """The agent that a license belongs to; None if there is no such license."""
        row = self._db.execute("SELECT agent_id FROM license WHERE jti = ?", (jti,)).fetchone()
        return None if row is None else str(row[0])

    def licenses(self, agent_id: str) -> list[dict[str, Any]]:
        """Claims of the newest token of each license of an agent."""
        rows = self._db.execute("SELECT claims FROM license WHERE agent_id = ? ORDER BY jti", (agent_id,))
        return [json.loads(row[0]) for row in rows]


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=10, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
    return db
