"""The repository of updates, command by command, as holders of keys, CI and the server's administrator meet it."""

import io
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tuf.api.exceptions import RepositoryError

from common.files import write_atomic
from server.base.settings import SETTINGS, Place, settings_of
from server.main import entry
from server.ota.repository import Repository
from server.registry.database import sqlite_url
from server.serving import keep_updates
from tests.server.devices import Device, public_jwk_of
from tests.server.ota.vendor import Machine
from tests.support.serverside import open_server
from updater.bundle import Bundle
from updatetrust.metadata import KeptVersions, verify_offline
from updatetrust.metadatafiles import parse_names
from updatetrust.trustfile import parse_trust_file

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `license-server ota`, and returns what it printed on both streams."""

    def run(*arguments: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["license-server", "ota", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            entry()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert int(ended.value.code or 0) == code, captured
        return captured.out + captured.err

    return run


PEOPLE = ("anna", "bert", "carl", "targets", "ci")


@pytest.fixture
def place(tmp_path: Path, founded: Callable[[str | None], Path], run: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server, and the keys of five holders."""
    shutil.copytree(founded(None) / "server", tmp_path / "server")
    directory = tmp_path / "server"
    kept = Place(directory, sqlite_url(directory / "server.db"), str(directory / "master.key"))
    write_atomic(directory / SETTINGS, settings_of(kept))
    monkeypatch.setenv("LICENSE_SERVER_DIR", str(directory))
    monkeypatch.chdir(tmp_path)
    for name in PEOPLE:
        run("new-key", name)
    return tmp_path


@pytest.fixture
def published(place: Path, run: Run) -> Path:
    """The same with a repository."""
    begin(run)
    run("sign", "first", "--key", "anna", "--key", "carl", "--key", "targets", "--key", "ci", "--yes")
    run("publish", "first")
    return place


def begin(run: Run) -> str:
    roots = [word for name in ("anna", "bert", "carl") for word in ("--root-key", f"{name}.pub")]
    keys = ["--targets-key", "targets.pub", "--release-key", "ci.pub", "--floor", "pos=1.0.0"]
    return run("init", *roots, *keys, "--out", "first")


def add(run: Run, version: str, out: str, *more: object, key: str = "ci", code: int = 0) -> str:
    package = Path(f"pos-{version}.tar")
    package.write_text(f"the program {version}")
    what = ["--product", "pos", "--version", version, "--build-id", f"build-{version}", "--hardware", "till-mk1"]
    return run("add", package, "--repository", "server/updates", *what, "--key", key, "--out", out, *more, code=code)


def test_the_root_ceremony_takes_a_threshold_of_people(place: Path, run: Run) -> None:
    said = begin(run)
    assert "root version 1: signatures 0 of 2, incomplete" in said
    assert (place / "anna").stat().st_mode & 0o777 == 0o600
    run("sign", "first", "--key", "anna", "--key", "targets", "--key", "ci", "--yes")
    assert "root version 1 has 1 of the 2 signatures" in run("publish", "first", code=1)
    said = run("sign", "first", "--key", "bert", "--yes")
    assert "root: 2 of 3 keys" in said and "lowest version of pos: 1.0.0" in said
    assert "root version 1: signatures 2 of 2, complete" in said
    assert "published root version 1" in run("publish", "first")
    assert "has a repository of updates already" in run("init", "--root-key", "anna.pub", "--threshold", 1,
        "--targets-key", "targets.pub", "--release-key", "ci.pub", "--out", "again", code=1)  # fmt: skip


