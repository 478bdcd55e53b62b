"""Signs the command line in at an operator API, and says in plain words why a connection failed."""

import contextlib
import http.client
import socket
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from server.base import privatefile
from server.base.errors import RegistryError

_EXPIRED, _WRONG_NAME = 10, 62
"""Results of OpenSSL's verification (X509_V_ERR_CERT_HAS_EXPIRED, X509_V_ERR_HOSTNAME_MISMATCH)."""
_WRONG_ADDRESS = 64
_REFUSED_ALERTS = (
    "CERTIFICATE_REQUIRED", "CERTIFICATE_EXPIRED", "CERTIFICATE_REVOKED", "CERTIFICATE_UNKNOWN", "BAD_CERTIFICATE",
    "UNSUPPORTED_CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "DECRYPT_ERROR",
)  # fmt: skip
"""Alerts with which a server refuses a client certificate, as OpenSSL names them."""
_UNKNOWN = " Whether the change was made is not known: look before you repeat it"


class SignIn:
    """What the command line signs in with.

    Args:
        root: file with the certificate that the server's certificate is verified against; None for those of the system.
        certificate: file of the client certificate; None without one.
        key: file of its key; None if it is in the certificate's file.
        token: file of mode 0600 with a token; None without one.
        now: seconds since 1970 UTC.

    Raises:
        RegistryError: a file cannot be used, the certificate has ended, or there is neither certificate nor token, or both.

    Attributes:
        context: of TLS.
        headers: of each request.
    """

    def __init__(self, root: Path | None, certificate: Path | None, key: Path | None, token: Path | None, now: int) -> None:
        if (certificate is None) == (token is None):
            raise RegistryError("sign in with a certificate (--auth-cert and --auth-key) or a token (--auth-token)")
        self.headers: dict[str, str] = {}
        try:
            self.context = ssl.create_default_context(cafile=None if root is None else str(root))
        except (OSError, ValueError) as problem:
            raise RegistryError(
                f"the root certificate {root} cannot be loaded ({_brief(problem)}): it must be a PEM file"
            ) from None
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        if certificate is not None:
            _check_end(certificate, now)
            try:
                self.context.load_cert_chain(certificate, key, password=_no_passphrase)
            except (OSError, ValueError) as problem:
                raise RegistryError(
                    f"the client certificate {certificate} and its key {key or certificate} cannot be loaded "
                    f"({_brief(problem)}): 'license-server accounts certify' makes a pair"
                ) from None
        if token is not None:
            text = privatefile.read(token, "the token's file").decode("ascii", "replace").strip()
            if not text or not text.isascii() or not text.isprintable():
                raise RegistryError(f"{token} is not the file of a token: it must have one line, as 'accounts token' prints it")
            self.headers["authorization"] = f"Bearer {text}"


def _check_end(certificate: Path, now: int) -> None:
    """Returns if the certificate has not ended; one that cannot be read is a problem of its own, found behind this.

    Raises:
        RegistryError: it has ended.
    """
    with contextlib.suppress(OSError, ValueError):
        ends = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
        if ends <= datetime.fromtimestamp(now, UTC):
            raise RegistryError(
                f"the client certificate {certificate} ended at {ends:%Y-%m-%d %H:%M:%SZ}: an administrator makes another one "
                "with 'license-server accounts certify'"
            )


def in_words(url: str, root: Path | None, problem: Exception, *, changes: bool) -> str:
    """Why a server could not be asked, and what to do.

    Args:
        url: of the server.
        root: file of the root certificate; None for those of the system.
        problem: the error of the connection.
        changes: whether a change was asked for, which may have been done.
    """
    if isinstance(problem, ssl.SSLCertVerificationError):
        return f"{url} is not trusted: {_of_verification(root, problem)}"
    if isinstance(problem, ssl.SSLError):
        reason = problem.reason or ""
        if any(alert in reason for alert in _REFUSED_ALERTS):
            return (
                f"{url} refuses the client certificate: it is not one of this server's operators, or has ended; an "
                "administrator makes another one with 'license-server accounts certify'"
            )
        return f"{url} does not speak TLS 1.3 ({_brief(problem)}): give the address of 'serve --operators', and its port"
    if isinstance(problem, socket.gaierror):
        return f"{url} cannot be reached: its name is not known; correct --server"
    if isinstance(problem, ConnectionRefusedError):
        return f"{url} cannot be reached: nobody listens there; is 'serve --operators' running, and is this its port?"
    if isinstance(problem, http.client.RemoteDisconnected | ConnectionResetError):
        # A server that refuses a client certificate in the handshake of TLS 1.3 ends the connection behind the client's part.
        return (
            f"{url} ends the connection without an answer: it does so with a client certificate that is not of its operators; "
            "an administrator makes one with 'license-server accounts certify'" + (_UNKNOWN if changes else "")
        )
    what = "it took too long" if isinstance(problem, TimeoutError) else _brief(problem)
    return f"{url} cannot be reached: {what}; is 'serve --operators' running there?" + (_UNKNOWN if changes else "")


def _of_verification(root: Path | None, problem: ssl.SSLCertVerificationError) -> str:
    if problem.verify_code in (_WRONG_NAME, _WRONG_ADDRESS):
        return "its certificate is for another name; use a name that 'license-server init --name' has given it"
    if problem.verify_code == _EXPIRED:
        return (
            "its certificate has ended, or this machine's clock is wrong ("
            + time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime())
            + "); 'license-server keys rotate tls' on its machine makes another one"
        )
    if root is None:
        return "no root of this system has issued its certificate; give the server's own root with --auth-root"
    return f"its certificate does not come from the root in {root}; give this server's own root with --auth-root"


def _brief(problem: Exception) -> str:
    if isinstance(problem, ssl.SSLError) and problem.reason:
        return problem.reason.lower().replace("_", " ")
    return (problem.strerror if isinstance(problem, OSError) else None) or str(problem) or type(problem).__name__


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase; decrypt it to a file of mode 0600 first")
