"""Serves the repository of updates over TLS on loopback, as nginx does for tills; its certificates are of its own making."""

import base64
import hashlib
import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HOST = "127.0.0.1"
LASTS = timedelta(days=365)
FILE_MODE = 0o600


class _Handler(SimpleHTTPRequestHandler):
    """Files only."""

    protocol_version = "HTTP/1.1"
    timeout = 60  # of a connection on which nothing comes

    def list_directory(self, path: Any) -> None:
        """A directory is no file of the repository."""
        self.send_error(404)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, directory: Path, context: ssl.SSLContext) -> None:
        super().__init__((HOST, port), partial(_Handler, directory=str(directory)))
        self._context = context

    def get_request(self) -> Any:
        """The handshake happens in the connection's thread, with its first read."""
        sock, address = super().get_request()
        sock.settimeout(_Handler.timeout)
        return self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that breaks off is no error."""


def main(options: dict[str, Any]) -> int:
    """Serves until a signal ends the process.

    Args:
        options: `port`, `directory` of the repository, `certificate` the file of `make_certificate`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options["certificate"])
    _Server(options["port"], Path(options["directory"]), context).serve_forever()
    return 0


def make_certificate(file: Path) -> str:
    """Writes a key and a certificate for loopback, with the root above it; returns the root's pin for link.toml."""
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = _certificate("stand updates root", root_key, None, root_key)
    leaf = _certificate("stand updates", key, root, root_key)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.touch(mode=FILE_MODE)
    file.write_bytes(secret + b"".join(each.public_bytes(Encoding.PEM) for each in (leaf, root)))
    public = root_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return "sha256:" + base64.b64encode(hashlib.sha256(public).digest()).decode()


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: x509.Certificate | None, signs: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only")
    usage = dict.fromkeys(others, False)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + LASTS)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=issuer is not None, key_cert_sign=issuer is None, crl_sign=issuer is None, **usage),
            critical=True,
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signs.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if issuer is not None:
        made = made.add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False
        ).add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return made.sign(signs, hashes.SHA256())
