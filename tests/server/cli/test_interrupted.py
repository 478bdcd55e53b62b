"""Every command of several steps, broken at each of them: the same command, run again, does what it was asked for."""

import importlib
import json
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from server import cli
from server.base.settings import SETTINGS, Place, settings_of
from server.main import entry
from server.registry.database import Database, sqlite_url
from tests.server.devices import Device, public_jwk_of
from tests.support.faults import Broken, Kind, broken_at, each_step
from tests.support.postgres import Postgres
from tests.support.serverside import open_server
from tests.support.servertool import license_server

pytestmark = pytest.mark.system

for found in pkgutil.walk_packages(cli.__path__, f"{cli.__name__}."):  # here once, not in each of a thousand children
    importlib.import_module(found.name)
importlib.import_module("server.acts.catalog")


def command(*arguments: object) -> Callable[[], None]:
    """`license-server` with these arguments, to be run in a child."""

    def run() -> None:
        sys.argv = ["license-server", *map(str, arguments)]
        entry()

    return run


def unbroken(*arguments: object) -> Callable[[], None]:
    """The same, to be run here."""

    def run() -> None:
        done = license_server(*map(str, arguments), env={})
        assert done.returncode == 0, done

    return run


def run(scratch: Path, *arguments: object) -> Broken:
    """Runs a command unbroken, in a child."""
    return broken_at(10_000, command(*arguments), "kill", scratch)


@dataclass(frozen=True)
class World:
    """A server with agent `till-1`, license `one` and a retired license key, to be copied for each run.

    Attributes:
        kept: the original.
        base: the copy; the server is in `base/server`.
        scratch: for what children print.
    """

    kept: Path
    base: Path
    scratch: Path

    def fresh(self) -> None:
        shutil.rmtree(self.base, ignore_errors=True)
        shutil.copytree(self.kept, self.base, symlinks=True)

    @property
    def root(self) -> tuple[str, str]:
        return "--root-key", str(self.base / "root.key")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    top = tmp_path_factory.mktemp("interrupted")
    base, kept, scratch = top / "base", top / "kept", top / "scratch"
    base.mkdir()
    scratch.mkdir()
    (base / "away").mkdir()
    os.environ["LICENSE_SERVER_DIR"] = str(base / "server")
    request = base / "request.json"
    key = public_jwk_of(Device(1).agreement)
    request.write_text(json.dumps({"agent_id": "till-1", "agreement_key": key, "backend": "software"}))
    for arguments in (
        ("init", "--root-key", base / "root.key"),
        ("enroll", "--request", request),
        ("rotate", "--agent", "till-1"),
        ("issue", "--agent", "till-1", "--expires", "+30d", "--license-id", "one"),
        ("enrollment-token", "make"),
        ("keys", "rotate", "license", "--root-key", base / "root.key"),
    ):
        done = run(scratch, *arguments)
        assert done.code == 0, done
    base.rename(kept)
    try:
        yield World(kept, base, scratch)
    finally:
        del os.environ["LICENSE_SERVER_DIR"]


def retired(base: Path) -> str:
    server = open_server(base / "server")
    try:
        return next(row.kid for row in server.key_lifecycle.listed() if row.state == "retired")
    finally:
        server.close()


