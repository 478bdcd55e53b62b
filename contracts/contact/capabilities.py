"""Declares what agent and server can do beyond release 0.1.0, and verifies the server's list. Pure.

    list    JWS (ES256) by a rotation key of the server   {"alg": "ES256", "typ": "server-capabilities+jwt", "kid": "<key id>"}

The forms of 0.1.0 refuse unknown members and purposes on both sides. So a party uses a new one only where the other has said
that it knows it: the server by this list, the agent by `AnnounceCapabilities` or by a member that only it sends. A list answers
no request: who carries it can deliver an old one. So a list only ever adds to what an agent believes of its server, and what
takes something away is a signed refusal of a request that used it.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from contracts.exchange import Reply, Request, Time, convert
from contracts.jose import MalformedToken, b64decode, parse_header, parse_json_object, verify_es256
from contracts.licensetoken import MAX_HEADER_CHARS
from contracts.trust import Trust

CAPABILITIES_TYPE = "server-capabilities+jwt"
MAX_CAPABILITIES = 32
MAX_CAPABILITIES_CHARS = 8192

ANNOUNCE = "announce-capabilities"
"""The server notes what an agent says it can do, and the agent says it."""

# Not `$`, which in Python's expressions also matches before a line feed at the end.
Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,63}\Z")]
Names = Annotated[tuple[Name, ...], Meta(max_length=MAX_CAPABILITIES)]


class Capabilities(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Content of the server's list.

    Attributes:
        v: version of this form.
        issued_at: when it was signed, seconds since 1970 UTC.
        capabilities: their names, each once. A name never gets another meaning; one that is not known is passed over.
    """

    v: Literal[1] = 1
    issued_at: Time
    capabilities: Names


class AnnounceCapabilities(Request, frozen=True):
    """Tells what the agent can do.

    Attributes:
        capabilities: as in `Capabilities`.
    """

    capabilities: Names


class AnnounceReply(Reply, frozen=True):
    """The server has noted what the agent can do.

    Attributes:
        capabilities: what the server can do: as in its list, but in answer to this request.
    """

    capabilities: Names


def verify_capabilities(text: str, trust: Trust) -> Capabilities:
    """Verifies that the server has signed a list, and returns it.

    Args:
        text: JWS in compact serialization.
        trust: the keys that may sign.

    Raises:
        MalformedToken: the list has another form.
        BadSignature: no key that the agent trusts signed it.
    """
    parts = text.split(".", 3)
    if len(text) > MAX_CAPABILITIES_CHARS or not text.isascii() or len(parts) != 3:
        raise MalformedToken("malformed list of capabilities: it must be a JWS in compact serialization")
    protected, payload, signature = parts
    if len(protected) > MAX_HEADER_CHARS:
        raise MalformedToken("the header of the list of capabilities is too long")
    header = parse_header(protected, {"alg": "ES256", "typ": CAPABILITIES_TYPE, "kid": None}, "header of the capabilities")
    verify_es256(trust.delivery_key(header["kid"]), b64decode(signature), f"{protected}.{payload}".encode("ascii"))
    content = parse_json_object(b64decode(payload), "list of capabilities")
    found: Capabilities = convert(content, Capabilities, "list of capabilities")
    if len(set(found.capabilities)) != len(found.capabilities):
        raise MalformedToken("the list of capabilities has a name twice")
    return found
