"""Signs requests with an administrator's key: from a file in PEM, or in an ssh-agent, which may have it on a PKCS #11 token.

Nothing is read before the agent asks for a signature, so `--help` and completion need no key, nor does an agent that asks
for none.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from contracts.admin.adminauth import act_digest, signed_text
from ipc.adminclient import GivenChallenge, Proof
from ipc.bounds import MAX_ADMIN_CERTIFICATES

from . import sshagent

MAX_FILE_BYTES = 64 * 1024
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)


class BadCredentials(Exception):
    """Certificate or key cannot be used; the message says why and what to do."""


class Credentials:
    """An administrator's certificate and key.

    Args:
        certificate: its file, PEM; the certificate between it and the admin CA may follow it, and the key may be in it too.
        key: the private key's file; None for one in the certificate's file or in an ssh-agent.
        passphrase: asks for the passphrase of a key that is encrypted.
    """

    def __init__(self, certificate: Path, key: Path | None, passphrase: Callable[[Path], str] | None = None) -> None:
        self._certificate = certificate
        self._key = key
        self._passphrase = passphrase or _ask_passphrase
        self._sign: Callable[[bytes], bytes] | None = None
        self._chain: tuple[bytes, ...] = ()

    def __call__(self, given: GivenChallenge, op: str, fields: dict[str, Any]) -> Proof:
        """Signs an operation: an `ipc.adminclient.Sign`.

        Raises:
            BadCredentials: certificate or key cannot be used.
        """
        if self._sign is None:
            self._open()
        sign = self._sign
        if sign is None:
            raise BadCredentials(f"{self._certificate}: no key")
        text = signed_text(given.agent_id, given.boot_id, given.challenge, act_digest(op, fields))
        try:
            return Proof(self._chain, sign(text))
        except sshagent.NoSignature as error:
            raise BadCredentials(str(error)) from None

    def check(self) -> None:
        """Looks whether the files that were named exist, also where the agent demands no signature: a mistyped name shows.

        Raises:
            BadCredentials: one does not.
        """
        for option, path in (("--auth-cert", self._certificate), ("--auth-key", self._key)):
            if path is not None and not os.path.exists(path):
                raise BadCredentials(f"{path} does not exist ({option}, or its environment variable, names it)")

    def _open(self) -> None:
        data = _read(self._certificate)
        try:
            found = x509.load_pem_x509_certificates(data)
            key = found[0].public_key()
        except _UNREADABLE:
            raise BadCredentials(f"{self._certificate} holds no certificate in PEM") from None
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise BadCredentials(f"the certificate in {self._certificate} has no P-256 key; no other kind counts here")
        self._chain = tuple(each.public_bytes(Encoding.DER) for each in found[:MAX_ADMIN_CERTIFICATES])
        if self._key is not None:
            self._sign = self._from_file(self._key, _read(self._key), key)
        elif b"PRIVATE KEY-----" in data:
            self._sign = self._from_file(self._certificate, data, key)
        else:
            try:
                self._sign = sshagent.signer(key, self._certificate)
            except sshagent.NoSignature as error:
                raise BadCredentials(str(error)) from None

    def _from_file(self, path: Path, data: bytes, wanted: ec.EllipticCurvePublicKey) -> Callable[[bytes], bytes]:
        if os.stat(path).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise BadCredentials(f"others may read the key {path}: run 'chmod 600 {path}', and have another certificate issued")
        try:
            key = load_pem_private_key(data, None)
        except TypeError:
            try:
                key = load_pem_private_key(data, self._passphrase(path).encode())
            except _UNREADABLE:
                raise BadCredentials(f"the passphrase of {path} is wrong") from None
        except _UNREADABLE:
            raise BadCredentials(f"{path} holds no private key in PEM") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != wanted:
            raise BadCredentials(f"the key in {path} is not that of the certificate in {self._certificate}")
        own = key
        return lambda text: own.sign(text, ec.ECDSA(hashes.SHA256()))


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_FILE_BYTES)


def _ask_passphrase(path: Path) -> str:
    if not os.isatty(0):
        raise BadCredentials(f"{path} is encrypted, and there is no terminal to ask for its passphrase: use an ssh-agent")
    text: str = click.prompt(f"passphrase of {path}", hide_input=True, err=True)
    return text
