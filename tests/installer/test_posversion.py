"""The product itself says which version runs: what fits, what does not, and what is no answer."""

import json
import os
import pwd
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from installer.bundle.judge import Manifest
from installer.config import parse_config
from installer.jobs import Examine
from installer.pos.posversion import VersionDiffers, VersionUnknown, ask, check, require
from installer.programs import Ran
from settings.errors import ConfigError
from tests.installer import test_apply
from tests.installer.test_apply import ID, POS, checked, product

V2 = Manifest(v=1, product="pos", version="2.0.0", build_id="b2", entries=0, bytes=0)
MANIFEST = b'{"v":1,"product":"pos","version":"2.0.0","build_id":"b2","entries":1,"bytes":1}'


@pytest.mark.parametrize(
    ("form", "answer"),
    [
        ("http", b'{"version": "2.0.0"}'),
        ("http", b'{"version": "2.0.0", "build_id": "b2", "up": 7}'),
        ("command", b"2.0.0\n"),
        ("command", b"pos 2.0.0 (build b2)\nmore\n"),
    ],
)
def test_the_version_that_was_installed(form: str, answer: bytes) -> None:
    require(V2, answer, form=form)


@pytest.mark.parametrize(
    ("form", "answer", "words"),
    [
        ("http", b'{"version": "1.0.0"}', "the product says '1.0.0'; installed is 2.0.0"),
        ("http", b'{"version": "2.0.0 "}', "installed is 2.0.0"),
        ("http", b'{"version": "2.0.0", "build_id": "b1"}', "says build 'b1'; installed is build b2"),
        ("http", b'{"version": "2.0.0", "build_id": null}', "installed is build b2"),
        ("command", b"pos 1.0.0\n2.0.0\n", "says 'pos 1.0.0'"),
        ("command", b"2.0.01\n", "installed is 2.0.0"),
        ("command", b"\x1b[2J2.0.0 \xff\n", "x1b"),
    ],
)
def test_another_version_is_said(form: str, answer: bytes, words: str) -> None:
    with pytest.raises(VersionDiffers, match=words.replace("[", r"\[")) as raised:
        require(V2, answer, form=form)
    assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize(
    ("form", "answer"),
    [
        ("http", b""), ("http", b"2.0.0"), ("http", b"[]"), ("http", b"{}"), ("http", b'{"version": 2}'),
        ("http", b'{"version": ""}'), ("http", b"[" * 100_000), ("http", b"\xff"), ("command", b""), ("command", b"\n2.0.0\n"),
    ],
)  # fmt: skip
def test_what_names_no_version_is_no_pass(form: str, answer: bytes) -> None:
    with pytest.raises(VersionUnknown):
        require(V2, answer, form=form)


