"""Verifies what the server signs for an agent besides licenses: a JWS (ES256) by a delivery key over a JSON object. Pure."""

from typing import Any

from .jose import MalformedToken, b64decode, parse_header, parse_json_object, verify_es256
from .licensetoken import MAX_HEADER_CHARS
from .trust import Trust

MAX_STATEMENT_CHARS = 16 * 1024


def verify_statement(text: str, kind: str, members: frozenset[str], what: str, trust: Trust) -> dict[str, Any]:
    """Verifies signature and form of a statement, and returns its content.

    Args:
        text: JWS in compact serialization (RFC 7515, 3.1).
        kind: the header's `typ`, so that one kind of statement is never taken for another (RFC 8725, 3.11).
        members: the names that the content must have, and no others.
        what: names the statement in errors.
        trust: the keys that may sign.

    Raises:
        MalformedToken: the statement has another form.
        BadSignature: no key that the agent trusts signed it.
    """
    parts = text.split(".", 3)
    if len(text) > MAX_STATEMENT_CHARS or not text.isascii() or len(parts) != 3:
        raise MalformedToken(f"malformed {what}: it must be a JWS in compact serialization")
    protected, payload, signature = parts
    if len(protected) > MAX_HEADER_CHARS:
        raise MalformedToken(f"the {what}'s header is too long")
    kid = parse_header(protected, {"alg": "ES256", "typ": kind, "kid": None}, f"{what}'s header")["kid"]
    verify_es256(trust.delivery_key(kid), b64decode(signature), f"{protected}.{payload}".encode("ascii"))
    content = parse_json_object(b64decode(payload), what)
    if content.keys() != members:
        raise MalformedToken(f"the {what} must have exactly the members {', '.join(sorted(members))}")
    return content


def integer(content: dict[str, Any], name: str, least: int, most: int, what: str) -> int:
    """An integer member within bounds. Raises MalformedToken if it is anything else."""
    value = content[name]
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise MalformedToken(f"the {what}'s {name} must be an integer from {least} to {most}")
    return value
