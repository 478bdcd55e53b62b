"""Names who asks on the admin socket: the peer that the kernel vouches for, and what their certificate proves."""

from dataclasses import dataclass

from ipc.peer import Peer


@dataclass(frozen=True, slots=True)
class Caller(Peer):
    """A peer who has shown a certificate of the admin CA.

    Attributes:
        role: of this request, as `agentd.admin.roles.Role` names it in lower case.
        certificate: SHA-256 of the certificate in DER, hex.
        name: the certificate's common name.
        ends: when the certificate ends, seconds since 1970 UTC.
        break_glass: it is a break-glass certificate.
    """

    role: str
    certificate: str
    name: str
    ends: int = 0
    break_glass: bool = False
