"""Reads what a device shows to identify itself: a client certificate of our CA, or a token in `Authorization`. Pure.

Headers of proxies (`X-Ssl-Client-Cn`, `X-Ssl-Issuer-Hash-1`, `X-Forwarded-For` and their like) are not read at all: hawkBit
behind a proxy believes them, and whoever reaches this listener could write them (threat-model T64).
"""

from dataclasses import dataclass
from typing import Any

from server.fleet.ddi.credentials import Kind, digest_of, looks_like
from server.web.peers import Peer
from server.web.transport import PEER_EXTENSION

from .problems import Refused

MAX_HEADER_BYTES = 512
_SCHEMES = {b"targettoken": Kind.TARGET, b"gatewaytoken": Kind.GATEWAY}


@dataclass(frozen=True, slots=True)
class Shown:
    """What a device has shown.

    Attributes:
        kind: certificate, target or gateway.
        digest: SHA-256 of it, in hex.
    """

    kind: Kind
    digest: str


def shown_by(scope: dict[str, Any], device_id: str, now: int) -> Shown:
    """What a request shows. Whether it counts is for the registry to say.

    Args:
        scope: of the request.
        device_id: the id in its path.
        now: seconds since 1970 UTC.

    Raises:
        Refused: it shows nothing, two things, or what cannot count.
    """
    peer: Peer | None = scope.get("extensions", {}).get(PEER_EXTENSION)
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    if (peer is not None and given) or len(given) > 1:
        raise Refused("not-signed-in", "the request identifies its device twice: send a certificate or one token")
    if peer is not None:
        # An agent's certificate names no device: it does not count here, nor a device's certificate there.
        if peer.device_id != device_id or not peer.valid_at(now):
            raise Refused("not-signed-in", "the client certificate is not one of this device, or is outside its dates")
        return Shown(Kind.CERTIFICATE, peer.fingerprint)
    if not given:
        raise Refused("not-signed-in", "there is neither a client certificate nor an Authorization header")
    scheme, _, token = given[0].partition(b" ")
    kind = _SCHEMES.get(scheme.lower())
    text = token.strip().decode("ascii", "replace") if len(given[0]) <= MAX_HEADER_BYTES else ""
    if kind is None or not looks_like(kind, text):
        raise Refused(
            "not-signed-in", "the Authorization header is neither 'TargetToken …' nor 'GatewayToken …' of this server"
        )
    return Shown(kind, digest_of(text))
