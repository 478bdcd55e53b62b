"""The commands for operators, and what the command line of the server's machine may do once there are administrators."""

import json
import stat
from contextlib import closing
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from server.licensing.secrets import demand
from tests.server.devices import Device
from tests.support.serverside import open_server
from tests.support.servertool import Done, license_server


@pytest.fixture
def place(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return directory


def run(place: Path | None, *arguments: object, code: int = 0) -> Done:
    env = {} if place is None else {"LICENSE_SERVER_DIR": str(place)}
    done = license_server(*map(str, arguments), env=env)
    assert done.returncode == code, done
    return done


def administrator(place: Path, tmp_path: Path, name: str = "root") -> tuple[Path, Path]:
    """Makes one, as an installation begins: on the server's machine, without anything else."""
    certificate, key = tmp_path / f"op-{name}.pem", tmp_path / f"op-{name}.key"
    run(place, "accounts", "make", name, "--kind", "person", "--role", "administrator")
    run(place, "accounts", "certify", name, "--key", key, "--out", certificate)
    return certificate, key


def agent(place: Path) -> str:
    server = open_server(place)
    try:
        found: str = Device(1).come(server).agent_id
    finally:
        server.close()
    return found


def records(place: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(run(place, "audit", "--json").stdout)
    return found


def test_the_first_administrator_gets_a_key_and_a_certificate(place: Path, tmp_path: Path) -> None:
    certificate, key = administrator(place, tmp_path)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    made = x509.load_pem_x509_certificate(certificate.read_bytes())
    assert made.public_key() == load_pem_private_key(key.read_bytes(), None).public_key()
    (row,) = json.loads(run(place, "accounts", "list", "--json").stdout)
    assert (row["name"], row["role"], row["state"]) == ("root", "administrator", "active")
    assert "root" in run(place, "accounts", "list").stdout
    (listed,) = json.loads(run(place, "accounts", "certificates", "root", "--json").stdout)
    assert listed["number"] == f"{made.serial_number:x}"


def test_a_certificate_never_replaces_a_file_and_leaves_no_key_behind(place: Path, tmp_path: Path) -> None:
    certificate, key = administrator(place, tmp_path)
    before = key.read_bytes()
    other = tmp_path / "other"
    forced = ("--local", "--reason", "test")
    said = run(place, *forced, "accounts", "certify", "root", "--key", other, "--out", certificate, code=1).stderr
    assert "already exists" in said
    said = run(place, *forced, "accounts", "certify", "root", "--key", key, "--out", other, code=1).stderr
    assert "already exists" in said
    assert key.read_bytes() == before
    said = run(place, *forced, "accounts", "certify", "nobody", "--key", other, "--out", tmp_path / "x", code=1).stderr
    assert "there is no account 'nobody'" in said
    assert not other.exists()


def test_without_administrators_everything_is_as_before(place: Path) -> None:
    agent_id = agent(place)
    run(place, "agents", "revoke", agent_id)
    run(place, "agents", "reinstate", agent_id, "--yes", "--reason", "found again")
    record = records(place)[-1]
    fields = record["fields"]
    assert isinstance(fields, dict)
    assert (record["event"], fields["why"]) == ("agent.status", "found again")
    assert "os_user" in fields


def test_once_there_is_an_administrator_a_local_change_needs_a_reason_and_is_an_alert(place: Path, tmp_path: Path) -> None:
    agent_id = agent(place)
    administrator(place, tmp_path)
    for options in ((), ("--local",), ("--reason", "because")):
        said = run(place, *options, "agents", "revoke", agent_id, code=1).stderr
        assert "this server has administrators" in said
        assert "--server URL --auth-cert FILE" in said
    run(place, "agents", "list")  # reading needs neither
    run(place, "agents", "revoke", agent_id, "--local", "--reason", "nobody can be reached")
    alert, status = records(place)[-2:]
    assert (alert["event"], alert["outcome"]) == ("act.local", "alert")
    assert isinstance(alert["fields"], dict)
    assert alert["fields"]["act"] == "agents revoke"
    assert alert["fields"]["why"] == "nobody can be reached"
    assert status["event"] == "agent.status"


@pytest.mark.parametrize(
    "command",
    [
        ("secrets", "rotate", "--all"),
        ("keys", "rotate", "tls"),
        ("enrollment-token", "make"),
        ("accounts", "make", "x", "--kind", "person", "--role", "viewer"),
    ],
    ids=" ".join,
)
def test_every_kind_of_local_change_is_bound_by_that(place: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    administrator(place, tmp_path)
    before = len(records(place))
    assert "this server has administrators" in run(place, *command, code=1).stderr
    assert len(records(place)) == before
    run(place, *command, "--local", "--reason", "a test")


@pytest.mark.parametrize(
    "command",
    [
        ("agents", "revoke", "ghost"),
        ("secrets", "invalidate", "--agent", "ghost", "9"),
        ("secrets", "rotate", "--all", "--resume"),
        ("keys", "use-next", "license"),
        ("clones", "resume", "ghost", "--yes"),
        ("revoke", "ghost"),
    ],
    ids=" ".join,
)
def test_a_local_change_that_fails_is_no_alert(place: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    administrator(place, tmp_path)
    before = len(records(place))
    run(place, *command, "--local", "--reason", "a test", code=1)
    assert len(records(place)) == before


def test_a_rotation_of_all_is_one_alert_however_many_transactions_it_takes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demand, "BATCH", 1)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    with closing(open_server(place)) as server:
        for number in range(3):
            Device(number).come(server)
    administrator(place, tmp_path)
    assert "3 agents" in run(place, "secrets", "rotate", "--all", "--local", "--reason", "a test").stderr
    assert [each["event"] for each in records(place)][-3:] == ["act.local", "rotation.demanded", "rotation.demanded"]


def test_what_keeps_the_server_alive_needs_no_administrator(place: Path, tmp_path: Path) -> None:
    administrator(place, tmp_path)
    run(place, "backup", "--out", tmp_path / "b.gz")
    run(place, "migrate")


def test_a_token_is_printed_once_replaced_and_revoked(place: Path, tmp_path: Path) -> None:
    run(place, "accounts", "make", "shop", "--kind", "program", "--role", "issuer")
    text = run(place, "accounts", "token", "shop", "--scope", "licenses:write").stdout.strip()
    assert text.startswith("lsp_")
    (row,) = json.loads(run(place, "accounts", "tokens", "shop", "--json").stdout)
    assert row["scopes"] == ["licenses:write"]
    assert text not in json.dumps(row)
    newer = run(place, "accounts", "rotate-token", row["token_id"], "--overlap", "0").stdout.strip()
    assert newer != text
    run(place, "accounts", "revoke-token", newer.split("_")[1])
    # Both: what one of a line is revoked for, the others of it are not trusted with either.
    states = [each["state"] for each in json.loads(run(place, "accounts", "tokens", "shop", "--json").stdout)]
    assert states == ["revoked", "revoked"]


def test_the_last_administrator_stays(place: Path, tmp_path: Path) -> None:
    administrator(place, tmp_path)
    forced = ("--local", "--reason", "a test")
    said = run(place, *forced, "accounts", "change", "root", "--state", "removed", code=1).stderr
    assert "last administrator" in said


def test_a_command_says_which_server_is_missing(place: Path, tmp_path: Path) -> None:
    said = run(None, "accounts", "list", code=1).stderr
    assert f"write {tmp_path}/config/license-server/client.toml" in said
    settings = tmp_path / "config" / "license-server" / "client.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text('servr = "https://x"\n')
    assert "needs 'server'" in run(None, "accounts", "list", code=1).stderr
    settings.write_text('server = "http://x"\n')
    assert "write https://HOST:PORT" in run(None, "accounts", "list", code=1).stderr
    settings.write_text('server = "https://127.0.0.1:1"\n')
    assert "sign in with a certificate" in run(None, "accounts", "list", code=1).stderr
    assert "give one of them" in run(place, "--local", "--server", "https://x", "accounts", "list", code=1).stderr


def test_a_wrong_value_is_named(place: Path) -> None:
    assert "name: may have lower case letters, digits" in run(place, "accounts", "tokens", "A B", code=1).stderr