def test_a_signature_is_asked_for_and_a_strange_key_is_named(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(run)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert "nobody answered yes" in run("sign", "first", "--key", "anna", code=1)
    run("new-key", "stranger")
    assert "names the key" in run("sign", "first", "--key", "stranger", "--yes", code=1)
    (place / "ci").chmod(0o644)
    assert "chmod 0600" in run("sign", "first", "--key", "ci", "--yes", code=1)


def test_a_key_may_have_a_passphrase(place: Path, run: Run) -> None:
    (place / "phrase").write_text("open sesame\n")
    run("new-key", "locked", "--passphrase-file", "phrase")
    assert b"ENCRYPTED" in (place / "locked").read_bytes()
    assert "already exists" in run("new-key", "locked", code=1)
    keys = ["--targets-key", "targets.pub", "--release-key", "ci.pub"]
    run("init", "--root-key", "locked.pub", "--threshold", 1, *keys, "--out", "first")
    assert "is encrypted; give --passphrase-file" in run("sign", "first", "--key", "locked", "--yes", code=1)
    assert "1 of 1, complete" in run("sign", "first", "--key", "locked", "--passphrase-file", "phrase", "--yes")


def test_a_package_becomes_a_candidate_a_release_and_is_taken_back(published: Path, run: Run) -> None:
    machine = Machine(published / "machine", (published / "server/updates/metadata/1.root.json").read_bytes())

    def look() -> bytes | None:
        return machine.look(published / "server/updates", int(time.time()), "pos/pos-1.1.0.tar")

    assert "candidate version 2: signatures 1 of 1, complete" in add(run, "1.1.0", "second")
    assert "added pos/pos-1.1.0.tar" in run("publish", "second")
    assert look() == b"the program 1.1.0"
    copy = ("--repository", "server/updates", "--key", "ci")
    run("promote", "pos/pos-1.1.0.tar", *copy, "--out", "third")
    assert "promoted pos/pos-1.1.0.tar" in run("publish", "third")
    assert "all of this is published already" in run("publish", "third")
    assert look() == b"the program 1.1.0"
    run("revoke", "pos/pos-1.1.0.tar", *copy, "--out", "fourth")
    assert "revoked pos/pos-1.1.0.tar" in run("publish", "fourth")
    assert look() is None
    # OT-01: a build id is never used again, also if its package is gone.
    package = Path("pos-1.2.0.tar")
    package.write_text("another program")
    what = ["--product", "pos", "--version", "1.2.0", "--build-id", "build-1.1.0", "--hardware", "till-mk1"]
    run("add", package, *copy, *what, "--out", "fifth")
    assert "the build id 'build-1.1.0'" in run("publish", "fifth", code=1)


def test_what_is_not_as_it_was_signed_is_not_published(published: Path, run: Run) -> None:
    add(run, "1.1.0", "second")
    (published / "second/packages/pos/pos-1.1.0.tar").write_text("the program 1.1.1")
    assert "is not the package that was signed" in run("publish", "second", code=1)
    assert "names the key" in add(run, "1.2.0", "third", key="anna", code=1)
    assert "below the floor 1.0.0" in add(run, "0.9", "fourth", code=1)
    assert "no floor for web" in run(
        "add", "pos-1.1.0.tar", "--repository", "server/updates", "--product", "web", "--version", "1", "--build-id", "b",
        "--hardware", "x", "--key", "ci", "--out", "fifth", code=1,
    )  # fmt: skip
    assert "malformed target" in add(run, "1.2.0", "sixth", "--hardware", "any", code=1)
    assert "is no submission" in run("publish", "server", code=1)
    rows = json.loads(run("expiry", "--json"))
    assert {row["role"]: row["version"] for row in rows} == dict.fromkeys(
        ("root", "targets", "releases", "candidate", "snapshot", "timestamp"), 1
    )


def test_keys_and_floors_change_with_the_signatures_of_both_sides(published: Path, run: Run) -> None:
    run("new-key", "dora")
    run("new-key", "targets2")
    anna = next(row["id"] for row in json.loads(run("keys", "--json")) if row["role"] == "root")
    said = run(
        "change-root", "--add-root-key", "dora.pub", "--remove-root-key", anna[:12], "--targets-key", "targets2.pub",
        "--new-online-keys", "--out", "root",
    )  # fmt: skip
    assert "root version 2: signatures 0 of 2 and 0 of 2" in said
    run("sign", "root", "--key", "bert", "--key", "carl", "--key", "dora", "--key", "targets2", "--yes")
    assert "of the 1 signatures that root version 1 asks for" in run("publish", "root", code=1)
    run("sign", "root", "--key", "targets", "--yes")
    assert "published root version 2" in run("publish", "root")
    rows = json.loads(run("keys", "--json"))
    assert anna not in {row["id"] for row in rows} and [row["where"] for row in rows].count("server, in no root") == 2
    run("change-targets", "--floor", "pos=1.5.0", "--out", "floor")
    run("sign", "floor", "--key", "targets2", "--yes")
    run("publish", "floor")
    assert "below the floor 1.5.0" in add(run, "1.2.0", "late", code=1)
    assert "never goes down" in run("change-targets", "--floor", "pos=1.4.0", "--out", "down", code=1)
    run("new-key", "ci2")
    run("change-targets", "--release-key", "ci2.pub", "--out", "ci-key")
    run("sign", "ci-key", "--key", "targets2", "--key", "ci2", "--yes")
    run("publish", "ci-key")
    assert "names the key" in add(run, "1.6.0", "old-ci", "--role", "releases", code=1)
    add(run, "1.6.0", "new-ci", "--role", "releases", key="ci2")
    assert "added pos/pos-1.6.0.tar" in run("publish", "new-ci")


def test_the_server_renews_what_it_signs_and_copies_what_is_published(published: Path, run: Run) -> None:
    add(run, "1.1.0", "second")
    run("publish", "second")
    assert "copied 7 files" in run("export", "copy")
    assert "copied 0 files" in run("export", "copy")
    run("expiry", "--renew")
    before = {row["role"]: row["ends"] for row in json.loads(run("expiry", "--json"))}
    server = open_server(published / "server")
    try:
        keep_updates(server.server, before["timestamp"] - 60)
    finally:
        server.close()
    after = {row["role"]: row for row in json.loads(run("expiry", "--json"))}
    assert after["timestamp"]["ends"] == before["timestamp"] - 60 + 3 * 86_400
    assert after["releases"]["ends"] == before["releases"]
    assert "copied 2 files" in run("export", "copy")
    run("prolong", "--repository", "copy", "--key", "ci", "--out", "longer")
    assert "published releases version 2" in run("publish", "longer")


def enrolled(published: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    request = {"agent_id": "till-1", "agreement_key": public_jwk_of(Device(1).agreement), "backend": "software"}
    (published / "request.json").write_text(json.dumps(request))
    monkeypatch.setattr(sys, "argv", ["license-server", "enroll", "--request", "request.json"])
    with pytest.raises(SystemExit):
        entry()
    return "till-1"


def test_an_agent_is_ordered_and_the_order_is_taken_back(published: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    enrolled(published, monkeypatch)
    add(run, "1.1.0", "second", "--role", "releases")
    run("publish", "second")
    target, window = "pos/pos-1.1.0.tar", "mon-fri 22:00-05:00 Europe/Berlin"
    row = json.loads(run("assign", "till-1", target, "--window", window, "--notice", "0", "--json"))
    assert row["hardware"] is None
    assert (row["notice_until"], row["window"]["days"]) == (row["created_at"], ["mon", "tue", "wed", "thu", "fri"])
    assert "still counts" in run("assign", "till-1", target, code=1)
    assert "no time zone 'Nowhere'" in run("assign", "till-1", target, "--window", "mon 22:00-23:00 Nowhere", code=2)
    assert "not a duration" in run("assign", "till-1", target, "--notice", "0d", code=2)
    assert f"withdraws directive {row['number']}" in run("withdraw", "till-1")
    run("pause", "till-1")
    said = run("status", "till-1")
    assert "last report -, paused" in said and "withdrawn" in said
    run("resume", "till-1")
    assert "nobody answered yes" in run_without_input(run, monkeypatch, "pause")
    assert [each["role"] for each in json.loads(run("packages", "--json"))] == ["releases"]


def run_without_input(run: Run, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    return run(*arguments, code=1)


def test_a_bundle_has_what_the_updater_wants_and_the_repository_goes_on_above_it(
    published: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read by the updater's own parser, and judged by the client that machines have; a package's bytes are its last member."""
    agent = enrolled(published, monkeypatch)
    add(run, "1.4.0", "s", "--role", "releases")
    run("publish", "s")
    target, out = "pos/pos-1.4.0.tar", published / "pos.bundle"
    assert f"is ordered to install nothing: use 'license-server ota assign {agent} {target}'" in run(
        "bundle", agent, target, "--for-days", 30, "--out", out, code=1
    )
    assert f"the hardware of agent {agent} is not known yet" in run("assign", agent, target)
    assert "hardware -" in run("status", agent)
    before = Repository(published / "server" / "updates").present()
    said = run("bundle", agent, target, "--for-days", 30, "--out", out)
    assert "can be installed until" in said and "its timestamp lasts 30 days instead of 3" in said
    with out.open("rb") as file:
        found = Bundle(file.fileno())
        papers = found.papers()
        assert b"".join(found.package(papers)) == b"the program 1.4.0"
    assert papers.directive is not None and papers.key_set is not None
    root = (published / "server" / "updates" / "metadata" / "1.root.json").read_bytes()
    later = int(time.time()) + 29 * 86_400
    verified = verify_offline(parse_names(papers.metadata), root, KeptVersions(), later)
    assert verified.fresh_until > later and verified.find(target).version == "1.4.0"
    # The repository has its usual end, and higher numbers than the bundle.
    after = Repository(published / "server" / "updates").present()
    stamp = json.loads(papers.metadata["timestamp.json"])["signed"]["version"]
    assert (before.timestamp.signed.version, stamp, after.timestamp.signed.version) == (2, 3, 4)
    assert after.ends()["timestamp"] < time.time() + 3 * 86_400 + 60
    machine = Machine(published / "machine", root)
    assert machine.look(published / "server" / "updates", int(time.time()), target) == b"the program 1.4.0"
    (published / "server" / "updates" / "metadata" / "timestamp.json").write_bytes(papers.metadata["timestamp.json"])
    with pytest.raises(RepositoryError, match="must be"):
        machine.look(published / "server" / "updates", int(time.time()))


def test_a_bundle_that_cannot_be_made_leaves_nothing(published: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = enrolled(published, monkeypatch)
    add(run, "1.4.0", "s", "--role", "releases")
    run("publish", "s")
    run("assign", agent, "pos/pos-1.4.0.tar")
    wrong, out = published / "wrong", published / "a.bundle"
    wrong.write_text("the program 1.4.1")
    order = ("bundle", agent, "pos/pos-1.4.0.tar", "--out", out, "--for-days")
    assert "is not pos/pos-1.4.0.tar" in run(*order, 9, "--package", wrong, code=1)
    assert "names end in .bundle" in run("bundle", agent, "x/y", "--for-days", 9, "--out", "a.tar", code=2)
    assert "is not in the range 1<=x<=90" in run(*order, 91, code=2)
    assert "give --package FILE" in run(*order, 9, "--server", "https://x.example", code=2)
    assert not out.exists() and sorted(path.name for path in published.glob("*.new")) == []
    server = open_server(published / "server")
    assert not [row for row in server.audit.tail(50) if row.event == "ota.bundled"]
    server.close()


def test_what_is_no_version_is_refused_with_what_one_looks_like(published: Path, run: Run) -> None:
    for words in ((), ("--min-agent", "newest")):
        said = add(run, "1.1" if words else "abc", "second", *words, code=2)
        assert "is not a version: one to four numbers with dots" in said
    assert not Path("second").exists()


def test_a_machine_is_told_nothing_before_there_is_a_repository(place: Path, run: Run) -> None:
    assert "no repository of updates yet" in run("trust", "pos-1", "--hardware", "till-mk1", "--out", "pos-1.json", code=1)
    assert not (place / "pos-1.json").exists()


def test_a_machine_is_told_whose_word_it_takes(published: Path, run: Run) -> None:
    place = published
    said = run("trust", "pos-1", "--hardware", "till-mk1")
    found = parse_trust_file(said.encode())
    assert (found.agent_id, found.hardware) == ("pos-1", "till-mk1")
    assert found.tuf_root == json.loads((place / "server/updates/metadata/1.root.json").read_bytes())
    server = open_server(place / "server")
    assert found.license_roots == (server.keys.root_pins()[0],)
    server.close()
    run("trust", "pos-1", "--hardware", "till-mk1", "--out", "pos-1.json")
    file = place / "pos-1.json"
    assert file.read_text() == said and file.stat().st_mode & 0o777 == 0o644
    for agent, hardware in (("pos-1", "any"), ("pos 1", "till-mk1"), ("pos-1", "Till MK1")):
        assert "update-trust.json" in run("trust", agent, "--hardware", hardware, code=1)
