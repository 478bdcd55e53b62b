"""What people do wrong, or what happens to them: a registry that is not there, odd files, an address twice."""

from pathlib import Path

from server.wiring import Plan, create_server
from tests.server.devices import ISSUER, NOW
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
