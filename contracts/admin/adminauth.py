"""Forms what an administrator signs to have one act performed: a fixed context, the agent, its boot, a challenge, the act.

The agent gives a challenge; the administrator signs it together with the SHA-256 of the act, so one signature is one act. The
act is hashed in the form of RFC 8785, and the signature is ES256 in DER (FIPS 186-5; RFC 3279 section 2.2.3), so that any
language, and `openssl dgst -sha256 -sign`, can make one.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

CONTEXT = b"license-agent-admin-v1\0"
"""Begins what is signed. Neither an SSH signature (`SSHSIG`) nor TLS (64 spaces) begins so."""
ROLE_URI = "urn:license-agent:role:"
"""Begins the subject alternative name of an administrator's certificate that says the role."""
ROLES = ("viewer", "operator", "admin")
"""The roles, each of which may do what the ones before it may."""
MAX_NAME_CHARS = 64
"""Longest common name of an administrator's certificate."""
BREAK_GLASS_URI = "urn:license-agent:break-glass:"
"""Begins the further name of a break-glass certificate that says for which agent it is."""
BREAK_GLASS_S = 4 * 3600
"""How long a break-glass certificate counts from its first act on, in running time of its machine."""
CHALLENGE_BYTES = 32
BOOT_ID_BYTES = 16
DIGEST_BYTES = 32
MAX_NUMBER = 2**53 - 1
"""The greatest number that RFC 8785 writes as it is (I-JSON, RFC 7493 section 2.2)."""


def act_digest(op: str, params: Mapping[str, Any]) -> bytes:
    """SHA-256 of `{"op": …, "params": {…}}` in the form of RFC 8785.

    Args:
        op: the operation.
        params: the request's members besides `v`, `id` and `op`: text, whole numbers, true, false, null, lists of these.

    Raises:
        ValueError: a member is of another type, or a number is too large.
    """
    whole = {"op": op, "params": {name: _plain(value) for name, value in params.items()}}
    # Member names are ASCII, where the order of code points is that of RFC 8785 (UTF-16 code units).
    return hashlib.sha256(json.dumps(whole, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()).digest()


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int) and abs(value) <= MAX_NUMBER:
        return value
    raise ValueError(f"a member of type {type(value).__name__} cannot be signed")


def signed_text(agent_id: str, boot_id: bytes, challenge: bytes, digest: bytes) -> bytes:
    """What the administrator's key signs.

    Args:
        agent_id: the agent that is to act; empty for a device that is not an agent yet.
        boot_id: the kernel's, 16 bytes; a signature of an earlier boot is refused.
        challenge: 32 bytes that the agent gave on this connection.
        digest: from `act_digest`.

    Raises:
        ValueError: a part has another size.
    """
    name = agent_id.encode()
    if len(name) > 255 or len(boot_id) != BOOT_ID_BYTES or len(challenge) != CHALLENGE_BYTES or len(digest) != DIGEST_BYTES:
        raise ValueError("a part of what is to be signed has the wrong size")
    return CONTEXT + bytes([len(name)]) + name + boot_id + challenge + digest