COMMANDS: dict[str, Callable[[World], tuple[object, ...]]] = {
    "migrate": lambda w: ("migrate",),
    "enroll": lambda w: ("enroll", "--request", w.base / "request.json"),
    "enrollment-token make": lambda w: ("enrollment-token", "make", "--out", w.base / "out"),
    "enrollment-token revoke": lambda w: ("enrollment-token", "revoke", 1),
    "agents revoke": lambda w: ("agents", "revoke", "till-1"),
    "agents revoke-many": lambda w: ("agents", "revoke-many", "till-1"),
    "agents retire": lambda w: ("agents", "retire", "till-1"),
    "agents reinstate": lambda w: ("agents", "reinstate", "till-1", "--yes"),
    "rotate": lambda w: ("rotate", "--agent", "till-1", "--out", w.base / "out"),
    "secrets rotate": lambda w: ("secrets", "rotate", "--all"),
    "secrets invalidate": lambda w: ("secrets", "invalidate", "--agent", "till-1", 1),
    "periods": lambda w: ("periods", "--interval", 1000),
    "sign-time": lambda w: ("sign-time", "--agent", "till-1", "--challenge", "ab" * 16, "--out", w.base / "out"),
    "issue": lambda w: ("issue", "--agent", "till-1", "--expires", "+9d", "--license-id", "two", "--out", w.base / "out"),
    "reissue": lambda w: ("reissue", "--agent", "till-1", "--out", w.base / "out"),
    "revoke": lambda w: ("revoke", "one"),
    "trust": lambda w: ("trust", "--out", w.base / "out"),
    "tls-files": lambda w: ("tls-files", "--out", w.base / "tls"),
    "keys rotate tls": lambda w: ("keys", "rotate", "tls"),
    "keys rotate license": lambda w: ("keys", "rotate", "license", *w.root),
    "keys rotate issuing-ca": lambda w: ("keys", "rotate", "issuing-ca", *w.root),
    "keys rotate root": lambda w: ("keys", "rotate", "root", *w.root, "--new-root-key", w.base / "away" / "new.key"),
    "keys end": lambda w: ("keys", "end", "--id", retired(w.base), *w.root),
    "master-key rotate": lambda w: ("master-key", "rotate"),
    "master-key rotate --to": lambda w: ("master-key", "rotate", "--to", w.base / "new.key"),
    "master-key rotate --to --keep-old": lambda w: ("master-key", "rotate", "--to", w.base / "new.key", "--keep-old"),
    "master-key finish": lambda w: ("master-key", "finish"),
}
FIRST: dict[str, tuple[object, ...]] = {"agents reinstate": ("agents", "revoke", "till-1")}
"""What has to be done before a command has anything to do."""
OUT = {"enrollment-token make", "rotate", "sign-time", "issue", "reissue", "trust"}
"""They hand out a file, which is there when, and only when, they have done what they were asked for."""


FILES = OUT | {"tls-files", "keys rotate root", "master-key rotate", "master-key rotate --to"}
"""They write files beside the registry, which may fail alone."""


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "kill") for name in COMMANDS), *((name, "full") for name in sorted(FILES))], ids=str
)
def test_a_command_that_was_broken_at_a_step_succeeds_when_it_is_run_again(world: World, name: str, kind: Kind) -> None:
    def prepare() -> None:
        world.fresh()
        if name in FIRST:
            assert run(world.scratch, *FIRST[name]).code == 0

    prepare()
    arguments = COMMANDS[name](world)
    warm = unbroken(*arguments)
    for broken in each_step(command(*arguments), prepare, kind, world.scratch, warm):
        assert broken.code == (-signal.SIGKILL if kind == "kill" else 1), broken
        assert "Traceback" not in broken.output, broken
        assert not (name in OUT and (world.base / "out").exists() and not (world.base / "out").read_text()), broken
        again = run(world.scratch, *arguments)
        assert again.code == 0, (broken, again)
        assert name not in OUT or (world.base / "out").read_text().strip()
        left = [path for path in world.base.rglob(".*.new") if path.name not in (".out.new", ".server.pem.new")]
        assert left == [], (broken, "a secret is left where nobody looks")
        server = open_server(world.base / "server")
        assert server.audit.verify(server.cipher.audit_key())[1] is None
        server.close()


