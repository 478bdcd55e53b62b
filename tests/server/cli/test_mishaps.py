"""What people do wrong, or what happens to them: a registry that is not there, odd files, an address twice."""

import asyncio
import sqlite3
from pathlib import Path

import httpx
import pytest
from sqlalchemy.exc import OperationalError

from server.api.ops import create_ops
from server.jobs.runner import Runner
from server.licensing.secrets.secrets import SecretRow
from server.registry.database import in_words
from server.wiring import Plan, create_server
from tests.server.devices import ISSUER, NOW
from tests.support.manyagents import agent_id, make_agents
from tests.support.serverside import open_server
from tests.support.servertool import license_server


def test_a_registry_whose_file_is_missing_is_neither_made_again_nor_loses_its_log(tmp_path: Path) -> None:
    """Its disk may not be mounted. An empty file in its place would make SQLite throw its log away."""
    home, database = tmp_path / "s", tmp_path / "s" / "server.db"
    create_server(home, Plan(ISSUER, ("localhost",), tmp_path / "root.key", None), NOW)
    log = tmp_path / "s" / "server.db-wal"
    log.write_bytes(b"what was written last")
    database.rename(tmp_path / "away.db")
    before = sorted(path.name for path in home.iterdir())
    for arguments in (["agents"], ["migrate"], ["serve", "--bind", "127.0.0.1:0"], ["keys", "list"], ["licenses", "list"]):
        done = license_server(*arguments, env={"LICENSE_SERVER_DIR": str(home)})
        assert done.returncode == 1 and "server.db is missing: put it back" in done.stderr, (arguments, done)
    made = ["init", "--root-key", str(tmp_path / "again.key")]
    assert license_server(*made, env={"LICENSE_SERVER_DIR": str(home)}).returncode == 1
    assert sorted(path.name for path in home.iterdir()) == before
    assert log.read_bytes() == b"what was written last" and not (tmp_path / "again.key").exists()


def test_a_byte_order_mark_does_not_become_part_of_a_passphrase(tmp_path: Path) -> None:
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("\ufeffsecret\n", encoding="utf-8")
    made = ["init", "--root-key", str(tmp_path / "root.key"), "--root-passphrase-file", str(passphrase)]
    done = license_server(*made, env={"LICENSE_SERVER_DIR": str(tmp_path / "s")})
    assert done.returncode == 1 and "byte order mark" in done.stderr and "secret" not in done.stderr
    assert not (tmp_path / "root.key").exists()


def test_operators_need_a_port_of_their_own(tmp_path: Path) -> None:
    twice = ["--bind", "127.0.0.1:18999", "--ops", "127.0.0.1:18999"]
    done = license_server("serve", *twice, env={"LICENSE_SERVER_DIR": str(tmp_path)})
    assert done.returncode == 1 and "a port of their own" in done.stderr


def made(tmp_path: Path) -> Path:
    """The directory of a new server."""
    home = tmp_path / "s"
    create_server(home, Plan(ISSUER, ("localhost",), tmp_path / "root.key", None), NOW)
    return home


def said(home: Path, *arguments: str, code: int = 1) -> str:
    """What a command that nobody watches says."""
    done = license_server(*arguments, env={"LICENSE_SERVER_DIR": str(home)})
    assert done.returncode == code, done
    return done.stderr


def test_a_root_key_is_not_written_where_its_medium_should_be(tmp_path: Path) -> None:
    key = tmp_path / "stick" / "root.key"
    text = said(tmp_path / "s", "init", "--root-key", str(key))
    assert f"there is no directory {key.parent}; mount the medium" in text
    assert not key.parent.exists() and not (tmp_path / "s").exists()
    key.parent.mkdir()
    said(tmp_path / "s", "init", "--root-key", str(key), code=0)
    text = said(tmp_path / "s", "keys", "rotate", "root", "--root-key", str(key), "--new-root-key", str(tmp_path / "no" / "x"))
    assert "mount the medium" in text and not (tmp_path / "no").exists()
    said(tmp_path / "inside", "init", code=0)
    assert (tmp_path / "inside" / "offline" / "root.key").exists()


def test_settings_that_are_missing_can_be_written_again_as_the_text_says(tmp_path: Path) -> None:
    home = made(tmp_path)
    settings = home / "settings.toml"
    before = settings.read_text()
    settings.unlink()
    text = said(home, "agents")
    assert "a server's server.db and master.key are there, so put the file back" in text
    lines = text.split("in that directory: ")[1].strip().split(" and ")
    settings.write_text("\n".join(lines) + "\n")
    settings.chmod(0o600)
    said(home, "agents", code=0)
    assert settings.read_text() == before
    assert "run 'license-server init" in said(tmp_path / "other", "agents")