def test_a_slot_without_a_manifest_is_no_pass(tmp_path: Path) -> None:
    with pytest.raises(VersionUnknown, match="does not say which version it is"):
        check(("bin/pos",), tmp_path, {}, lambda *_: b"2.0.0")
    (tmp_path / "manifest.json").write_bytes(MANIFEST)
    check(("bin/pos",), tmp_path, {}, lambda *_: b"2.0.0")
    with pytest.raises(VersionDiffers):
        check("http://127.0.0.1:1/", tmp_path, {}, lambda *_: b'{"version":"1.0.0"}')


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """A server on loopback that gives one answer; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/system/info"
        thread.join(10)


def http(body: bytes, status: bytes = b"200 OK", more: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b\r\n%b" % (status, len(body), more, body)


@pytest.mark.system
def test_it_is_asked_by_http_on_loopback(tmp_path: Path) -> None:
    with answering(http(b'{"version":"2.0.0"}')) as url:
        assert ask(url, tmp_path, {}) == b'{"version":"2.0.0"}'


@pytest.mark.system
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (http(b"", b"503 Busy"), "answered with status 503"),
        (http(b"", b"302 Found", b"Location: http://127.0.0.1:1/\r\n"), "answered with status 302"),
        (http(b"x" * 70_000), "more than 65536 bytes"),
        (b"", "without response"),
        (b"nonsense\r\n\r\n", "nonsense"),
    ],
)
def test_an_http_answer_that_is_none(tmp_path: Path, answer: bytes, words: str) -> None:
    with answering(answer) as url, pytest.raises(VersionUnknown, match=words):
        ask(url, tmp_path, {})
    with pytest.raises(VersionUnknown, match="Connection refused"):
        ask(url, tmp_path, {})


@pytest.mark.system
def test_a_command_that_fails_or_is_not_there_is_no_answer(tmp_path: Path) -> None:
    (tmp_path / "pos").write_text("#!/bin/sh\necho 2.0.0; exit 1\n")
    (tmp_path / "pos").chmod(0o755)
    with pytest.raises(VersionUnknown, match="pos ended with status 1"):
        ask(("pos",), tmp_path, {})
    with pytest.raises(VersionUnknown, match="gone: No such file"):
        ask(("gone",), tmp_path, {})


@pytest.mark.root
@pytest.mark.system
@pytest.mark.parametrize(
    ("says", "status", "words"),
    [("2.0.0", 7, ""), ("1.0.0", 120, "says 'pos 1.0.0'; installed is 2.0.0"), ("", 121, "printed no version")],
)
def test_the_health_check_asks_first_and_as_the_product_s_user(tmp_path: Path, says: str, status: int, words: str) -> None:
    for path in (tmp_path, *tmp_path.parents[:3]):
        if path.stat().st_uid == os.geteuid() and path != Path("/tmp"):
            path.chmod(0o755)
    uid = pwd.getpwnam("daemon").pw_uid
    file = product(tmp_path, uid)
    file.write_text(file.read_text() + 'version = ["bin/pos"]\n')
    slot = tmp_path / "slots" / "a"
    (slot / "manifest.json").write_bytes(MANIFEST)
    (slot / "bin" / "pos").write_text(f"#!/bin/sh\n[ $(id -u) = {uid} ] || exit 1\n[ -z '{says}' ] || echo pos {says}\n")
    (slot / "bin" / "pos").chmod(0o755)
    ended: subprocess.CompletedProcess[str] = checked(file)
    assert ended.returncode == status and words in ended.stderr, ended


@pytest.mark.parametrize(
    ("health", "shown", "found", "words"),
    [
        (Ran(0, ""), Ran(1, ""), {"unit": True, "version": True, "health": True}, ""),
        (
            Ran(1, ""),
            Ran(0, "120"),
            {"unit": True, "version": False},
            "another version runs than was installed; see: journalctl",
        ),
        (Ran(1, ""), Ran(0, "121"), {"unit": True, "version": False}, "does not say which version runs"),
        (Ran(1, ""), Ran(0, "7"), {"unit": True, "health": False}, "failed; see: journalctl"),
        (Ran(1, ""), Ran(1, ""), {"unit": True, "health": False}, "failed; see: journalctl"),
        (Ran(None, ""), Ran(0, "0"), {"unit": True, "health": False}, "failed; see: journalctl"),
    ],
)
def test_the_version_is_a_check_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, health: Ran, shown: Ran, found: dict[str, bool], words: str
) -> None:
    monkeypatch.setattr(test_apply, "POS", replace(POS, version="http://127.0.0.1:1/"))
    answers = {"is-active": Ran(0, ""), "start": health, "show": shown}
    checks = test_apply.done(tmp_path, Examine(id=ID, product="pos"), answers)
    assert checks is not None and {each.name: each.ok for each in checks} == found
    assert words in checks[-1].text


@pytest.mark.parametrize(
    "value",
    [
        '"http://127.0.0.1:8080/system/info"', '"http://[::1]:80"', '["bin/pos", "--version"]',
    ],
)  # fmt: skip
def test_ways_to_ask(value: str) -> None:
    found, given = parse_config(section(value)).products["pos"].version, json.loads(value)
    assert found == (given if isinstance(given, str) else tuple(given))


@pytest.mark.parametrize(
    "value",
    [
        '"https://127.0.0.1:8080/"', '"http://10.0.0.1:8080/"', '"http://localhost:8080/"', '"http://127.0.0.1/"',
        '"http://127.0.0.1:0/"',
        '"http://127.0.0.1:99999/"', '"http://127.0.0.1:80/a?b"', '"http://x@127.0.0.1:80/"', '["/bin/pos"]', '["../pos"]',
        "[]", "5",
    ],
)  # fmt: skip
def test_what_is_no_way_to_ask(value: str) -> None:
    with pytest.raises(ConfigError, match="'version'"):
        parse_config(section(value))


def section(version: str) -> str:
    return (
        '[product.pos]\nbackend = "slots"\ndirectory = "/var/lib/pos"\nunit = "pos.service"\nuser = 1001\n'
        'health = ["bin/check"]\n'
        f"version = {version}\n"
    )
