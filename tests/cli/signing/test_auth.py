"""An administrator's key signs from a file, an ssh-agent or a token; everything that is wrong with it says what to do."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from cli.signing.auth import BadCredentials, Credentials
from contracts.admin.adminauth import act_digest, signed_text
from ipc.adminclient import GivenChallenge
from tests.support.adminpki import Ca, Holder
from tests.support.softhsm import LABEL, MODULE, PIN, Token
from tests.support.stand import short_directory
from tests.support.waiting import READY_S

CA = Ca()
GIVEN = GivenChallenge("till-1", bytes(16), bytes(32), True)
FIELDS: dict[str, Any] = {"version": 3}


def written(directory: Path, name: str, data: bytes, mode: int = 0o600) -> Path:
    path = directory / name
    path.write_bytes(data)
    path.chmod(mode)
    return path


def check(credentials: Credentials, holder: Holder, *chain: Holder) -> None:
    proof = credentials(GIVEN, "secret_invalidate", FIELDS)
    text = signed_text("till-1", bytes(16), bytes(32), act_digest("secret_invalidate", FIELDS))
    holder.key.public_key().verify(proof.signature, text, ec.ECDSA(hashes.SHA256()))
    assert proof.certificates == tuple(each.der for each in (holder, *chain))


def encrypted(holder: Holder, passphrase: bytes) -> bytes:
    pem: bytes = holder.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase))
    return pem


def test_the_key_is_in_a_file_of_its_own_or_with_the_certificate(tmp_path: Path) -> None:
    holder = CA.issue("ann")
    cert, key = written(tmp_path, "ann.pem", holder.pem), written(tmp_path, "ann.key", holder.key_pem)
    check(Credentials(cert, key), holder)
    check(Credentials(written(tmp_path, "both.pem", holder.pem + holder.key_pem), None), holder)


def test_the_certificate_between_is_shown_too(tmp_path: Path) -> None:
    between = Ca("Between", by=CA)
    holder = between.issue("ann")
    check(Credentials(written(tmp_path, "all.pem", holder.pem + between.pem + holder.key_pem), None), holder, between)


def test_an_encrypted_key_wants_its_passphrase(tmp_path: Path) -> None:
    holder = CA.issue("ann")
    cert, key = written(tmp_path, "ann.pem", holder.pem), written(tmp_path, "ann.key", encrypted(holder, b"secret"))
    check(Credentials(cert, key, lambda _path: "secret"), holder)
    with pytest.raises(BadCredentials, match="is wrong"):
        Credentials(cert, key, lambda _path: "guess")(GIVEN, "rotate", {})
    with pytest.raises(BadCredentials, match="no terminal"):
        Credentials(cert, key)(GIVEN, "rotate", {})


def test_what_is_wrong_is_said_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    holder, other = CA.issue("ann"), CA.issue("ben")
    p384 = CA.issue("eve", key=ec.generate_private_key(ec.SECP384R1()))
    cert, key = written(tmp_path, "ann.pem", holder.pem), written(tmp_path, "ann.key", holder.key_pem)
    cases = [
        (key, None, "holds no certificate"),
        (written(tmp_path, "p384.pem", p384.pem), key, "no P-256 key"),
        (cert, written(tmp_path, "ben.key", other.key_pem), "is not that of the certificate"),
        (cert, written(tmp_path, "open.key", holder.key_pem, 0o640), "chmod 600"),
        (cert, cert, "holds no private key"),
        (cert, None, "ssh-add"),
    ]
    for certificate, private, said in cases:
        with pytest.raises(BadCredentials, match=said):
            Credentials(certificate, private)(GIVEN, "rotate", {})
    with pytest.raises(FileNotFoundError):
        Credentials(tmp_path / "missing", None)(GIVEN, "rotate", {})


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An ssh-agent of the test's own, which lets any library be a PKCS #11 provider."""
    with short_directory() as directory:
        path = directory / "agent.sock"
        command = ["ssh-agent", "-D", "-P", "/usr/lib/*", "-a", str(path)]
        env = {**os.environ, "SOFTHSM2_CONF": str(Token(directory).config)}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
        try:
            assert process.stdout is not None and process.stdout.readline()
            monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
            yield directory
        finally:
            process.terminate()
            process.wait(READY_S)
            if process.stdout is not None:
                process.stdout.close()


@pytest.mark.system
def test_an_ssh_agent_signs_with_the_key_that_the_certificate_names(agent: Path) -> None:
    holder, other = CA.issue("ann"), CA.issue("ben")
    cert = written(agent, "ann.pem", holder.pem)
    for each in (other, holder):
        if each is holder:
            with pytest.raises(BadCredentials, match="does not hold the key"):
                Credentials(cert, None)(GIVEN, "rotate", {})
        key = written(agent, "key", each.key_pem)
        subprocess.run(["ssh-add", "-q", str(key)], check=True, capture_output=True, timeout=READY_S)
    for _time in range(20):  # numbers of every length
        check(Credentials(cert, None), holder)
    subprocess.run(["ssh-add", "-q", "-D"], check=True, capture_output=True, timeout=READY_S)
    with pytest.raises(BadCredentials, match="does not hold the key"):
        Credentials(cert, None)(GIVEN, "rotate", {})


@pytest.mark.system
def test_a_token_signs_through_the_ssh_agent(agent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = Token(agent)
    token.make()
    monkeypatch.setenv("SOFTHSM2_CONF", str(token.config))
    holder = CA.issue("ann")
    key, cert = written(agent, "key", holder.key_pem), written(agent, "ann.pem", holder.pem)
    command = ["softhsm2-util", "--import", str(key), "--token", LABEL, "--label", "ann", "--id", "01", "--pin", PIN]
    subprocess.run(command, check=True, capture_output=True, timeout=READY_S)
    key.unlink()
    ask = written(agent, "askpass", f"#!/bin/sh\necho {PIN}\n".encode(), 0o700)
    env = {**os.environ, "SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force"}
    subprocess.run(["ssh-add", "-s", str(MODULE)], check=True, capture_output=True, env=env, timeout=READY_S)
    check(Credentials(cert, None), holder)


@pytest.mark.system
def test_something_else_than_an_ssh_agent_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert = written(tmp_path, "ann.pem", CA.issue("ann").pem)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "missing"))
    with pytest.raises(BadCredentials, match="does not answer"):
        Credentials(cert, None)(GIVEN, "rotate", {})


def test_a_mistyped_name_shows_before_anything_is_asked(tmp_path: Path) -> None:
    certificate = written(tmp_path, "anna.pem", b"")
    Credentials(certificate, None).check()
    for credentials, option in (
        (Credentials(tmp_path / "ana.pem", None), "--auth-cert"),
        (Credentials(certificate, tmp_path / "ana.key"), "--auth-key"),
    ):
        with pytest.raises(BadCredentials, match=f"does not exist .{option}"):
            credentials.check()
