"""What the offline tool makes is what the agent accepts; what it is given wrongly it refuses, and overwrites nothing."""

import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509 import load_pem_x509_certificates

from agentd.admin.chain import NotIssued, Window, judge
from agentd.ca_commands import admin_ca
from agentd.commands import parser
from contracts.admin.adminca import read_admin_ca


def run(*words: str) -> int:
    return admin_ca(parser().parse_args(["admin-ca", *words]))


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """The command narrows it for its own process."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_text("correct horse\n")
    return path


@pytest.fixture
def ca(tmp_path: Path, secret: Path) -> Path:
    directory = tmp_path / "ca"
    assert run("new", "--dir", str(directory), "--passphrase-file", str(secret)) == 0
    return directory


def issue(ca: Path, secret: Path, out: Path, *words: str) -> int:
    return run("issue", "--dir", str(ca), "--passphrase-file", str(secret), "--out", str(out), *words)


def now() -> int:
    return int(datetime.now(UTC).timestamp())


@pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
def test_the_agent_accepts_what_is_issued(ca: Path, secret: Path, tmp_path: Path, role: str) -> None:
    out = tmp_path / "ann.pem"
    assert issue(ca, secret, out, "--name", "Ann Keeper", "--role", role, "--days", "7") == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    (certificate,) = load_pem_x509_certificates(out.read_bytes())
    trusted = read_admin_ca((ca / "admin-ca.pem").read_bytes())
    found = judge(trusted, [certificate.public_bytes(Encoding.DER)], Window(now(), now()))
    assert (found.name, found.role.name.lower()) == ("Ann Keeper", role)
    assert load_pem_private_key(out.read_bytes(), None).public_key() == certificate.public_key()
    with pytest.raises(NotIssued):
        judge(trusted, [certificate.public_bytes(Encoding.DER)], Window(now() + 8 * 86_400, None))


def test_the_cas_key_is_private_and_encrypted(ca: Path) -> None:
    path = ca / "admin-ca.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(ca.stat().st_mode) == 0o700
    assert b"ENCRYPTED" in path.read_bytes()


def test_a_key_on_a_token_needs_only_its_public_half(ca: Path, secret: Path, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    public = tmp_path / "ann.pub"
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    out = tmp_path / "ann.pem"
    assert issue(ca, secret, out, "--name", "Ann", "--role", "viewer", "--public-key", str(public)) == 0
    assert b"PRIVATE" not in out.read_bytes()
    (certificate,) = load_pem_x509_certificates(out.read_bytes())
    assert certificate.public_key() == key.public_key()


def test_nothing_is_overwritten_and_wrong_input_is_named(
    ca: Path, secret: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (ca / "admin-ca.key").read_bytes()
    out, wrong, p384 = tmp_path / "x.pem", tmp_path / "wrong", tmp_path / "p384.pub"
    wrong.write_text("guess\n")
    other = ec.generate_private_key(ec.SECP384R1()).public_key()
    p384.write_bytes(other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    who = ("--name", "Ann", "--role", "viewer")
    assert run("new", "--dir", str(ca), "--passphrase-file", str(secret)) == 1
    assert issue(ca, wrong, out, *who) == 1
    assert issue(ca, secret, secret, *who) == 1
    assert issue(ca, secret, out, "--name", "x" * 65, "--role", "viewer") == 1
    assert issue(ca, secret, out, *who, "--days", "7000") == 1
    assert issue(ca, secret, out, *who, "--public-key", str(p384)) == 1
    assert run("revoke", "--dir", str(ca), "nobody") == 1
    assert (ca / "admin-ca.key").read_bytes() == before and not out.exists()
    said = capsys.readouterr().err
    for text in (
        "is not overwritten",
        "the passphrase is wrong",
        "1 to 64 printable",
        "choose fewer days",
        "not a P-256 key",
        "nobody",
    ):
        assert text in said, text


def test_certificates_are_revoked_by_name_or_file(
    ca: Path, secret: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digests = []
    for number in range(2):
        assert issue(ca, secret, tmp_path / f"{number}.pem", "--name", "Ann / Keeper", "--role", "viewer") == 0
        digests.append(capsys.readouterr().out.strip())
    assert issue(ca, secret, tmp_path / "ben.pem", "--name", "Ben", "--role", "viewer") == 0
    ben = capsys.readouterr().out.strip()
    assert run("revoke", "--dir", str(ca), "Ann / Keeper") == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == set(digests)
    assert run("revoke", "--dir", str(ca), str(tmp_path / "ben.pem")) == 0
    assert capsys.readouterr().out.split()[0] == ben
