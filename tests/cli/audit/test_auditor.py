"""`license-agent-cli audit verify --file`, as an auditor runs it on a machine that has never seen the agent."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from audittrail.check import verify_log
from audittrail.report import INCOMPLETE, INTACT, TAMPERED, Keys
from cli.agent import for_terminal
from cli.main import entry, main
from cli.render import outcome_of, verification_text
from contracts.jose import jwk_from_point
from contracts.trust import encode_trust
from server.keys.jose import issue_audit_head, new_signing_key, public_jwk
from tests.audittrail.madelog import DAY, NOON, Machine, point_of
from tests.contracts.world import DELIVERY_KEY, ISSUER, LICENSE_KEY, TRUST_FILE

COPIED = NOON + 5 * DAY + 3600
STATUS = {INTACT: 0, TAMPERED: 1, INCOMPLETE: 5}


class Auditor:
    """A directory with a copy of a log and what the auditor has got beside it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.machine = Machine(1)
        (directory / "copy").mkdir()
        self.log = self.machine.write(directory / "copy")
        self.put("trust.json", TRUST_FILE)
        self.put("archive.key", self.machine.operator.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        for name in ("identity", "attestation"):
            self.put(f"{name}.pem", _pem(getattr(self.machine, name)))
        self.put_head()

    def put(self, name: str, data: bytes) -> None:
        (self.directory / name).write_bytes(data)

    def put_head(self, key: dict[str, str] = DELIVERY_KEY, **changes: Any) -> None:
        content = {
            "agent_id": "pos-1",
            "audit_seq": self.machine.head[0],
            "audit_head": self.machine.head[1],
            "last_contact": COPIED - 100,
            "time": COPIED,
            "identity_key": jwk_from_point(point_of(self.machine.identity)),
            "attestation_key": jwk_from_point(point_of(self.machine.attestation)),
            **changes,
        }
        self.put("head", issue_audit_head(content, key).encode() + b"\n")

    def verify(self, *options: str, expect: str) -> dict[str, Any]:
        """Runs the command; options that begin with `@` are names in the directory."""
        words = [str(self.directory / word[1:]) if word.startswith("@") else word for word in options]
        whole = ["audit", "verify", "--file", str(self.log), *words]
        text = CliRunner().invoke(main, whole)
        assert text.exit_code == STATUS[expect], text.output
        assert text.output.startswith(expect if expect != TAMPERED else "TAMPERED")
        result = CliRunner().invoke(main, ["--json", *whole])
        assert result.exit_code == STATUS[expect], result.output
        found: dict[str, Any] = json.loads(result.output)
        assert (found["outcome"], found["ok"]) == (expect, expect == INTACT)
        return {**found, "text": text.output}


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def auditor(tmp_path: Path) -> Auditor:
    return Auditor(tmp_path)


HEAD = ("--head", "@head", "--trust", "@trust.json", "--as-of", "2027-01-20T09:00:00Z")
ARCHIVE = ("--archive-key", "@archive.key")
KEYS = ("--identity-key", "@identity.pem", "--attestation-key", "@attestation.pem")


def test_with_head_and_archive_key_all_is_checked_and_the_trust_is_named(auditor: Auditor) -> None:
    found = auditor.verify(*HEAD, *ARCHIVE, expect=INTACT)
    assert found["agent"] == "pos-1" and found["unchecked"] == []
    head, last = auditor.machine.head[0], auditor.machine.chain.seq
    assert found["text"].startswith(f"intact from 1 to {last}, acknowledged by the server up to {head}, end open after that: ")
    assert "trust.json" in found["text"] and ISSUER in found["text"] and "2027-01-20 09:00:00Z" in found["text"]


def test_with_all_keys_and_no_head_the_end_is_open(auditor: Auditor) -> None:
    found = auditor.verify(*ARCHIVE, *KEYS, "--open-end", expect=INTACT)
    assert found["text"].startswith(f"intact from 1 to {auditor.machine.chain.seq}, end open: ")


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ((), ["--archive-key", "--identity-key", "--attestation-key", "--head"]),
        (("--open-end",), ["--archive-key", "--identity-key", "--attestation-key"]),
        ((*KEYS, "--open-end"), ["--archive-key"]),
        ((*ARCHIVE, *KEYS), ["--head"]),
        (("--identity-key", "@identity.pem", "--open-end"), ["--archive-key", "--attestation-key"]),
        (HEAD, ["--archive-key"]),
    ],
    ids=["nothing", "open", "no_archive_key", "no_end", "identity_only", "head_only"],
)
def test_what_was_not_checked_names_what_it_needs(auditor: Auditor, options: tuple[str, ...], needs: list[str]) -> None:
    found = auditor.verify(*options, expect=INCOMPLETE)
    for option in needs:
        assert any(option in gap["needs"] for gap in found["unchecked"]), (option, found)
        assert option in found["text"]
    assert len(found["unchecked"]) == len(needs)


