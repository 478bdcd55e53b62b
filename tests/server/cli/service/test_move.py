"""`license-server move`: from each database to each, what is refused, and every step broken."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import delete, select, update
from sqlalchemy import text as sql

from server import moving
from server.base.settings import SETTINGS, Place, settings_of
from server.keys.keyring import Keyring
from server.registry.database import MOVED, UNUSED, Database, RegistryMoved, sqlite_url
from server.registry.models.core import Agent, AuditRecord, Base, EnrollmentToken, Setting
from server.registry.upkeep import copying, sole
from tests.server.devices import NOW, Device
from tests.support.faults import Kind, broken_at, each_step
from tests.support.postgres import Postgres
from tests.support.serverside import ServerSide, open_server
from tests.support.servertool import Done, license_server

pytestmark = pytest.mark.system
Rows = dict[str, list[dict[str, object]]]
Make = Callable[[str], str]


def run(directory: Path, *arguments: object, code: int = 0, **env: str) -> Done:
    done = license_server(*map(str, arguments), env={"LICENSE_SERVER_DIR": str(directory), **env})
    assert done.returncode == code, done
    return done


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sole, "TRIES", 5)


@pytest.fixture
def make(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes empty databases, of a kind."""
    with ExitStack() as stack:
        made: list[str] = []

        def empty(kind: str) -> str:
            if kind == "postgresql":
                cluster: Postgres = request.getfixturevalue("postgres")
                made.append(stack.enter_context(cluster.database()))
            else:
                made.append(sqlite_url(tmp_path / f"new-{len(made)}.db"))
            return made[-1]

        yield empty


def fill(directory: Path) -> None:
    """An agent that is halted, secrets, licenses, tokens of which the last was removed, and a certificate."""
    server = open_server(directory)
    for number in (1, 2, 3):
        Device(number).come(server, now=NOW)
    server.secrets.rotate_by_hand("pos-000001", NOW)
    server.agents.set_status("pos-000002", "revoked", NOW)
    with server.database.write() as session:
        session.execute(update(Agent).where(Agent.id == "pos-000003").values(halted_at=NOW, halt_reason="audit ü € 🛒\t\\N\n"))
    server.close()
    run(directory, "issue", "--agent", "pos-000001", "--expires", "+30d", "--license-id", "one", "--subject", "Käse")
    run(directory, "enrollment-token", "make")
    run(directory, "enrollment-token", "make")


@pytest.fixture
def used(directory: Path) -> Path:
    fill(directory)
    server = open_server(directory)
    with server.database.write() as session:
        last = session.scalars(select(EnrollmentToken.id).order_by(EnrollmentToken.id.desc())).first()
        session.execute(delete(EnrollmentToken).where(EnrollmentToken.id == last))
    server.close()
    return directory


def rows(server: ServerSide | Database) -> Rows:
    database = server if isinstance(server, Database) else server.database
    with database.read() as session:
        return {
            table.name: sorted(
                (dict(row) for row in session.execute(select(table)).mappings()),
                key=lambda row, table=table: str([row[column.name] for column in table.primary_key.columns]),
            )
            for table in Base.metadata.sorted_tables
        }


def rows_in(directory: Path) -> Rows:
    server = open_server(directory)
    try:
        return rows(server)
    finally:
        server.close()


def database_of(directory: Path) -> str:
    return str(tomllib.loads((directory / SETTINGS).read_text())["database"])


def without(content: Rows, *names: str) -> Rows:
    """The rows without what a move adds: an audit record, and the marks."""
    audit = [row for row in content["audit"] if row["event"] not in ("registry.moved", *names)]
    counter = [row for row in content["counter"] if row["name"] != "audit"]
    setting = [row for row in content["setting"] if row["name"] not in (MOVED, UNUSED)]
    return {**content, "audit": audit, "counter": counter, "setting": setting}


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_registry_is_moved(used: Path, make: Make, kind: str) -> None:
    before, old, url = rows_in(used), database_of(used), make(kind)
    said = run(used, "move", "--to", url).stderr
    assert "3 agents, 1 secret versions, 1 licenses" in said and "move --reopen" in said and "closed" in said
    assert database_of(used) == url
    assert (used / SETTINGS).stat().st_mode & 0o777 == 0o600
    server = open_server(used)
    assert without(rows(server)) == without(before)
    (moved,) = server.audit.tail(1)
    assert (moved.event, moved.outcome) == ("registry.moved", "ok") and moved.fields["agents"] == 3
    assert moved.fields["os_user"].endswith(f"({os.getuid()})")
    assert server.audit.verify(server.cipher.audit_key()) == (moved.seq, None)
    assert server.secrets.open("pos-000001", None) is not None
    server.enrollment_tokens.create(None, False, 3600, NOW)
    # The last one had number 5 and was removed: PostgreSQL remembers that, and SQLite does not.
    next_number = 6 if old.startswith("postgresql") and kind == "postgresql" else 5
    assert server.enrollment_tokens.listed()[0].claim_id == next_number
    server.close()
    run(used, "reissue", "--agent", "pos-000001")
    if kind == "sqlite":
        assert Path(url.removeprefix("sqlite:///")).stat().st_mode & 0o777 == 0o600
    assert "is in" in run(used, "move", "--to", url).stderr, "a second run does nothing"

    # The old one is whole, and closed.
    closed = Database(old)
    assert without(rows(closed)) == without(before)
    closed.close()
    place = Place(used, old, str(used / "master.key"))
    (used / SETTINGS).write_bytes(settings_of(place))
    for command in (("agents", "list"), ("master-key", "show"), ("backup", "--out", used / "x"), ("move", "--to", make(kind))):
        assert "was moved to" in run(used, *command, code=1).stderr
    assert "opened again" in run(used, "move", "--reopen").stderr
    assert without(rows_in(used), "registry.reopened") == without(before)
    assert "was not moved away" in run(used, "move", "--reopen", code=1).stderr


