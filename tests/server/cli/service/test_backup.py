"""`license-server backup` and `restore`: the drill, on both databases and from one to the other, and what is refused."""

import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import MetaData, select
from sqlalchemy import text as sql

from server.base.settings import SETTINGS
from server.registry.database import Database, sqlite_url
from server.registry.models.core import Base
from server.registry.upkeep import backup
from tests.server.devices import NOW, Device
from tests.support.faults import broken_at, each_step
from tests.support.postgres import Postgres
from tests.support.serverside import ServerSide, open_server
from tests.support.servertool import Done, license_server

pytestmark = pytest.mark.system


def run(directory: Path, *arguments: object, code: int = 0) -> Done:
    done = license_server(*map(str, arguments), env={"LICENSE_SERVER_DIR": str(directory)})
    assert done.returncode == code, done
    return done


@pytest.fixture
def used(directory: Path) -> Path:
    """A server with an agent, secrets, a license and an enrollment token."""
    server = open_server(directory)
    Device(1).come(server, now=NOW)
    server.secrets.rotate_by_hand("pos-000001", NOW)
    server.close()
    run(directory, "issue", "--agent", "pos-000001", "--expires", "+30d", "--license-id", "one")
    run(directory, "enrollment-token", "make")
    return directory


@pytest.fixture
def elsewhere(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[str], tuple[Path, list[str]]]]:
    """Gives the directory of a machine that has the master key only, and what to tell `restore` of its database."""
    opened = []

    def make(kind: str) -> tuple[Path, list[str]]:
        place = tmp_path / f"other-{kind}-{len(opened)}"
        place.mkdir(mode=0o700)
        shutil.copy2(tmp_path / "server" / "master.key", place / "master.key")
        if kind == "sqlite":
            opened.append(None)
            return place, []
        cluster: Postgres = request.getfixturevalue("postgres")
        database = cluster.database()
        opened.append(database)
        return place, ["--database", database.__enter__()]

    yield make
    for database in opened:
        if database is not None:
            database.__exit__(None, None, None)


def rows(server: ServerSide) -> dict[str, list[dict[str, object]]]:
    with server.database.read() as session:
        return {
            table.name: [dict(row) for row in session.execute(select(table).order_by(*table.primary_key.columns)).mappings()]
            for table in Base.metadata.sorted_tables
        }


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_drill(used: Path, tmp_path: Path, elsewhere: Callable[[str], tuple[Path, list[str]]], kind: str) -> None:
    """Back up while a server runs, lose the machine, restore on another one, and go on."""
    running = open_server(used)
    before = rows(running)
    file = tmp_path / "registry.backup"
    assert "1 agents, 1 licenses" in run(used, "backup", "--out", file).stderr
    running.enrollment_tokens.create(None, False, 3600, NOW)  # what comes later is not in it
    running.close()
    assert file.stat().st_mode & 0o777 == 0o600
    assert (used / "master.key").read_bytes() not in gzip.decompress(file.read_bytes())
    shutil.move(used, tmp_path / "lost")
    (tmp_path / "server").mkdir()
    shutil.copy2(tmp_path / "lost" / "master.key", tmp_path / "server" / "master.key")

    place, database = elsewhere(kind)
    assert "nothing was written" in run(place, "restore", "--check", *database, file).stderr
    assert sorted(path.name for path in place.iterdir()) == ["master.key"]
    said = run(place, "restore", *database, file).stderr
    assert "repeat 'agents revoke'" in said and "skips ahead" in said
    restored = open_server(place)
    after = rows(restored)
    last = after["audit"].pop()
    assert last["event"] == "registry.restored"
    counters = [{row["name"]: row["value"] for row in content.pop("counter")} for content in (before, after)]
    # Every agent asks for its revocation list once: the registry may have lost a revocation.
    assert counters[1]["revocations.base"] == counters[1]["revocations"] > counters[0]["revocations"]
    for numbers in counters:
        for name in ("audit", "license_changes.base", "revocations", "revocations.base"):
            del numbers[name]
    assert (after, counters[1]) == (before, counters[0])
    assert restored.audit.verify(restored.server.cipher.audit_key())[1] is None
    assert len(restored.enrollment_tokens.create(None, False, 3600, NOW)) >= 32  # numbers go on where they ended
    restored.close()
    assert "ok" not in run(place, "reissue", "--agent", "pos-000001").stderr
    assert (place / SETTINGS).stat().st_mode & 0o777 == 0o600
    assert "is not overwritten" in run(place, "restore", file, code=1).stderr


def test_what_is_refused(used: Path, tmp_path: Path, elsewhere: Callable[[str], tuple[Path, list[str]]]) -> None:
    file = tmp_path / "registry.backup"
    run(used, "backup", "--out", file)
    assert "is not overwritten" in run(used, "backup", "--out", file, code=1).stderr
    assert "cannot be written" in run(used, "backup", "--out", tmp_path / "none" / "x", code=1).stderr
    assert "is not overwritten" in run(used, "restore", file, code=1).stderr
    place, database = elsewhere("sqlite")
    whole = file.read_bytes()
    lines = gzip.decompress(whole).splitlines(keepends=True)

    def changed(text: list[bytes]) -> Path:
        made = tmp_path / "changed"
        made.write_bytes(gzip.compress(b"".join(text)))
        return made

    def head(**fields: object) -> list[bytes]:
        return [json.dumps({**json.loads(lines[0]), **fields}).encode() + b"\n", *lines[1:]]

    cut = tmp_path / "cut"
    for make, text in (
        (lines[:-1], "is damaged or was cut"),
        ([*lines[:5], *lines[6:]], "is damaged or was cut"),
        ([*lines, b"more\n"], "is damaged or was cut"),
        ([line.replace(b'"active"', b'"retired"') for line in lines], "is damaged or was cut"),
        (head(version=2), "restore it with the release that made it"),
        (head(format="x"), "is not a backup of a license server"),
        ([b"[]\n"], "is damaged or was cut"),
    ):
        assert text in run(place, "restore", *database, changed(make), code=1).stderr
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:size])
        assert "license-server: the backup" in run(place, "restore", *database, cut, code=1).stderr
    cut.write_bytes(b"SQLite format 3\0" * 100)
    assert "cannot be read" in run(place, "restore", *database, cut, code=1).stderr
    (place / "master.key").write_bytes(os.urandom(32))
    assert "is not the one of this registry" in run(place, "restore", *database, file, code=1).stderr
    assert sorted(path.name for path in place.iterdir()) == ["master.key"]