def test_an_identity_key_without_an_archive_key_is_used(auditor: Auditor) -> None:
    anchors = auditor.log.with_suffix(".anchors")
    found = json.loads(anchors.read_bytes())
    found[0]["signature"] = "A" * 86 + "=="
    anchors.write_text(json.dumps(found))
    auditor.verify("--identity-key", "@identity.pem", expect=TAMPERED)
    auditor.verify(*ARCHIVE, "--open-end", expect=INCOMPLETE)


def _as_told(auditor: Auditor) -> None:
    """Changes nothing."""


@pytest.mark.parametrize(
    ("change", "expect", "word"),
    [
        (_as_told, INTACT, "signed 2027-01-20"),
        (lambda each: each.put_head(time=NOON), INCOMPLETE, "5 days older"),
        (lambda each: each.put_head(new_signing_key()), INCOMPLETE, "has signed it"),
        (lambda each: each.put_head(LICENSE_KEY), INCOMPLETE, "has signed it"),
        (lambda each: each.put("head", b"\xff\x00"), INCOMPLETE, "malformed"),
        (lambda each: each.put("head", b""), INCOMPLETE, "malformed"),
        (lambda each: each.put("trust.json", b"{}"), INCOMPLETE, "trust file"),
        (
            lambda each: each.put("trust.json", encode_trust("x", [public_jwk(LICENSE_KEY)], [public_jwk(LICENSE_KEY)])),
            INCOMPLETE,
            "has signed it",
        ),
        (lambda each: each.put_head(audit_seq=None, audit_head=None), INCOMPLETE, "had reported none"),
        (lambda each: each.put_head(audit_head="1" * 64), TAMPERED, "not those of the head"),
        (lambda each: each.put_head(audit_seq=10**6), TAMPERED, "its end is missing"),
        (
            lambda each: each.put_head(attestation_key=public_jwk(new_signing_key())),
            TAMPERED,
            "attestation key",
        ),
        (lambda each: each.put_head(identity_key=public_jwk(new_signing_key())), TAMPERED, "identity key"),
        (lambda each: each.put_head(identity_key=None), INCOMPLETE, "--identity-key"),
    ],
    ids=[
        *("good", "stale", "stranger", "license_key", "junk", "empty", "no_trust", "other_trust", "no_head"),
        *("other_digest", "later", "other_attestation", "other_identity", "no_identity"),
    ],
)
def test_heads(auditor: Auditor, change: Callable[[Auditor], None], expect: str, word: str) -> None:
    change(auditor)
    assert word in auditor.verify(*HEAD, *ARCHIVE, expect=expect)["text"]


