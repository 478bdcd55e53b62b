"""Says why a server was not reached: its address, the cause, and what to look at. Pure.

The libraries say "All connection attempts failed" or only the name of an exception; the cause is in what they caught.
"""

import errno
import socket
import ssl
from collections.abc import Iterator

_ALLOWED = "is the address in IPAddressAllow= of license-agent-link.service?"
_ERRNO = {
    errno.ECONNREFUSED: "connection refused: does the server listen on that port?",
    errno.EHOSTUNREACH: "no route to the host: is it up, and in the same network?",
    errno.ENETUNREACH: "no route to its network: does this machine have a network?",
    errno.ETIMEDOUT: f"no answer to connection attempts: is the host up, and {_ALLOWED}",
    errno.EPERM: f"this machine does not permit the connection: {_ALLOWED}",
    errno.EACCES: f"this machine does not permit the connection: {_ALLOWED}",
    errno.ECONNRESET: "it closed the connection before it answered",
    errno.EPIPE: "it closed the connection before it answered",
}
_NOT_A_NAME = frozenset({socket.EAI_NONAME, socket.EAI_NODATA})
_TLS = {
    "WRONG_VERSION_NUMBER": "it does not speak TLS on that port",
    "UNEXPECTED_EOF_WHILE_READING": "it closed the connection in the handshake",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it does not speak TLS 1.3",
    "UNSUPPORTED_PROTOCOL": "it does not speak TLS 1.3",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a client certificate and got none",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not accept the client certificate",
    "TLSV1_ALERT_ACCESS_DENIED": "it does not accept the client certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it does not accept the client certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it does not accept the client certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it says that the client certificate has expired: is its clock or ours wrong?",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "it says that the client certificate is revoked",
}


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and all that led to it, those in groups too; each once."""
    waiting, seen = [error], set()
    while waiting:
        found = waiting.pop(0)
        if id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        if isinstance(found, BaseExceptionGroup):
            waiting.extend(found.exceptions)
        # httpcore re-raises "from None", which leaves only the context.
        waiting.extend(each for each in (found.__cause__, found.__context__) if each is not None)


def connecting_took(seconds: float) -> str:
    """Why connecting took longer than so many seconds, as far as this machine can know."""
    return f"no answer to connection attempts within {seconds:g} s: is the host up, and {_ALLOWED}"


def network_text(error: BaseException) -> str:
    """What the system said of a connection that failed."""
    for cause in causes(error):
        if isinstance(cause, socket.gaierror):
            if cause.errno in _NOT_A_NAME:
                return "the name is not found: is it right, and does DNS know it?"
            return f"the name cannot be looked up now: is the resolver up and in IPAddressAllow=? ({cause.strerror})"
        if isinstance(cause, OSError) and cause.errno in _ERRNO:
            return _ERRNO[cause.errno]
        if isinstance(cause, OSError) and cause.errno is not None and cause.strerror:
            return cause.strerror
    return "it closed the connection before it answered"


def tls_text(error: ssl.SSLError) -> str:
    """What a handshake failed for. OpenSSL's name of it stays, in brackets: it is what people search for."""
    reason: str | None = getattr(error, "reason", None)  # OpenSSL's errors have one, those that Python makes need not
    if not reason:
        return "the handshake was broken off"
    known = _TLS.get(reason)
    return f"{known} ({reason})" if known else reason