def test_what_asks_looks_first_whether_there_is_anything_to_ask_about(tmp_path: Path) -> None:
    home = made(tmp_path)
    for command in ("delete", "reinstate", "revoke", "retire"):
        assert "no agent 'nix' is enrolled" in said(home, "agents", command, "nix")
    server = open_server(home)
    make_agents(server.database, 0, 2, NOW)
    server.close()
    active, revoked = agent_id(1), agent_id(0)
    assert "is active: only a revoked agent can be deleted" in said(home, "agents", "delete", active)
    assert f"{active} is active already" in said(home, "agents", "reinstate", active, code=0)
    for arguments in (["agents", "reinstate", revoked], ["clock", "accept"]):
        text = said(home, *arguments)
        assert "nothing was done: this command asks first" in text and "--yes answers" in text and "Aborted" not in text
    assert f"agent {active!r} is not halted" in said(home, "clones", "resume", active)


def test_who_reinstates_an_agent_is_told_to_provision_its_device_again(tmp_path: Path) -> None:
    home = made(tmp_path)
    server = open_server(home)
    make_agents(server.database, 0, 1, NOW)
    server.close()
    text = said(home, "agents", "reinstate", agent_id(0), "--yes", code=0)
    assert "its certificates stay revoked, so provision the device again with a new enrollment token" in text


def test_a_damaged_registry_says_what_to_do(tmp_path: Path) -> None:
    home = made(tmp_path)
    database = home / "server.db"
    for content in (b"this is no database file" * 1000, database.read_bytes()[:100] + b"\xff" * 60_000):
        database.write_bytes(content)
        text = said(home, "agents")
        assert str(database) in text and "its file is damaged: restore a backup with 'license-server restore'" in text, text


@pytest.mark.parametrize(
    ("text", "advice"),
    [("database or disk is full", "make room there"), ("disk I/O error", "its disk is full or fails"), ("locked", None)],
)
def test_a_full_disk_is_said_with_what_to_do(text: str, advice: str | None) -> None:
    found = in_words(sqlite3.OperationalError(text))
    assert found == text if advice is None else found.startswith(text) and advice in found


def test_a_list_can_be_asked_for_as_json_without_its_command(tmp_path: Path) -> None:
    home = made(tmp_path)
    for arguments in (["agents", "--json"], ["--json", "agents"]):
        done = license_server(*arguments, env={"LICENSE_SERVER_DIR": str(home)})
        assert (done.returncode, done.stdout) == (0, "[]\n"), done


def test_a_list_of_tokens_calls_their_numbers_numbers(tmp_path: Path) -> None:
    done = license_server("enrollment-token", "list", env={"LICENSE_SERVER_DIR": str(made(tmp_path))})
    assert done.stdout.startswith("number ")


def test_one_day_is_a_day(tmp_path: Path) -> None:
    done = license_server("retention", "--agents", "1", env={"LICENSE_SERVER_DIR": str(made(tmp_path))})
    assert "('agents delete' removes them): 1 day\n" in done.stdout


def test_a_grace_that_is_over_is_not_shown_as_one() -> None:
    row = SecretRow(3, "GRACE", "", NOW, NOW, NOW + 9, NOW)
    assert [row.shown_state(NOW + after) for after in (8, 9)] == ["GRACE", "GRACE (over)"]


def test_readiness_says_in_words_that_the_database_does_not_answer() -> None:
    def fails() -> str | None:
        raise OperationalError("SELECT 1", None, sqlite3.OperationalError("connection refused"))

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_ops({"keys": fails}, lambda: b""))
        async with httpx.AsyncClient(transport=transport, base_url="http://ops") as client:
            return await client.get("/readyz")

    assert asyncio.run(ask()).json()["checks"] == {"keys": "the database does not answer: connection refused"}


def test_the_log_says_when_the_database_answers_again(caplog: pytest.LogCaptureFixture) -> None:
    class Answers:
        down = True

        def claim(self, _now: int) -> None:
            if self.down:
                raise OperationalError("SELECT 1", None, sqlite3.OperationalError("connection refused"))

    caplog.set_level("INFO", "license_server")
    jobs = Answers()
    runner = Runner(jobs, {"one": lambda _now: None}, lambda: NOW)  # type: ignore[arg-type]
    runner.run()
    jobs.down = False
    runner.run()
    runner.run()
    assert [record.message for record in caplog.records] == ["jobs could not be claimed", "the database answers again"]
    assert "connection refused" in caplog.records[0].fields["text"]  # type: ignore[attr-defined]
