"""Makes the TLS context: version 1.3 only, client certificates optional but verified. Private keys never touch the disk."""

import os
import ssl

_NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL's x509_vfy.h, which Python's `ssl` does not name."""


def server_context(chain_pem: str, key_pem: bytes, client_ca_pem: str) -> ssl.SSLContext:
    """Makes the context of the API's listener.

    Args:
        chain_pem: the server's certificate and those above it; the root comes last, because a new agent has only its pin.
        key_pem: the certificate's private key.
        client_ca_pem: the CAs of client certificates; empty if no client has one.

    Raises:
        ssl.SSLError: certificate and key do not match.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_OPTIONAL if client_ca_pem else ssl.CERT_NONE
    # The issuing CA is a trust anchor by itself, with or without the root (RFC 5280, 6.1.1 d).
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    # Dates are checked for each request (`middleware`): a certificate outside its dates can be renewed, and nothing else. Those
    # of the CA need no check, because no certificate that it issues is valid when the CA is not.
    context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
    if client_ca_pem:
        context.load_verify_locations(cadata=client_ca_pem)
    # A resumed session would skip the verification of the client's certificate.
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    load_identity(context, chain_pem, key_pem)
    return context


def load_identity(context: ssl.SSLContext, chain_pem: str, key_pem: bytes) -> None:
    """Loads a certificate and its key into a context. Open connections keep theirs.

    Raises:
        ssl.SSLError: certificate and key do not match.
    """
    # `load_cert_chain` reads files only. These have no name, and vanish when they are closed.
    chain, key = _anonymous(chain_pem.encode()), _anonymous(key_pem)
    try:
        context.load_cert_chain(f"/proc/self/fd/{chain}", f"/proc/self/fd/{key}")
    finally:
        os.close(chain)
        os.close(key)


def _anonymous(data: bytes) -> int:
    fd = os.memfd_create("license-server", os.MFD_CLOEXEC)
    os.write(fd, data)
    return fd