def forged(lines: list[bytes]) -> bytes:
    """The lines with a digest that fits, and the old MAC: what somebody without the data key can make."""
    digest = hashlib.sha256(b"".join(lines[:-1])).hexdigest()
    return gzip.compress(b"".join(lines[:-1]) + json.dumps({**json.loads(lines[-1]), "sha256": digest}).encode() + b"\n")


def test_a_backup_that_somebody_changed_is_refused(used: Path, tmp_path: Path) -> None:
    file = tmp_path / "registry.backup"
    run(used, "agents", "revoke", "pos-000001")
    run(used, "backup", "--out", file)
    lines = gzip.decompress(file.read_bytes()).splitlines(keepends=True)
    file.write_bytes(forged([line.replace(b'"status":"revoked"', b'"status":"active"') for line in lines]))
    assert "was changed after it was made" in run(used, "restore", "--check", file, code=1).stderr


def test_a_newer_backup_is_refused_and_an_older_one_is_migrated(
    used: Path, tmp_path: Path, elsewhere: Callable[[str], tuple[Path, list[str]]]
) -> None:
    file, newer = tmp_path / "registry.backup", tmp_path / "newer"
    run(used, "backup", "--out", file)
    lines = gzip.decompress(file.read_bytes()).splitlines(keepends=True)
    head = json.dumps({**json.loads(lines[0]), "revision": "9999"}).encode() + b"\n"
    newer.write_bytes(forged([head, *lines[1:]]))
    place, _database = elsewhere("sqlite")
    said = run(place, "restore", newer, code=1).stderr
    assert "has revision 9999, which this program does not know; restore it with the newer release" in said
    # Release 0.1.0 has no such command; a backup of its revision is one whose agents lack the later columns.
    server = open_server(used)
    key = server.cipher.backup_key()
    server.close()
    first = Database(sqlite_url(tmp_path / "first.db"))
    first.migrate("0001")
    with first.engine.connect() as connection:
        metadata = MetaData()
        metadata.reflect(connection)
    first.close()
    columns = {table.name: set(table.columns.keys()) for table in metadata.tables.values()}
    later_counters = {
        ("counter", name)
        for name in (
            "accounts", "agents", "alerts", "certificate_rotations", "ddi_action", "events", "license_changes", "revocations",
        )
    }  # fmt: skip
    added = {*later_counters, ("setting", "oldest_program")}
    rest, dropped, end = [], dict[str, int](), json.loads(lines[-1])
    for line in lines[1:-1]:
        name, row = json.loads(line)
        later = (name, row.get("name", "").partition(".")[0]) in added and row["name"] != "revocations"
        if name not in columns or later:
            dropped[name] = dropped.get(name, 0) + 1
            continue
        rest.append(json.dumps([name, {key: value for key, value in row.items() if key in columns[name]}]).encode())
    old = [
        json.dumps({**json.loads(lines[0]), "revision": "0001"}).encode() + b"\n",
        *(line + b"\n" for line in rest),
        json.dumps({**end, "rows": {name: count - dropped.get(name, 0) for name, count in end["rows"].items()}}).encode()
        + b"\n",
    ]
    content = gzip.decompress(forged(old)).splitlines(keepends=True)
    last = json.loads(content[-1])
    content[-1] = json.dumps({**last, "mac": backup._mac(key, last["sha256"])}).encode() + b"\n"
    file.write_bytes(gzip.compress(b"".join(content)))
    run(place, "restore", file)
    assert "pos-000001" in run(place, "agents").stdout


def test_a_restore_that_was_killed_is_repeated(tmp_path: Path, founded: Callable[[str | None], Path]) -> None:
    base = tmp_path / "base"
    shutil.copytree(founded(None), base)
    (base / "server" / SETTINGS).write_text(
        f'database = "{sqlite_url(base / "server" / "server.db")}"\nmaster_key = "{base / "server" / "master.key"}"\n'
    )
    file, place, scratch = tmp_path / "registry.backup", tmp_path / "new", tmp_path / "scratch"
    scratch.mkdir()
    run(base / "server", "backup", "--out", file)

    def prepare() -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        shutil.copy2(base / "server" / "master.key", place / "master.key")

    def act() -> None:
        done = license_server("restore", "--dir", str(place), str(file), env={})
        raise SystemExit(done.returncode)

    steps = 0
    for broken in each_step(act, prepare, "kill", scratch):
        steps += 1
        assert broken_at(10_000, act, "kill", scratch).code == 0, broken
        open_server(place).close()
    assert steps >= 3


def test_a_backup_is_of_one_moment(used: Path, tmp_path: Path) -> None:
    """Somebody writes between the tables that are read."""
    server = open_server(used)
    with server.database.snapshot() as session:
        count = session.scalar(sql("SELECT count(*) FROM audit"))
        server.enrollment_tokens.create(None, False, 3600, NOW)
        assert session.scalar(sql("SELECT count(*) FROM claim")) == 2
        assert session.scalar(sql("SELECT count(*) FROM audit")) == count
    server.close()
