"""`license-server`, command by command, as an administrator meets it: what is printed where, and how it fails."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from sqlalchemy import text as sql

from contracts.audithead import trust_under_root, verify_audit_head
from contracts.jose import BadSignature
from contracts.keyset import pin_of
from contracts.licensetoken import parse_token
from contracts.trust import parse_trust
from server.agents.clones import Report
from server.base.machineclock import read_clocks
from server.cli.keys import keys
from server.keys.pki import spki_of
from server.keys.rootkey import read_root_key
from server.main import entry, main
from server.registry.models.core import Heartbeat
from tests.server.devices import Device, make_csr, public_jwk_of
from tests.support.serverside import open_server


@dataclass(frozen=True)
class Done:
    """What a command did."""

    code: int
    out: str
    err: str

    def json(self) -> "list[dict[str, object]]":
        found: list[dict[str, object]] = json.loads(self.out)
        return found


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the console script; it must end by itself, with words and without a traceback."""

    def run(*arguments: object, code: int | None = 0) -> Done:
        monkeypatch.setattr(sys, "argv", ["license-server", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            entry()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        done = Done(int(ended.value.code or 0), captured.out, captured.err)
        assert code in (None, done.code), done
        return done

    return run


@pytest.fixture
def place(tmp_path: Path, url: str | None, run: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new server, made by the command."""
    monkeypatch.setenv("LICENSE_SERVER_DIR", str(tmp_path / "server"))
    run("init", *([] if url is None else ["--database", url]))
    return tmp_path / "server"


@pytest.fixture
def enrolled(place: Path, run: Run, tmp_path: Path) -> Path:
    """The same with agent `till-1`, which has a secret."""
    request = tmp_path / "request.json"
    key = public_jwk_of(Device(1).agreement)
    request.write_text(json.dumps({"agent_id": "till-1", "agreement_key": key, "backend": "software"}))
    run("enroll", "--request", request)
    run("rotate", "--agent", "till-1")
    return place


def leaves(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in sorted(group.list_commands(context)):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize("path", [path for path, _ in leaves()], ids="-".join)
def test_every_command_has_help(run: Run, path: tuple[str, ...]) -> None:
    text = run(*path, "--help").out
    assert text.startswith(f"Usage: license-server {' '.join(path)}")
    assert len(text.split("\n\n")[1].strip()) > 10


ARGUMENTS = {
    "customers change": ["x"],
    "customers create": ["x"],
    "customers erase": ["x", "--yes"],
    "customers import": [__file__],
    "customers show": ["x"],
    "devices block": ["x"],
    "devices change": ["x", "--name", "y"],
    "devices set": ["x", "a=b"],
    "devices show": ["x"],
    "devices tag": ["y", "x"],
    "devices unblock": ["x", "--yes"],
    "devices unset": ["x", "a"],
    "devices untag": ["y", "x"],
    "fleets add": ["x"],
    "fleets alerts acknowledge": ["fa-0123456789ab"],
    "fleets alerts show": ["fa-0123456789ab"],
    "fleets alerts silence": ["--until", "+1h"],
    "fleets alerts unsilence": ["fs-0123456789ab"],
    "fleets change": ["x", "--name", "y"],
    "fleets configuration": ["x"],
    "fleets configure": ["x", "--set", "updates.notice_h=48"],
    "fleets delete": ["x", "--yes"],
    "fleets certificates": ["x"],
    "fleets drift": ["x"],
    "fleets match": ["tag=x"],
    "fleets opens": ["x"],
    "fleets members add": ["x", "y"],
    "fleets members remove": ["x", "y"],
    "fleets health": ["x"],
    "fleets observations": ["x"],
    "fleets show": ["x"],
    "fleets thresholds set": ["x", "--window", "3"],
    "fleets thresholds show": ["x"],
    "entitlements change": ["x"],
    "entitlements create": ["x", "--name", "y"],
    "rollouts automatic off": ["x", "y"],
    "rollouts automatic on": ["x", "y", "--yes"],
    "rollouts create": ["x", "--fleet", "x", "--package", "x/y"],
    "rollouts pause": ["x"],
    "rollouts policy": ["x"],
    "rollouts rehearse": ["x"],
    "rollouts resume": ["x"],
    "rollouts rollback": ["x", "y", "--yes"],
    "rollouts show": ["x"],
    "rollouts start": ["x", "--yes"],
    "rollouts stop": ["x", "--yes"],
    "licenses assign": ["x", "--agent", "x"],
    "licenses history": ["x"],
    "licenses import": [__file__],
    "licenses issue-many": ["--count", "1", "--batch", "x", "--policy", "y"],
    "licenses issue": ["--agent", "x", "--expires", "+1d"],
    "licenses reinstate": ["x"],
    "licenses release": ["x"],
    "licenses renew": ["x"],
    "licenses revoke": ["x"],
    "agents assign": ["x"],
    "seats free": ["x", "--yes"],
    "seats set": ["x", "--seats", "1"],
    "seats show": ["x"],
    "licenses show": ["x"],
    "licenses suspend": ["x"],
    "licenses transfer": ["x", "--agent", "x"],
    "licenses upgrade": ["x", "--policy", "y"],
    "policies change": ["x"],
    "policies create": ["x", "--product", "y", "--name", "z"],
    "policies retire": ["x"],
    "policies show": ["x"],
    "products change": ["x", "--name", "y"],
    "products create": ["x", "--name", "y"],
    "products retire": ["x"],
    "sites change": ["x"],
    "sites create": ["x", "--customer", "y"],
    "sites import": [__file__],
    "accounts make": ["x", "--kind", "person", "--role", "viewer"],
    "accounts change": ["x", "--state", "disabled"],
    "accounts certificates": ["x"],
    "accounts revoke-certificate": ["ab"],
    "accounts token": ["x", "--scope", "agents:read"],
    "accounts tokens": ["x"],
    "accounts rotate-token": ["aaaaaaaaaaaa"],
    "accounts revoke-token": ["aaaaaaaaaaaa"],
    "approvals approve": ["ab"],
    "approvals refuse": ["ab"],
    "break-glass begin": ["--why", "nobody is there"],
    "break-glass end": ["ab"],
    "accounts subject": ["x", "--none"],
    "agents keys": ["x", "identity"],
    "agents revoke": ["x"],
    "agents revoke-many": ["x"],
    "agents replace": ["x", "y", "--yes"],
    "agents reinstate": ["x", "--yes"],
    "agents retire": ["x"],
    "agents show": ["x"],
    "agents delete": ["x", "--yes"],
    "audit-head": ["--agent", "x"],
    "clones resume": ["x", "--yes"],
    "enrollment-token revoke": ["1"],
    "issue": ["--agent", "x", "--expires", "+1d"],
    "keys revert": ["tls"],
    "keys rotate": ["tls"],
    "keys use-next": ["license"],
    "ota change-root": ["--out", "never"],
    "ota change-targets": ["--out", "never"],
    "ota bundle": ["x", "pos/y", "--for-days", "1", "--out", "never.bundle"],
    "ota export": ["never"],
    "ota publish": ["."],
    "ota assign": ["x", "pos/y"],
    "ota pause": ["x"],
    "ota resume": ["x"],
    "ota status": ["x"],
    "ota trust": ["x", "--hardware", "till"],
    "ota withdraw": ["x"],
    "reissue": ["--agent", "x"],
    "revoke": ["x"],
    "rotate": ["--agent", "x"],
    "secrets invalidate": ["--agent", "x", "1"],
    "secrets list": ["--agent", "x"],
    "secrets rotate": ["--all"],
    "ddi credentials revoke": ["aaaaaaaaaaaa", "--yes"],
    "ddi devices add": ["x"],
    "ddi devices revoke": ["x", "--yes"],
    "ddi devices token": ["x"],
    "ddi gateway-token": ["x"],
    "ddi policy set": ["x"],
    "ddi policy show": ["x"],
    "webhooks add": ["https://shop.example/"],
    "webhooks dead-letters": ["x"],
    "webhooks new-secret": ["x"],
    "webhooks pause": ["x"],
    "webhooks remove": ["x"],
    "webhooks resume": ["x"],
    "webhooks retry": ["x"],
    "webhooks set": ["x", "--url", "https://shop.example/"],
    "webhooks test": ["x"],
    "sign-time": ["--agent", "x", "--challenge", "ab" * 16],
}
OTHERWISE = {
    ("init",),
    ("serve",),
    ("enroll",),
    ("openapi",),
    ("tls-files",),
    ("accounts", "certify"),
    ("ddi", "devices", "certificate"),
    ("keys", "end"),
    ("keys", "prepare"),
    ("accounts", "oidc", "set"),
    ("backup",),
    *(("ota", name) for name in ("add", "check", "init", "new-key", "prolong", "promote", "revoke", "sign")),
    ("restore",),
}
"""They need no server, or more than these arguments: they have tests of their own."""


@pytest.mark.parametrize("path", [path for path, _ in leaves() if path not in OTHERWISE], ids="-".join)
def test_every_command_tells_that_there_is_no_server(run: Run, tmp_path: Path, path: tuple[str, ...]) -> None:
    done = run(*path, "--dir", tmp_path, *ARGUMENTS.get(" ".join(path), []), code=1)
    assert done.out == ""
    assert "run 'license-server init" in done.err


def test_many_agents_are_revoked_at_once_or_none(place: Path, run: Run, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        request = {
            "agent_id": f"till-{number}",
            "agreement_key": public_jwk_of(Device(number).agreement),
            "backend": "software",
        }
        (tmp_path / "request.json").write_text(json.dumps(request))
        run("enroll", "--request", tmp_path / "request.json")
    named = tmp_path / "stolen"
    named.write_text("till-2\n\n  till-3  \nnobody\n")
    assert "no agent 'nobody'" in run("agents", "revoke-many", "till-1", "--file", named, code=1).err
    assert "name 1 to 1000" in run("agents", "revoke-many", code=2).err
    named.write_text("till-2\r\ntill-3\r\ntill-2\r\n")
    assert run("agents", "revoke-many", "till-1", "--file", named).err == "revoked 3 agents\n"
    assert {row["status"] for row in run("agents", "list", "--json").json()} == {"revoked"}


def test_a_key_is_ended_once_it_is_retired_and_with_the_root_key_only(place: Path, run: Run) -> None:
    def licenses() -> dict[object, object]:
        return {row["kid"]: row["state"] for row in run("keys", "list", "--json").json() if row["kind"] == "license"}

    root = ("--root-key", place / "offline" / "root.key")
    (old,) = licenses()
    assert "give the root's key with --root-key" in run("keys", "end", "--id", str(old), code=1).err
    assert "in use" in run("keys", "end", "--id", str(old), *root, code=1).err
    assert "no key 'x'" in run("keys", "end", "--id", "x", *root, code=1).err
    run("keys", "rotate", "license", *root)
    run("keys", "end", "--id", str(old), *root)
    assert licenses()[old] == "ended"


def test_a_server_is_made_and_tells_what_to_do_with_its_root(place: Path, run: Run, tmp_path: Path) -> None:
    assert (place / "offline" / "root.key").stat().st_mode & 0o777 == 0o600
    assert "not overwritten" in run("init", code=1).err
    (tmp_path / "away").mkdir()
    done = run("init", "--dir", tmp_path / "other", "--root-key", tmp_path / "away" / "root.key")
    assert done.out == ""
    assert f"move the root key {tmp_path}/away/root.key" in done.err
    assert "NOTICE: the root key's file is not encrypted" in done.err
    (tmp_path / "phrase").write_text("a phrase\n")
    keys = ["--root-key", tmp_path / "third.key", "--root-passphrase-file", tmp_path / "phrase"]
    assert "NOTICE" not in run("init", "--dir", tmp_path / "third", *keys).err
    assert read_root_key(tmp_path / "third.key", b"a phrase")


def test_init_fails_in_words(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cases: list[tuple[list[object], int, str]] = [
        (["--dir", tmp_path / "a", "--database", "mysql://x/y"], 1, "must be SQLite or PostgreSQL"),
        (["--dir", tmp_path / "b", "--database", "x"], 1, "is not a database URL"),
        (["--dir", tmp_path / "c", "--database", "postgresql+psycopg:///x?host=/nonexistent"], 1, "database"),
        (["--dir", tmp_path / "file"], 2, "is a file"),
        (["--dir", tmp_path / "d", "--master-key", "pkcs11:token=a"], 1, "has no module-path"),
        (["--dir", tmp_path / "e", "--interval", "0"], 2, "--interval"),
        (["--dir", tmp_path / "f", "--root-key", tmp_path / "file"], 1, "not overwritten"),
        ([], 2, "Missing option '--dir'"),
    ]
    for arguments, code, text in cases:
        done = run("init", *arguments, code=code)
        assert text in done.err


def test_a_pin_is_that_of_the_root(place: Path, run: Run) -> None:
    server = open_server(place)
    root = x509.load_pem_x509_certificates(server.keys.tls_material()[0].encode())[-1]
    server.close()
    assert run("root-pin").out == pin_of(spki_of(root)) + "\n"
    assert x509.load_pem_x509_certificates(run("root-certificate").out.encode()) == [root]
    out = place / "server-root.pem"
    run("root-certificate", "--out", out)
    assert out.read_text() == run("root-certificate").out


def test_enrollment_tokens_are_made_listed_and_revoked(place: Path, run: Run, tmp_path: Path) -> None:
    text = run("enrollment-token", "make").out.strip()
    assert len(text) >= 32
    out = tmp_path / "claim"
    run("enrollment-token", "make", "--hw-id", "ab" * 32, "--factory-only", "--lifetime", 60, "--out", out)
    assert len(out.read_text().strip()) >= 32
    rows = run("enrollment-token", "list", "--json").json()
    assert [(row["claim_id"], row["state"], row["hw_id"], row["factory_only"]) for row in rows] == [
        (2, "open", "ab" * 32, True),
        (1, "open", None, False),
    ]
    run("enrollment-token", "revoke", 1)
    table = run("enrollment-token", "list").out
    assert "revoked" in table
    assert text not in table
    assert "no enrollment token 9" in run("enrollment-token", "revoke", 9, code=1).err
    assert "64 characters" in run("enrollment-token", "make", "--hw-id", "AB" * 32, code=1).err
    run("enrollment-token", "make", "--lifetime", 59, code=2)
    run("enrollment-token", "make", "--out", "/nonexistent/x", code=2)
    assert len(run("enrollment-token", "list", "--json").json()) == 2


def test_the_former_name_of_enrollment_token_works_and_is_in_no_help(place: Path, run: Run) -> None:
    assert len(run("claim", "make").out.strip()) >= 32
    run("claim", "revoke", 1)
    assert [row["state"] for row in run("enrollment-token", "list", "--json").json()] == ["revoked"]
    listed = [line.split()[0] for line in run("--help").out.partition("Commands:")[2].splitlines() if line]
    assert "enrollment-token" in listed and "claim" not in listed


def test_agents_are_listed_shown_revoked_and_reinstated(enrolled: Path, run: Run) -> None:
    (row,) = run("agents", "list", "--json").json()
    assert (row["agent_id"], row["serial"], row["status"], row["attestation"]) == ("till-1", None, "active", "software")
    assert "till-1" in run("agents").out
    assert "secrets:      1 ACTIVE" in run("agents", "show", "till-1").out
    shown = json.loads(run("agents", "show", "till-1", "--json").out)
    assert (shown["agent_id"], [version["state"] for version in shown["secrets"]]) == ("till-1", ["ACTIVE"])
    assert "sealed" not in shown["secrets"][0]
    run("agents", "revoke", "till-1")
    assert "revoked" in run("agents").out
    assert "is revoked; only active agents get licenses" in run("issue", "--agent", "till-1", "--expires", "+1d", code=1).err
    run("agents", "reinstate", "till-1", code=1)  # nobody said yes
    assert run("agents", "list", "--json").json()[0]["status"] == "revoked"
    run("agents", "reinstate", "till-1", "--yes")
    assert run("agents", "list", "--json").json()[0]["status"] == "active"
    for act in ("show", "revoke", "reinstate"):
        yes = ["--yes"] if act == "reinstate" else []
        assert "no agent 'ghost' is enrolled" in run("agents", act, "ghost", *yes, code=1).err


def test_a_halted_agent_is_listed_and_resumed(enrolled: Path, run: Run) -> None:
    assert run("clones", "list", "--json").json() == []
    assert "is not halted" in run("clones", "resume", "till-1", "--yes", code=1).err
    server = open_server(enrolled)
    server.clones.observe("till-1", Report(3, 900), 1000)
    assert server.clones.observe("till-1", Report(2, 1001), 2000) == "secret version 2 came back after version 3"
    server.close()
    done = run("clones")
    assert "till-1" in done.out and "1970-01-31 00:33:20Z (0 days left)" in done.out
    assert "license-server clones resume" in done.err
    (row,) = run("clones", "list", "--json").json()
    assert (row["agent_id"], row["since"], row["evidence"]) == ("till-1", 2000, "secret version 2 came back after version 3")
    assert "are halted" in run("rotate", "--agent", "till-1", code=1).err
    run("clones", "resume", "till-1", code=1)  # nobody said yes
    run("clones", "resume", "till-1", "--yes")
    assert run("clones", "list", "--json").json() == []
    run("rotate", "--agent", "till-1")


def test_secrets_are_listed_demanded_and_destroyed(enrolled: Path, run: Run) -> None:
    run("rotate", "--agent", "till-1", "--interval", 100, "--grace", 50)
    rows = run("secrets", "list", "--agent", "till-1", "--json").json()
    assert [(row["version"], row["state"]) for row in rows] == [(1, "GRACE"), (2, "ACTIVE")]
    assert int(str(rows[1]["valid_until"])) - int(str(rows[1]["valid_from"])) == 100
    assert "1 agents will rotate" in run("secrets", "rotate", "--all").err
    assert "1 agents will rotate" in run("secrets", "rotate", "--agent", "till-1").err
    run("secrets", "invalidate", "--agent", "till-1", 1)
    assert "INVALIDATED" in run("secrets", "--agent", "till-1").out
    assert "no secret version 9" in run("secrets", "invalidate", "--agent", "till-1", 9, code=1).err
    for arguments in ([], ["--all", "--agent", "till-1"]):
        assert "Name one agent with --agent, or all with --all" in run("secrets", "rotate", *arguments, code=2).err
    assert "'ghost'" in run("secrets", "list", "--agent", "ghost", code=1).err
    assert "'ghost'" in run("secrets", "rotate", "--agent", "ghost", code=1).err


def test_licenses_are_issued_reissued_and_revoked(enrolled: Path, run: Run) -> None:
    token = run("issue", "--agent", "till-1", "--expires", "+30d", "--license-id", "one", "--metadata", "a=b=c").out.strip()
    assert parse_token(token).version == 1
    run("rotate", "--agent", "till-1")
    (again,) = run("reissue", "--agent", "till-1").out.split()
    assert parse_token(again).version == 2
    run("revoke", "one")
    assert run("reissue", "--agent", "till-1").out.strip() == ""
    assert (
        "is revoked; choose another id"
        in run("issue", "--agent", "till-1", "--expires", "+1d", "--license-id", "one", code=1).err
    )
    assert "no license 'two'" in run("revoke", "two", code=1).err
    for arguments, code, text in (
        (["--expires", "soon"], 2, "--expires"),
        (["--expires", "+1d", "--metadata", "novalue"], 2, "NAME=VALUE"),
        (["--expires", "+1d", "--not-before", "+2d"], 1, "give a later end"),
        (["--expires", "+1d", "--secret-version", "7"], 1, "no secret version 7"),
    ):
        assert text in run("issue", "--agent", "till-1", *arguments, code=code).err


def test_a_license_tells_when_it_ends(enrolled: Path, run: Run) -> None:
    done = run("issue", "--agent", "till-1", "--expires", "2090-01-31", "--not-before", "2090-01-01", "--license-id", "one")
    assert done.err == "license one: valid from 2090-01-01 00:00:00Z until 2090-02-01 00:00:00Z\n"
    options = ("--agent", "till-1", "--expires", "2090-01-31", "--license-id", "two")
    assert (
        "until 2090-01-31 23:00:00Z (2090-02-01 00:00:00 Europe/Berlin)"
        in run("issue", *options, "--zone", "Europe/Berlin").err
    )
    assert "is not a time zone" in run("issue", *options, "--zone", "Berlin", code=2).err


def test_time_is_signed(enrolled: Path, run: Run) -> None:
    assert run("sign-time", "--agent", "till-1", "--challenge", "ab" * 16).out.count(".") == 2
    assert "32 characters" in run("sign-time", "--agent", "till-1", "--challenge", "x", code=1).err


def test_an_agents_head_and_keys_are_handed_out(enrolled: Path, run: Run, tmp_path: Path) -> None:
    run("audit-head", "--agent", "till-1", "--out", tmp_path / "head")
    statement, key_set = (tmp_path / "head").read_text().split()
    head = verify_audit_head(statement, parse_trust(run("trust").out.encode()))
    assert (head.agent_id, head.seq, head.head, head.last_contact) == ("till-1", None, None, None)
    under, _ = trust_under_root(key_set, run("root-pin").out.strip())
    assert verify_audit_head(statement, under) == head
    with pytest.raises(BadSignature):
        trust_under_root(key_set, "sha256:" + "0" * 64)
    assert "audit_head.signed" in run("audit").out
    for name in ("identity", "attestation"):
        shown = run("agents", "keys", "till-1", name, code=None)
        known = getattr(head, name)
        assert (shown.code, known is None) in ((0, False), (1, True))
        if known is None:
            assert f"no {name} key of agent 'till-1' is registered" in shown.err
        else:
            key = load_pem_public_key(shown.out.encode())
            assert key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint) == known
    for command in (["audit-head", "--agent", "ghost"], ["agents", "keys", "ghost", "identity"]):
        assert "no agent 'ghost' is enrolled" in run(*command, code=1).err


def test_keys_are_listed_and_rotated(place: Path, run: Run, tmp_path: Path) -> None:
    root = place / "offline" / "root.key"
    rows = run("keys", "list", "--json").json()
    assert sorted(str(row["kind"]) for row in rows) == ["enrollment", "issuing-ca", "license", "root", "rotation", "tls"]
    assert "ROTATE SOON" not in run("keys", "list").out
    assert "the tls key is now" in run("keys", "rotate", "tls", "--name", "new.example").err
    assert "--root-key" in run("keys", "rotate", "license", code=1).err
    for kind in ("license", "rotation", "enrollment", "issuing-ca"):
        run("keys", "rotate", kind, "--root-key", root)
    states = [str(row["state"]) for row in run("keys", "list", "--json").json() if row["kind"] == "license"]
    assert sorted(states) == ["active", "retired"]
    pin = run("root-pin").out
    new = run("keys", "rotate", "root", "--root-key", root, "--new-root-key", tmp_path / "new.key").out
    assert new != pin
    assert run("root-pin").out == new
    run("keys", "rotate", "issuing-ca", "--root-key", tmp_path / "new.key")
    run("keys", "rotate", "all", code=2)
    (tmp_path / "not.key").write_text("x")
    for key, text in ((tmp_path / "none", "No such file"), (tmp_path / "not.key", "has no private key")):
        assert text in run("keys", "rotate", "license", "--root-key", key, code=1).err
    assert "--new-root-key" in run("keys", "rotate", "root", "--root-key", root, code=1).err


def test_keys_that_end_soon_are_marked(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    later = keys.now() + 151 * 86_400
    monkeypatch.setattr(keys, "now", lambda: later)
    marked = [line.split()[0] for line in run("keys", "list").out.splitlines() if "ROTATE SOON" in line]
    assert sorted(marked) == ["license", "rotation"]


def test_the_master_key_is_shown_and_rotated(place: Path, run: Run, tmp_path: Path) -> None:
    before = (place / "master.key").read_bytes()
    assert f"file {place}/master.key, in use since" in run("master-key", "show").out
    run("master-key", "rotate")
    assert (place / "master.key").read_bytes() != before
    run("master-key", "rotate", "--to", tmp_path / "new.key", "--keep-old")
    shown = json.loads(run("master-key", "show", "--json").out)
    assert (shown["kind"], shown["others"]) == (f"file {tmp_path}/new.key", [f"file {place}/master.key"])
    assert "still opens the registry too" in run("master-key", "show").out
    assert "1 others were removed" in run("master-key", "finish").err
    assert "already" in run("master-key", "rotate", "--to", tmp_path / "new.key", code=1).err
    (tmp_path / "new.key").chmod(0o644)
    assert "chmod 0600" in run("agents", code=1).err
    (tmp_path / "new.key").chmod(0o600)
    (tmp_path / "new.key").write_bytes(before)
    for command in (("agents",), ("master-key", "show"), ("master-key", "rotate"), ("master-key", "finish")):
        assert "is not the one of this registry" in run(*command, code=1).err


def test_the_audit_is_printed_and_verified(enrolled: Path, run: Run) -> None:
    rows = run("audit", "--json", "-n", 3).json()
    assert [row["event"] for row in rows] == ["agent.enrolled", "secret.made", "secret.confirmed"]
    assert "server.founded" in run("audit").out
    assert run("audit", "--verify").out == "4 records hold\n"
    server = open_server(enrolled)
    with server.database.write() as session:
        session.execute(sql("UPDATE audit SET actor = 'nobody' WHERE seq = 2"))
    server.close()
    assert "1 records hold, then: record 2 was changed" in run("audit", "--verify", code=1).err
    run("audit", "-n", 0, code=2)


def test_a_database_of_another_revision_is_migrated_by_command_only(place: Path, run: Run) -> None:
    assert "has revision" in run("migrate").err
    server = open_server(place)
    with server.database.write() as session:
        session.execute(sql("DELETE FROM alembic_version"))
    server.close()
    assert "run 'license-server migrate'" in run("agents", code=1).err


@pytest.mark.parametrize(
    "content", ["", "database = 1", "x = [", 'database = "sqlite:////x"\nmaster_key = "/x"\nfurther = 1', "\xff"]
)
def test_bad_settings_are_told(run: Run, tmp_path: Path, content: str) -> None:
    (tmp_path / "settings.toml").write_bytes(content.encode("latin-1"))
    assert f"{tmp_path}/settings.toml" in run("agents", "--dir", tmp_path, code=1).err


def test_what_a_request_lacks_is_told(place: Path, run: Run, tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    for content, text in (("{", "not JSON"), ("[]", "is not an enrollment request"), ("{}", "no valid agent_id")):
        request.write_text(content)
        assert text in run("enroll", "--request", request, code=1).err
    run("enroll", "--request", tmp_path / "none", code=2)


def test_the_retention_is_shown_changed_and_applied(place: Path, run: Run) -> None:
    assert "audit records, after they were written: 1096 days" in run("retention").out
    shown = run("retention", "--audit", "0", "--secrets", "30").out
    assert "written: for ever" in shown and "grace: 30 days" in shown
    assert "from 401" in run("retention", "--certificates", "400", code=1).err
    assert json.loads(run("retention", "--apply", "--json").out) == {
        "days": {
            "audit": 0,
            "certificates": 420,
            "secrets": 30,
            "enrollment_tokens": 90,
            "agents": 90,
            "retired_agents": 420,
            "events": 90,
            "usage": 1096,
        },
        "removed": {},
    }
    changed = [line for line in run("audit", "--json").json() if line["event"] == "retention.set"]
    assert len(changed) == 1 and {"audit": 0, "secrets": 30}.items() <= dict(changed[0]["fields"]).items()  # type: ignore[call-overload]


def test_devices_that_speak_ddi_are_added_and_given_tokens_and_certificates(place: Path, run: Run, tmp_path: Path) -> None:
    assert "ddi devices token till-1" in run("ddi", "devices", "add", "till-1", "--name", "front", "--hardware", "pos-x200").err
    assert "already" in run("ddi", "devices", "add", "till-1", code=1).err
    text = run("ddi", "devices", "token", "till-1").out.strip()
    assert text.startswith("ddt_")
    (device,) = run("ddi", "devices", "list", "--json").json()
    assert (device["device_id"], device["name"], device["seen_at"]) == ("till-1", "front", None)
    csr = tmp_path / "till.csr"
    csr.write_text(make_csr(ec.generate_private_key(ec.SECP256R1())))
    chain = x509.load_pem_x509_certificates(run("ddi", "devices", "certificate", "till-1", "--csr", csr).out.encode())
    assert len(chain) == 2
    chain[0].verify_directly_issued_by(chain[1])
    found = run("ddi", "credentials", "list", "--device", "till-1", "--json").json()
    assert sorted(each["kind"] for each in found) == ["certificate", "target"]
    assert text not in json.dumps(found)
    target = next(each["credential_id"] for each in found if each["kind"] == "target")
    run("ddi", "credentials", "revoke", target, "--yes")
    assert "revoked already" in run("ddi", "credentials", "revoke", target, "--yes", code=1).err
    assert "1 revoked" in run("ddi", "devices", "revoke", "till-1", "--yes").err
    assert "revoked" in run("ddi", "credentials", "list").out
    assert "there is no device" in run("ddi", "devices", "token", "till-2", code=1).err
    assert "there is no fleet 'x'" in run("ddi", "gateway-token", "x", code=1).err
    assert "there is no fleet 'x'" in run("ddi", "policy", "set", "x", "--version-attribute", "pos=version", code=1).err
    assert "versions" in run("ddi", "policy", "set", "x", "--version-attribute", "POS=version", code=1).err


def test_an_agent_is_retired_shown_so_and_taken_back(enrolled: Path, run: Run) -> None:
    run("issue", "--agent", "till-1", "--expires", "+9d", "--license-id", "one")
    said = run("agents", "retire", "till-1").err
    assert said.startswith("retired till-1 with 1 license; it stays in the registry for 420 days after ")
    assert run("agents", "list", "--json", "--status", "retired").json()[0]["status"] == "retired"
    assert run("agents", "list", "--json", "--status", "revoked").json() == []
    table, page = run("agents").out, run("agents", "show", "till-1").out
    assert "retired" in table and "revoked" not in table
    assert "status:       retired" in page and "retired at:" in page and "one, agent retired, until" in page
    assert "NOTICE: it is retired: the server refuses its requests, and its licenses ended with it" in page
    assert "is retired and gets no secret" in run("rotate", "--agent", "till-1", code=1).err
    assert "is retired; only active agents get licenses" in run("issue", "--agent", "till-1", "--expires", "+9d", code=1).err
    run("agents", "reinstate", "till-1", "--yes")
    assert run("licenses", "list", "--json").json()[0]["state"] == "active"


# The server's own clock


def test_the_clock_is_shown_and_accepted(place: Path, run: Run) -> None:
    shown = run("clock", "show")
    assert "trusted: there is no heartbeat yet" in shown.out and "last heartbeat: -" in shown.out
    server = open_server(place)
    server.server.clock.beat()
    with server.database.write() as session:
        session.add(Heartbeat(process="wrong", at=2_500_000_000, boot_id="other", boot_ms=1, synchronized=False))
    server.close()
    accepted = run("clock", "accept", "--yes")
    assert "the clock was ahead before, until 2049-03-22" in accepted.err
    found = json.loads(run("clock", "show", "--json").out)
    assert (found["trusted"], found["finding"]) == (True, "no_step") and abs(found["last_heartbeat"] - found["time"]) < 60
    assert any("clock.accepted" in line for line in run("audit").out.splitlines())


def test_a_clock_that_is_not_trusted_stops_every_command_that_signs(enrolled: Path, run: Run, tmp_path: Path) -> None:
    run("issue", "--agent", "till-1", "--expires", "+30d")
    server = open_server(enrolled)
    reading = read_clocks()
    with server.database.write() as session:
        session.add(
            Heartbeat(
                process="before",
                at=int(reading.wall) - 8 * 86_400,
                boot_id=reading.boot_id,
                boot_ms=int(reading.boot_s * 1000) - 60_000,
                synchronized=True,
            )
        )
    server.close()
    says = "the server's clock has jumped by 7 days"
    assert says in run("clock", "show", code=1).out
    root = str(enrolled / "offline" / "root.key")
    for command in (
        ("issue", "--agent", "till-1", "--expires", "+30d"),
        ("rotate", "--agent", "till-1"),
        ("reissue", "--agent", "till-1"),
        ("sign-time", "--agent", "till-1", "--challenge", "0" * 32),
        ("keys", "rotate", "tls"),
        ("keys", "rotate", "license", "--root-key", root),
    ):
        failed = run(*command, code=1)
        assert says in failed.err and "license-server clock accept" in failed.err, command
    run("agents", "list")
    run("clock", "accept", "--yes")
    run("rotate", "--agent", "till-1")
