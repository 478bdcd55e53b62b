"""Reads what a license token says of itself without a key. Nothing here performs IO, and nothing here is a verdict.

The license itself is encrypted. In the open are its header (`docs/protocol.md`, "License tokens") and its size.
"""

import base64
import binascii
import hashlib
import json
import re
from typing import Any

from .tokenhint import license_token_hint

_KID = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})/([1-9][0-9]{0,9})")
_PARTS = 5


def inspect(token: str) -> dict[str, Any]:
    """What can be read of a token. Anyone could have written it: only the agent's verdict proves anything.

    Returns:
        `characters` and `sha256` (hex) of the token; `header`, the members of its JWE header; `agent_id` and
        `secret_version` from the header's `kid`; `problem`, why one of these could not be read. What is not there is None.
    """
    found: dict[str, Any] = {
        "characters": len(token),
        "sha256": hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest(),
        "header": None,
        "agent_id": None,
        "secret_version": None,
        "problem": None,
    }
    parts = token.split(".")
    if len(parts) != _PARTS:
        hint = license_token_hint(token) or f"it has {len(parts)} parts with dots between them, not {_PARTS}"
        return {**found, "problem": hint}
    header = _header(parts[0])
    if header is None:
        return {**found, "problem": "its first part is not a JSON object in base64url"}
    found["header"] = header
    kid = header.get("kid")
    match = _KID.fullmatch(kid) if isinstance(kid, str) else None
    if match is None:
        return {**found, "problem": "its header names no agent and secret version (kid)"}
    return {**found, "agent_id": match[1], "secret_version": int(match[2])}


def _header(part: str) -> dict[str, Any] | None:
    try:
        content = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
