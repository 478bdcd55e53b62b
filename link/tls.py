"""Judges the server inside the TLS 1.3 handshake: before that, no certificate and no request leaves this process.

The objects of `ssl` that work on memory (`SSLObject`) keep their output until somebody takes it. So when the judgment falls,
neither the client's certificate nor the end of the handshake has left; a server that is refused has seen a ClientHello.
"""

import _ssl
import binascii
import fcntl
import os
import ssl
import stat
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec

from ipc.linkmessages import MAX_KEY_BYTES

Judge = Callable[[Sequence[bytes], str], None]
"""Takes the chain in DER and the host, and raises what refuses them."""

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK


class ClientKeyError(Exception):
    """The client certificate or its key cannot be used; the text says which and why, and holds nothing of the key."""


class JudgedObject(ssl.SSLObject):
    """One side of a TLS connection that carries no data before the peer is judged."""

    _accepted = False

    def do_handshake(self) -> None:
        """Ends the handshake, and the connection with it if the peer is refused.

        Raises:
            PeerRefused: by the judge of the context.
        """
        super().do_handshake()
        if not self._accepted:
            context = self.context
            if not isinstance(context, JudgingContext) or self.server_hostname is None:
                raise ssl.SSLError("this connection has no judge or no host")
            context.judge(self._chain(), self.server_hostname)
            self._accepted = True
            context.accepted += 1

    def read(self, *arguments: Any) -> Any:
        """As for `ssl.SSLObject`, once the peer is accepted."""
        self._guard()
        return super().read(*arguments)

    def write(self, data: Any) -> int:
        """As for `ssl.SSLObject`, once the peer is accepted."""
        self._guard()
        return super().write(data)

    def _guard(self) -> None:
        # OpenSSL would end a handshake by itself at the first read or write.
        if not self._accepted:
            raise ssl.SSLError("the server has not been judged")

    def _chain(self) -> list[bytes]:
        public: Callable[[], list[bytes]] | None = getattr(super(), "get_unverified_chain", None)
        if public is not None:  # Python 3.13
            return public()
        inner: Any = self._sslobj  # type: ignore[attr-defined,unused-ignore]
        return [certificate.public_bytes(_ssl.ENCODING_DER) for certificate in inner.get_unverified_chain() or ()]


class JudgingContext(ssl.SSLContext):
    """A TLS 1.3 client whose peers are accepted by a judge and by nothing else.

    OpenSSL's own verification is off, since it believes in the machine's clock; that the peer has the private key of its
    certificate is checked by TLS itself (RFC 8446 section 4.4.3).

    Args:
        judge: is asked in each handshake.

    Attributes:
        accepted: handshakes in which the peer was accepted.
    """

    judge: Judge
    accepted: int

    def __new__(cls, _judge: Judge) -> Self:
        """A context of the client's side."""
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.accepted = 0
        self.check_hostname = False
        self.verify_mode = ssl.CERT_NONE
        self.minimum_version = self.maximum_version = ssl.TLSVersion.TLSv1_3
        self.sslobject_class = JudgedObject

    def wrap_socket(self, *_arguments: Any, **_keywords: Any) -> NoReturn:
        """Is refused: a socket would send the end of the handshake before the peer could be judged."""
        raise NotImplementedError("a judged connection works on memory; use wrap_bio")


def load_client_key(context: ssl.SSLContext, certificates: str, key_fd: int) -> None:
    """Gives a context its client certificate and key; no file is made.

    Args:
        context: takes them.
        certificates: PEM, the client's own first; its key must be of P-256.
        key_fd: a sealed memfd with the private key, PEM or PKCS#8 in DER, unencrypted. Stays open.

    Raises:
        ClientKeyError: they cannot be used.
    """
    _check_memfd(key_fd)
    try:
        key = x509.load_pem_x509_certificates(certificates.encode("ascii"))[0].public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise ClientKeyError("the client certificate cannot be read") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ClientKeyError("the client certificate is not for a key of P-256")
    made = [_memfd(certificates.encode("ascii"))]
    try:
        if not os.pread(key_fd, 11, 0).startswith(b"-----BEGIN "):
            made.append(_memfd(_pem(os.pread(key_fd, MAX_KEY_BYTES, 0))))
            key_fd = made[-1]
        # An empty password: otherwise OpenSSL would ask the terminal for that of an encrypted key.
        context.load_cert_chain(f"/proc/self/fd/{made[0]}", f"/proc/self/fd/{key_fd}", password="")
    except (ssl.SSLError, OSError, ValueError):
        raise ClientKeyError("the client key cannot be read, or does not belong to the certificate") from None
    finally:
        for number in made:
            os.close(number)


def _check_memfd(number: int) -> None:
    try:
        info, seals = os.fstat(number), fcntl.fcntl(number, fcntl.F_GET_SEALS)
    except OSError:
        raise ClientKeyError("the client key's descriptor is not a memfd") from None
    if not stat.S_ISREG(info.st_mode) or seals & _SEALS != _SEALS:
        raise ClientKeyError("the memfd of the client key is not sealed")
    if not 0 < info.st_size <= MAX_KEY_BYTES:
        raise ClientKeyError(f"the client key has {info.st_size} bytes; it must have 1 to {MAX_KEY_BYTES}")


def _memfd(data: bytes) -> int:
    number = os.memfd_create("tls", os.MFD_CLOEXEC)
    os.write(number, data)
    return number


def _pem(der: bytes) -> bytes:
    return b"-----BEGIN PRIVATE KEY-----\n" + binascii.b2a_base64(der) + b"-----END PRIVATE KEY-----\n"
