"""The server's TLS: 1.3 only; client certificates optional in the handshake, verified if given. Keys never touch the disk."""

import os
import ssl


def server_context(chain_pem: str, key_pem: bytes, client_ca_pem: str) -> ssl.SSLContext:
    """A context for the API's listener.

    Args:
        chain_pem: the server's certificate, those above it, and the root at the end: a new agent has its pin only.
        key_pem: its private key.
        client_ca_pem: whose client certificates count.

    Raises:
        ssl.SSLError: certificate and key do not fit.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_OPTIONAL
    # The issuing CA is an anchor by itself, whether or not the root stands beside it (RFC 5280, 6.1.1 d).
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=client_ca_pem)
    # A resumed session would not verify the client's certificate again.
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    load_identity(context, chain_pem, key_pem)
    return context


def load_identity(context: ssl.SSLContext, chain_pem: str, key_pem: bytes) -> None:
    """Gives a context a certificate and its key; open connections keep the ones they have.

    Raises:
        ssl.SSLError: certificate and key do not fit.
    """
    # `load_cert_chain` reads files only; these have no name and are gone when closed.
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