def test_a_key_that_is_not_the_servers_is_told(auditor: Auditor) -> None:
    """Somebody hands the auditor a log of his own with his own keys."""
    other = Machine(2)
    (auditor.directory / "theirs").mkdir()
    auditor.log = other.write(auditor.directory / "theirs")
    for name in ("identity", "attestation"):
        auditor.put(f"{name}.pem", _pem(getattr(other, name)))
    auditor.put("archive.key", other.operator.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    auditor.verify(*ARCHIVE, *KEYS, "--open-end", expect=INTACT)
    found = auditor.verify(*HEAD, *ARCHIVE, *KEYS, expect=TAMPERED)
    told = " ".join(gap["what"] for gap in found["unchecked"])
    assert "the identity key: the given one is not what the server has for agent pos-1" in told
    assert "the attestation key: the given one is not" in told


@pytest.mark.parametrize(
    "options",
    [
        ("--head", "@head"),
        (*HEAD, "--root", "sha256:" + "0" * 64),
        (*HEAD, "--open-end"),
        ("--trust", "@trust.json"),
        ("--as-of", "2027-01-20"),
        ("--as-of", "yesterday"),
        ("--identity-key", "@nothing"),
    ],
    ids=range(7),
)
def test_wrong_usage(auditor: Auditor, options: tuple[str, ...]) -> None:
    words = [str(auditor.directory / word[1:]) if word.startswith("@") else word for word in options]
    assert CliRunner().invoke(main, ["audit", "verify", "--file", str(auditor.log), *words]).exit_code == 2
    assert CliRunner().invoke(main, ["audit", "verify", "--open-end"]).exit_code == 2


@pytest.mark.parametrize(
    "data",
    [b"", b"junk", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "private"],
    ids=["empty", "junk", "torn", "private"],
)
def test_a_file_that_is_no_key_is_never_passed_over(
    auditor: Auditor, data: bytes | str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    auditor.put("identity.pem", (auditor.directory / "archive.key").read_bytes() if isinstance(data, str) else data)
    key = str(auditor.directory / "identity.pem")
    words = ["audit", "verify", "--file", str(auditor.log), "--open-end", "--identity-key", key]
    monkeypatch.setattr(sys, "argv", ["license-agent-cli", *words])
    with pytest.raises(SystemExit) as ended:
        entry()
    # None of the outcomes of a check.
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "identity.pem" in captured.err


def test_a_pipe_beside_the_log_is_refused_and_not_waited_for(auditor: Auditor) -> None:
    anchors = auditor.log.with_suffix(".anchors")
    anchors.unlink()
    os.mkfifo(anchors)
    with pytest.raises(OSError, match="not a regular file"):
        verify_log(auditor.log, Keys())


def test_an_empty_log_is_incomplete(auditor: Auditor) -> None:
    for path in auditor.log.parent.iterdir():
        path.unlink()
    auditor.log.write_bytes(b"")
    assert "there are no records" in auditor.verify(*ARCHIVE, *KEYS, "--open-end", expect=INCOMPLETE)["text"]
    auditor.verify(*HEAD, expect=TAMPERED)


def test_a_log_that_release_0_1_0_wrote_is_intact_with_all_keys(tmp_path: Path) -> None:
    """Written by the code of that release: archives, an anchor, closed segment, open file, certificates."""
    frozen = Path(__file__).resolve().parents[2] / "vectors" / "audit-0.1.0"
    options = ["--open-end"]
    for name in ("archive.key", "identity.pem", "attestation.pem"):
        options += [f"--{name.split('.')[0]}-key", str(frozen / name)]
    result = CliRunner().invoke(main, ["audit", "verify", "--file", str(frozen / "audit.log"), *options])
    assert (result.exit_code, result.output.splitlines()[0]) == (0, f"intact from 1 to 61, end open: {frozen / 'audit.log'}")
    assert "6 archives" in result.output and "16 records" in result.output and "6 certificates" in result.output


def test_colors_reach_the_terminal_and_nothing_else_does() -> None:
    """The color is ours; what a record says could drive the terminal."""
    assert (
        for_terminal(click.style("intact", fg="green") + " \x1b[2K\x1b[8m\r")
        == "\x1b[32mintact\x1b[0m <U+001B>[2K<U+001B>[8m<U+000D>"
    )
    assert for_terminal(click.style("x", fg="red", bold=True)) == "\x1b[31m\x1b[1mx\x1b[0m"


def test_the_reply_of_an_older_agent_is_told_as_it_is() -> None:
    old = {"ok": True, "problem": None, "first_seq": 1, "last_seq": 9, "resealed": [], "last_checkpoint": 8, "certified": 9}
    assert outcome_of(old) == INTACT
    text = click.unstyle(verification_text(old, "the agent's log"))
    assert text.startswith("intact from 1 to 9: the agent's log\n") and "does not say what it checked" in text
    assert outcome_of({**old, "ok": False}) == TAMPERED
    assert "TAMPERED: record 5" in click.unstyle(verification_text({**old, "ok": False, "problem": "record 5"}, "x"))
