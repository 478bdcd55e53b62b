"""The password of a database is in no output, no process list and no environment."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from server.base.settings import SETTINGS, place_of
from server.keys import masterkey_rotation
from server.registry.database import Database, brief, passwords_in
from tests.support.postgres import Postgres
from tests.support.servertool import license_server
from tests.support.waiting import READY_S, wait_until

pytestmark = pytest.mark.system
PASSWORD = "s3cret/p@ss word"
QUOTED = "s3cret%2Fp%40ss%20word"
FORMS = ("s3cret", QUOTED)
BIN = Path(sys.executable).parent

MISTYPED = [
    f"postgresql+psycopg//app:{PASSWORD}@db/licenses",
    f"postgresql+psycopg://app:{PASSWORD}@db:x/licenses",
    f"postgresql+nonsense://app:{QUOTED}@db/licenses",
    f"postgresql://app:{QUOTED}@db/licenses",
    f"postgres://app:{QUOTED}@db/licenses",
    f"mysql://app:{QUOTED}@db/licenses",
    f"postgresql+psycopg://app:{QUOTED}@/licenses?host=/nonexistent",
    f"postgresql+psycopg://app@/licenses?host=/nonexistent&password={QUOTED}",
    f"app:{PASSWORD}",
]


def secretless(*texts: str) -> None:
    for text in texts:
        assert not any(form in text for form in FORMS), text


@pytest.mark.parametrize("url", MISTYPED)
def test_no_message_repeats_it(tmp_path: Path, url: str) -> None:
    file = tmp_path / "url"
    file.write_text(url + "\n")
    file.chmod(0o600)
    server = tmp_path / "server"
    runs = [
        license_server("init", "--dir", str(server), "--database", url, env={}),
        license_server("init", "--dir", str(server), "--database-file", str(file), env={}),
    ]
    server.mkdir(exist_ok=True)
    (server / SETTINGS).write_text(f"database = '{url}'\nmaster_key = '/nonexistent'\n")
    runs.append(license_server("agents", env={"LICENSE_SERVER_DIR": str(server)}))
    for done in runs:
        assert done.returncode in (1, 2) and done.stderr
        secretless(done.stdout, done.stderr)
    secretless(repr(place_of(server)))


def test_the_program_itself_shows_no_traceback_with_it(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text(MISTYPED[2])
    file.chmod(0o600)
    command = [str(BIN / "license-server"), "init", "--dir", str(tmp_path / "x"), "--database-file", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=READY_S)
    assert done.returncode == 1 and "is not a database URL" in done.stderr and "Traceback" not in done.stderr
    secretless(done.stderr)


def test_on_a_command_line_it_is_refused(tmp_path: Path) -> None:
    for url in (f"postgresql+psycopg://a:{QUOTED}@db/x", f"postgresql+psycopg://a@db/x?password={QUOTED}"):
        done = license_server("init", "--dir", str(tmp_path / "s"), "--database", url, env={})
        assert done.returncode == 2 and "--database-file" in done.stderr and not (tmp_path / "s").exists()
    file = tmp_path / "url"
    file.write_text("postgresql+psycopg://a@db/x")
    both = license_server(
        "init", "--dir", str(tmp_path / "s"), "--database", "sqlite:///x", "--database-file", str(file), env={}
    )
    assert both.returncode in (1, 2) and not (tmp_path / "s").exists()
    file.chmod(0o644)
    assert "chmod 0600" in license_server("init", "--dir", str(tmp_path / "s"), "--database-file", str(file), env={}).stderr


def test_what_a_driver_quotes_is_masked() -> None:
    database = Database(f"postgresql+psycopg://app:{QUOTED}@/x?host=/nonexistent")
    assert passwords_in(database.url)
    said = brief(type("E", (Exception,), {})(f"cannot use {PASSWORD!r} or {QUOTED} here"))  # type: ignore[arg-type]
    assert said == "cannot use '***' or *** here"
    secretless(database.name, repr(database.url), repr(database.engine))
    database.close()


def with_password(url: str) -> str:
    return url.replace("license@", f"license:{QUOTED}@")


def test_no_process_shows_it(tmp_path: Path, postgres: Postgres) -> None:
    """A server that runs: its command line and environment, and those of everything that it has started."""
    directory = tmp_path / "server"
    with postgres.database() as url:
        file = tmp_path / "url"
        file.write_text(with_password(url))
        file.chmod(0o600)
        assert license_server("init", "--dir", str(directory), "--database-file", str(file), env={}).returncode == 0
        assert (directory / SETTINGS).stat().st_mode & 0o777 == 0o600
        log = (tmp_path / "log").open("w")
        command = [str(BIN / "license-server"), "serve", "--dir", str(directory), "--unix", str(tmp_path / "api.sock")]
        process = subprocess.Popen([*command, "--proxy-user", "root"], stdout=log, stderr=log)
        try:
            wait_until(
                lambda: "serving" in (tmp_path / "log").read_text(),
                "the server did not start",
                lives=lambda: process.poll() is None,
            )
            seen = 0
            for entry in Path("/proc").glob("[0-9]*"):
                try:
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    if process.pid not in (int(entry.name), parent):
                        continue
                    for name in ("cmdline", "environ"):
                        secretless((entry / name).read_text("utf-8", "replace"))
                    seen += 1
                except OSError:
                    continue
            assert seen >= 1
        finally:
            process.terminate()
            process.wait(READY_S)
            log.close()
        secretless((tmp_path / "log").read_text())


def test_a_credential_goes_before_the_settings(tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    directory = tmp_path / "server"
    with postgres.database() as url:
        (credentials / "license-server-database").write_text(with_password(url) + "\n")
        (credentials / "license-server-database").chmod(0o400)
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
        environment = {"LICENSE_SERVER_DIR": str(directory)}
        assert license_server("init", env=environment).returncode == 0
        secretless((directory / SETTINGS).read_text())
        assert license_server("agents", env=environment).returncode == 0
        place = place_of(directory)
        database = Database(place.url)
        masterkey_rotation.rotate(place, database, lambda: int(time.time()), str(tmp_path / "new.key"), keep_old=False)
        database.close()
        secretless((directory / SETTINGS).read_text())
        assert license_server("agents", env=environment).returncode == 0
        monkeypatch.delenv("CREDENTIALS_DIRECTORY")
        done = license_server("agents", env=environment)
        assert done.returncode == 1 and "set-by-the-credential-license-server-database" in done.stderr
    assert os.environ.get("PGPASSWORD") is None
