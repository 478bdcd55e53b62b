"""The guide "Move to another database" is run as it is written, with PostgreSQL's own programs."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import psycopg
import pytest

from tests.support.postgres import USER, Postgres, binary
from tests.support.servertool import license_server

pytestmark = pytest.mark.system
ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "guides.md").read_text("utf-8").partition("\n## Move to another database\n")[2].partition("\n## ")[0]
RUNUSER = """#!/bin/sh
# Becomes nobody: the test has one user, and its PostgreSQL trusts it.
[ "$1" = -u ] && [ "$3" = -- ] || exit 9
shift 3
exec "$@"
"""
SYSTEMCTL = """#!/bin/sh
# There is no systemd here: notes what it was asked for, and whether the service had a registry that opens.
echo "$@" >>"$NOTES"
[ "$1" = stop ] || exec license-server agents list
"""


@pytest.fixture
def environment(tmp_path: Path, postgres: Postgres) -> Iterator[dict[str, str]]:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("runuser", RUNUSER), ("systemctl", SYSTEMCTL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    path = f"{programs}:{Path(binary('createdb')).parent}:{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"
    yield {
        "PATH": path,
        "PGHOST": str(postgres.directory),
        "PGUSER": USER,
        "LICENSE_SERVER_DIR": str(tmp_path / "server"),
        "NOTES": str(tmp_path / "notes"),
    }
    with closing(psycopg.connect(f"host={postgres.directory} user={USER} dbname=postgres", autocommit=True)) as admin:
        for statement in ("DROP DATABASE IF EXISTS license", 'DROP ROLE "license-server"'):
            with suppress(psycopg.errors.UndefinedObject):
                admin.execute(statement.encode())


def test_the_guide_moves_a_server_to_postgresql(tmp_path: Path, environment: dict[str, str]) -> None:
    server = tmp_path / "server"
    assert license_server("init", "--dir", str(server), env={}).returncode == 0
    block = re.findall(r"(?:^    .*\n)+", GUIDE, re.MULTILINE)[0]
    assert "move --to" in block and "/var/lib/license-server" in block
    script = re.sub(r"^    ", "", block, flags=re.MULTILINE).replace("/var/lib/license-server", str(server))
    done = subprocess.run(["bash", "-euc", script], env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done
    assert "moved to postgresql+psycopg:///license, and verified row by row" in done.stderr
    assert "records hold" in done.stdout
    assert (server / "settings.toml").read_text().startswith('database = "postgresql+psycopg:///license"')
    assert (server / "before-the-move.backup").exists()
    assert Path(environment["NOTES"]).read_text().splitlines() == ["stop license-server", "start license-server"]


def test_the_guide_goes_back(tmp_path: Path, environment: dict[str, str]) -> None:
    """The line that the command prints, put into settings.toml, and `--reopen`."""
    server = tmp_path / "server"
    assert license_server("init", "--dir", str(server), env={}).returncode == 0
    moved = license_server("move", "--dir", str(server), "--to", f"sqlite:///{tmp_path / 'new.db'}", env={})
    (line,) = re.findall(r"^to go back .*: put (database = \S+) into ", moved.stderr, re.MULTILINE)
    settings = server / "settings.toml"
    settings.write_text(re.sub(r"^database = .*$", line, settings.read_text(), flags=re.MULTILINE))
    refused = license_server("agents", "list", "--dir", str(server), env={})
    assert refused.returncode == 1 and "move --reopen" in refused.stderr
    assert license_server("move", "--reopen", "--dir", str(server), env={}).returncode == 0
    assert license_server("agents", "list", "--dir", str(server), env={}).returncode == 0
    assert "outcome" in license_server("audit", "--dir", str(server), env={}).stdout
