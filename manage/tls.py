"""Makes the TLS context: version 1.3 only, a client certificate of the admin CA required. The key is read by nobody else.

The handshake is the outer lock. It decides who may send requests and gives no authority: the agent judges each act.
"""

import contextlib
import os
import ssl
from collections.abc import Iterator

from settings.errors import ConfigError

from .config import Credentials, ManageConfig


def server_context(config: ManageConfig, found: Credentials) -> ssl.SSLContext:
    """Makes the context of the listener.

    Args:
        config: names the files, for errors.
        found: their content.

    Raises:
        ConfigError: a file holds something else, or certificate and key do not match.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    # What root has installed is the trust anchor, whether it signed itself or not (RFC 5280, 6.1.1 d).
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    # A resumed session would skip the verification of the client's certificate.
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_verify_locations(cadata=found.admin_ca.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise ConfigError([f"{config.admin_ca} holds no certificate in PEM; install the admin CA there"]) from None
    try:
        with _anonymous(found.certificate) as certificate, _anonymous(found.key) as key:
            context.load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, ValueError, OSError):
        text = (
            f"{config.certificate} and {config.key} are no certificate and its private key, both in PEM and without a password"
        )
        raise ConfigError([text]) from None
    return context


def _no_password() -> str:
    """Without it OpenSSL would ask at the terminal."""
    raise ValueError("the key is encrypted")


@contextlib.contextmanager
def _anonymous(data: bytes) -> Iterator[str]:
    # `load_cert_chain` reads files only: what was checked is what is used, and no path is opened a second time.
    descriptor = os.memfd_create("license-agent-manage", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