@pytest.mark.parametrize(("kind", "away"), [("kill", True), ("full", False)], ids=["kill", "full"])
def test_init_that_was_broken_at_a_step_creates_the_server_when_it_is_run_again(
    tmp_path: Path, url: str | None, kind: Kind, away: bool, request: pytest.FixtureRequest
) -> None:
    base, scratch = tmp_path / "base", tmp_path / "scratch"
    scratch.mkdir()
    root = base / "stick" / "root.key" if away else base / "server" / "offline" / "root.key"
    databases: list[str] = []

    def prepare() -> None:
        shutil.rmtree(base, ignore_errors=True)
        (base / "stick").mkdir(parents=True)
        if url is not None:
            cluster: Postgres = request.getfixturevalue("postgres")
            made = cluster.database()
            request.addfinalizer(lambda: made.__exit__(None, None, None))
            databases.append(made.__enter__())

    def arguments() -> list[object]:
        at = ["--root-key", root] if away else []
        database = [] if url is None else ["--database", databases[-1]]
        return ["init", "--dir", base / "server", *at, *database]

    def act() -> None:
        command(*arguments())()

    for broken in each_step(act, prepare, kind, scratch, lambda: unbroken(*arguments())()):
        if kind == "full" and "the root key is in" not in broken.output:
            assert not (base / "server").exists(), (broken, list((base / "server").iterdir()))
            assert list((base / "stick").iterdir()) == []
        again = run(scratch, *arguments())
        assert again.code == 0, (broken, again)
        assert root.stat().st_size > 100
        assert list(base.rglob(".*.new")) == [], broken
        server = open_server(base / "server")
        server.close()
        third = run(scratch, *arguments())
        assert third.code == 1 and "not overwritten" in third.output


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_init_on_a_disk_that_is_too_small_leaves_nothing(tmp_path: Path) -> None:
    disk, scratch = tmp_path / "disk", tmp_path / "scratch"
    disk.mkdir()
    scratch.mkdir()
    refused = 0
    for size in (4, 16, 64, 128, 192, 256, 512, 4096):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k,mode=0700", "none", disk], check=True)
        try:
            done = run(scratch, "init", "--dir", disk / "server", "--root-key", disk / "root.key")
            if done.code == 0:
                continue
            refused += 1
            assert done.code == 1 and "Traceback" not in done.output, done
            assert list(disk.iterdir()) == [], (size, done)
            subprocess.run(["mount", "-o", "remount,size=4096k", disk], check=True)
            assert run(scratch, "init", "--dir", disk / "server", "--root-key", disk / "root.key").code == 0
        finally:
            subprocess.run(["umount", disk], check=True)
    assert 3 <= refused <= 7


def test_init_tells_that_the_root_key_cannot_be_written_before_it_makes_anything(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    occupied = tmp_path / "other.key"
    occupied.write_text("a key of another server")
    (tmp_path / "file").write_text("")
    for root, text in (
        (occupied, "already exists and is not overwritten"),
        (tmp_path / "file" / "root.key", "cannot be written"),
    ):
        done = run(tmp_path / "scratch", "init", "--dir", tmp_path / "server", "--root-key", root)
        assert done.code == 1 and text in done.output, done
        assert not (tmp_path / "server").exists()
    assert occupied.read_text() == "a key of another server"


def test_init_takes_up_what_the_last_release_left(tmp_path: Path, world: World) -> None:
    """Release 0.1.0 leaves a registry without rows and a master key when the root key cannot be written."""
    server = tmp_path / "server"
    server.mkdir(mode=0o700)
    database = Database(sqlite_url(server / "server.db"))
    database.migrate()
    database.close()
    (server / "master.key").write_bytes(os.urandom(32))
    (server / "master.key").chmod(0o600)
    assert run(world.scratch, "init", "--dir", server).code == 0


def test_init_does_not_replace_a_registry_that_is_missing(tmp_path: Path, world: World) -> None:
    server = tmp_path / "server"
    server.mkdir()
    place = Place(server, sqlite_url(server / "server.db"), str(server / "master.key"))
    (server / SETTINGS).write_bytes(settings_of(place))
    done = run(world.scratch, "init", "--dir", server)
    assert done.code == 1 and "restore a backup" in done.output
    assert sorted(path.name for path in server.iterdir()) == [SETTINGS]