def test_a_database_in_use_is_not_moved(used: Path, make: Make, postgres: Postgres) -> None:
    server, url = open_server(used), make("postgresql")
    server.agents.count()  # idle afterwards: no transaction is open
    said = run(used, "move", "--to", url, code=1).stderr
    assert "systemctl stop license-server" in said and "nothing was changed" in said
    server.close()
    with contextlib.closing(Database(url)) as target:
        assert target.is_empty() and target.revision() is None
    run(used, "move", "--to", url)


def test_nobody_uses_the_old_database_meanwhile(used: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that starts during the move does not serve the old registry, and neither does one that waits for it."""
    script = (
        "import sys; from server.wiring import open_server; from pathlib import Path; open_server(Path(sys.argv[1])).close()"
    )
    started: list[subprocess.Popen[str]] = []
    copy = copying.copy

    def slowly(*arguments: object) -> object:
        command = [sys.executable, "-c", script, str(used)]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[4]))
        with pytest.raises(subprocess.TimeoutExpired):
            started[0].wait(5)
        return copy(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(copying, "copy", slowly)
    run(used, "move", "--to", make("sqlite"))
    _out, err = started[0].communicate(timeout=60)
    assert started[0].returncode == 1
    assert "was moved to" in err or "database is locked" in err, err


def test_what_is_refused(used: Path, make: Make, tmp_path: Path) -> None:
    before, settings = rows_in(used), (used / SETTINGS).read_bytes()
    other = tmp_path / "other.db"
    occupied = Database(sqlite_url(other))
    occupied.migrate()
    occupied.close()
    file = tmp_path / "url"
    file.write_text(make("postgresql"))
    for arguments, text, code in (
        ((), "name the new database with --to", 1),
        (("--to", "postgresql+psycopg://u:secret@/x"), "every user of this machine sees a password", 2),
        (("--to", "mysql://u@/x"), "must be SQLite or PostgreSQL", 1),
        (("--to", "sqlite://"), "names no file", 1),
        (("--to", sqlite_url(tmp_path / "none" / "x.db")), "there is no directory", 1),
        (("--to", sqlite_url(other)), "is not overwritten", 1),
        (("--to", "postgresql+psycopg://u@/none?host=/none"), "does not answer", 1),
        (("--to-file", file), "has mode 0644", 1),
        (("--to", "sqlite:////x", "--reopen"), "Give one of", 2),
    ):
        done = run(used, "move", *arguments, code=code)
        assert text in done.stderr and "secret" not in done.stderr, done
    (used / "server.db.x").touch()
    assert (rows_in(used), (used / SETTINGS).read_bytes()) == (before, settings)
    file.chmod(0o600)
    run(used, "move", "--to-file", file)
    assert database_of(used) == file.read_text()


def test_a_credential_names_the_new_database_and_then_the_old_one(used: Path, make: Make, tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    url, passed = make("postgresql"), {"CREDENTIALS_DIRECTORY": str(credentials)}
    (credentials / "license-server-database").write_text(url + "\n")
    (credentials / "license-server-database").chmod(0o600)
    before = rows_in(used)
    run(used, "move", **passed)
    assert "set-by-the-credential" in database_of(used)
    assert "is in" in run(used, "move", **passed).stderr
    assert "pos-000001" in run(used, "agents", "list", **passed).stdout
    back = make("sqlite")
    assert "remove its systemd credential" in run(used, "move", "--to", back, **passed).stderr
    assert "was moved to" in run(used, "agents", "list", code=1, **passed).stderr, "the credential still names the old one"
    assert without(rows_in(used)) == without(before)


def test_an_audit_log_that_does_not_verify_is_not_moved(used: Path, make: Make) -> None:
    server = open_server(used)
    with server.database.write() as session:
        session.execute(update(AuditRecord).where(AuditRecord.seq == 2).values(actor="nobody"))
    server.close()
    url = make("postgresql")
    assert "record 2 was changed" in run(used, "move", "--to", url, code=1).stderr
    with contextlib.closing(Database(url)) as target:
        assert target.is_empty()


def test_a_target_that_gives_back_other_rows_is_refused(used: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something changes a row between its writing and its reading."""
    before, url, content = rows_in(used), make("postgresql"), copying.content

    def changed(session: object, progress: object) -> object:
        session.execute(sql("UPDATE license SET claims = replace(claims, 'K', 'k')"))  # type: ignore[attr-defined]
        return content(session, progress)  # type: ignore[arg-type]

    monkeypatch.setattr(copying, "content", changed)
    assert "gives back other rows than it got (license)" in run(used, "move", "--to", url, code=1).stderr
    monkeypatch.setattr(copying, "content", content)
    assert rows_in(used) == before
    run(used, "move", "--to", url)


def test_a_key_that_does_not_open_stops_the_move(used: Path, make: Make) -> None:
    server = open_server(used)
    with server.database.write() as session:
        session.execute(sql("UPDATE server_key SET sealed = substr(sealed, 1, 20) WHERE kind = 'rotation'"))
    server.close()
    url = make("sqlite")
    assert "cannot be decrypted" in run(used, "move", "--to", url, code=1).stderr
    assert not Path(url.removeprefix("sqlite:///")).exists()


# Interrupted


@pytest.fixture(params=["sqlite to postgresql", "postgresql to sqlite"])
def ways(request: pytest.FixtureRequest, tmp_path: Path, founded: Callable[[str | None], Path]) -> Iterator["Ways"]:
    with ExitStack() as stack:
        cluster: Postgres = request.getfixturevalue("postgres")
        yield Ways(request.param, tmp_path, founded, cluster, request, stack)


class Ways:
    """A filled server that is copied for each run, and an empty database to move it to."""

    def __init__(
        self,
        way: str,
        tmp_path: Path,
        founded: Callable[[str | None], Path],
        cluster: Postgres,
        request: pytest.FixtureRequest,
        stack: ExitStack,
    ) -> None:
        self.base, self.scratch, self.directory = tmp_path / "base", tmp_path / "scratch", tmp_path / "base" / "server"
        self.scratch.mkdir()
        self._kept, self._cluster, self._stack = tmp_path / "kept", cluster, stack
        self._template: str | None = None
        self._to_postgresql = way == "sqlite to postgresql"
        template = None if self._to_postgresql else request.getfixturevalue("postgres_template")
        shutil.copytree(template[1] if template else founded(None), self.base)
        if template:
            self._template = stack.enter_context(cluster.database(template[0]))
        self._settings(self._template)
        fill(self.directory)
        self.content = rows_in(self.directory)
        self.base.rename(self._kept)

    def _settings(self, url: str | None) -> None:
        place = Place(self.directory, url or sqlite_url(self.directory / "server.db"), str(self.directory / "master.key"))
        (self.directory / SETTINGS).write_bytes(settings_of(place))

    def fresh(self) -> None:
        shutil.rmtree(self.base, ignore_errors=True)
        shutil.copytree(self._kept, self.base)
        if self._to_postgresql:
            self._settings(None)
            self.url = self._stack.enter_context(self._cluster.database())
        else:
            self._settings(self._stack.enter_context(self._cluster.database(self._template)))
            self.url = sqlite_url(self.base / "new.db")
        self.old = database_of(self.directory)

    def move(self) -> Done:
        return license_server("move", "--dir", str(self.directory), "--to", self.url, env={})

    def act(self) -> None:
        done = self.move()
        sys.stderr.write(done.stderr)
        raise SystemExit(done.returncode)


@pytest.mark.parametrize("kind", ["kill", "full"])
def test_a_move_that_was_broken_at_a_step_leaves_one_registry_in_use_and_is_repeated(ways: Ways, kind: Kind) -> None:
    steps, switched = 0, 0
    for broken in each_step(ways.act, ways.fresh, kind, ways.scratch, ways.move):
        steps += 1
        inuse = database_of(ways.directory)
        # The last step only notes that the new database is in use; if it fails, who opens it first does so.
        done = kind == "full" and inuse == ways.url and "moved to" in broken.output
        assert broken.code == (-signal.SIGKILL if kind == "kill" else 0 if done else 1), broken
        assert "Traceback" not in broken.output, broken
        assert inuse in (ways.old, ways.url), broken
        if inuse == ways.old:
            assert rows_in(ways.directory) == ways.content, (broken, "the old registry is whole and open")
            if kind == "full":
                with contextlib.closing(Database(ways.url)) as target:
                    assert target.is_empty(), (broken, "the new database is empty again")
        else:
            switched += 1
            assert without(rows_in(ways.directory)) == without(ways.content), broken
        again = broken_at(10_000, ways.act, "kill", ways.scratch)
        assert again.code == 0, (broken, again)
        assert database_of(ways.directory) == ways.url
        server = open_server(ways.directory)
        assert without(rows(server)) == without(ways.content), broken
        assert server.audit.verify(server.cipher.audit_key())[1] is None
        with server.database.read() as session:
            assert session.get(Setting, UNUSED) is None
        server.close()
        assert list(ways.directory.glob(".*.new")) == [], broken
    assert steps >= 5 and switched >= 1


@pytest.mark.parametrize("rows_before", [0, 3, 40])
def test_a_move_that_was_killed_between_two_rows_leaves_the_target_empty(
    ways: Ways, rows_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways.fresh()
    monkeypatch.setattr(copying, "BATCH", 1)

    def killed() -> None:
        left, copy = rows_before, copying.copy

        def counted(source: object, target: object, _progress: object) -> object:
            def step(rows: int) -> None:
                nonlocal left
                left -= rows
                if left <= 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            return copy(source, target, step)  # type: ignore[arg-type]

        copying.copy = counted  # type: ignore[assignment]
        ways.act()

    broken = broken_at(10_000, killed, "kill", ways.scratch)
    assert broken.code == -signal.SIGKILL, broken
    with contextlib.closing(Database(ways.url)) as target:
        assert target.is_empty()
    assert rows_in(ways.directory) == ways.content
    assert broken_at(10_000, ways.act, "kill", ways.scratch).code == 0
    assert without(rows_in(ways.directory)) == without(ways.content)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_move_to_a_disk_that_is_too_small_leaves_nothing_there(used: Path, tmp_path: Path) -> None:
    before, disk = rows_in(used), tmp_path / "disk"
    disk.mkdir()
    refused = 0
    for size in (4, 64, 128, 256, 8192):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k,mode=0700", "none", disk], check=True)
        try:
            done = license_server("move", "--dir", str(used), "--to", sqlite_url(disk / "new.db"), env={})
            if done.returncode == 0:
                server = open_server(used)
                assert without(rows(server)) == without(before)
                server.close()
                break
            refused += 1
            assert done.returncode == 1 and "full" in done.stderr, done
            assert list(disk.iterdir()) == [] and rows_in(used) == before
        finally:
            subprocess.run(["umount", disk], check=True)
    assert refused >= 2


def interrupted_after_the_switch(directory: Path, url: str, scratch: Path) -> None:
    """A move that is killed once settings.toml names the new database, before anybody has opened that."""

    def act() -> None:
        def killed(_database: object) -> None:
            if database_of(directory) == url:
                os.kill(os.getpid(), signal.SIGKILL)

        moving.begin_use = killed  # type: ignore[assignment]
        moving.move_server(directory, url, NOW, {}, moving.Progress(lambda _what, _rows: None, lambda _rows: None))

    scratch.mkdir()
    assert broken_at(10_000, act, "kill", scratch).code == -signal.SIGKILL
    assert database_of(directory) == url


def test_a_copy_that_another_servers_settings_name_is_not_removed(used: Path, tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "target.db")
    interrupted_after_the_switch(used, url, tmp_path / "scratch")
    other = tmp_path / "other"
    assert license_server("init", "--dir", str(other), "--root-key", str(tmp_path / "other.root"), env={}).returncode == 0
    done = license_server("move", "--dir", str(other), "--to", url, env={})
    assert done.returncode == 1 and "which is not overwritten" in done.stderr
    assert "pos-000001" in license_server("agents", "list", "--dir", str(used), env={}).stdout


def test_a_copy_is_not_removed_by_another_spelling_of_its_own_name(used: Path, tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "target.db")
    interrupted_after_the_switch(used, url, tmp_path / "scratch")
    (tmp_path / "link").symlink_to(tmp_path)
    done = license_server("move", "--dir", str(used), "--to", sqlite_url(tmp_path / "link" / "target.db"), env={})
    assert done.returncode == 1 and "which is not overwritten" in done.stderr
    assert "pos-000001" in license_server("agents", "list", "--dir", str(used), env={}).stdout


def test_a_server_that_serves_a_registry_that_was_moved_stops_answering(used: Path) -> None:
    serving = open_server(used)
    keys = Keyring(serving.database, serving.cipher, monotonic=iter(range(0, 1000, 10)).__next__)
    assert keys.key_set()
    with serving.database.write() as session:
        session.add(Setting(name=MOVED, value="elsewhere"))
    with pytest.raises(RegistryMoved, match="restart the server"):
        keys.key_set()
    serving.close()
