"""Verifies the server's statement about an agent's audit log: where it stood at the last contact. Pure.

An auditor compares a copy of the log with it. It is dated, so that an old statement does not pass for a new one, and it has the
agent's public keys as the registry has them, so that the auditor need not believe the machine's word for its own keys.
"""

from dataclasses import dataclass
from typing import Any

from .claims import MAX_TIME
from .jose import MalformedToken, parse_header, point_from_jwk, public_key_from_jwk
from .keyset import verify_key_set
from .statement import integer, verify_statement
from .trust import Trust

AUDIT_HEAD_TYPE = "audit-head+jwt"
MEMBERS = frozenset({"agent_id", "audit_seq", "audit_head", "last_contact", "time", "identity_key", "attestation_key"})

_MAX_SEQ = 2**53 - 1
_WHAT = "audit head"
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class AuditHead:
    """What the server says of an agent's log. Times are seconds since 1970 UTC.

    Attributes:
        agent_id: the agent.
        time: when the server signed this.
        last_contact: the agent's last contact; None if it has had none.
        seq: number of the newest checkpoint's record that the agent has reported; None if it has reported none.
        head: SHA-256 over the chains' heads that this checkpoint states, 64 hex characters; None with `seq`.
        identity: point of the agent's identity key, 65 bytes; None if the registry has none.
        attestation: point of its attestation key; likewise.
        key: id of the key that signed.
    """

    agent_id: str
    time: int
    last_contact: int | None
    seq: int | None
    head: str | None
    identity: bytes | None
    attestation: bytes | None
    key: str


def verify_audit_head(text: str, trust: Trust) -> AuditHead:
    """Verifies a statement and returns its content.

    Args:
        text: the signed statement, without what may come after it in its file.
        trust: the keys that may sign.

    Raises:
        MalformedToken: the statement has another form.
        BadSignature: no key in `trust` signed it.
    """
    content = verify_statement(text, AUDIT_HEAD_TYPE, MEMBERS, _WHAT, trust)
    agent_id, head = content["agent_id"], content["audit_head"]
    if not isinstance(agent_id, str) or not 0 < len(agent_id) <= 64:
        raise MalformedToken(f"the {_WHAT}'s agent_id must have 1 to 64 characters")
    if (head is None) != (content["audit_seq"] is None):
        raise MalformedToken(f"the {_WHAT} must have both audit_seq and audit_head, or neither")
    if head is not None and not (isinstance(head, str) and len(head) == 64 and set(head) <= _HEX):
        raise MalformedToken(f"the {_WHAT}'s audit_head must have 64 characters 0-9 and a-f")
    return AuditHead(
        agent_id,
        integer(content, "time", 1, MAX_TIME, _WHAT),
        _or_none(content, "last_contact", MAX_TIME),
        _or_none(content, "audit_seq", _MAX_SEQ),
        head,
        _point(content["identity_key"]),
        _point(content["attestation_key"]),
        parse_header(text.split(".", 1)[0], {"alg": "ES256", "typ": AUDIT_HEAD_TYPE, "kid": None}, _WHAT)["kid"],
    )


def trust_under_root(text: str, root: str) -> tuple[Trust, int]:
    """The server's keys in a key set that the root has signed, and the key set's number.

    Args:
        text: the key set, as the file of a head has it after the statement.
        root: the root's pin, `sha256:` and 64 hex characters.

    Raises:
        MalformedToken, BadSignature: as `verify_key_set`.
    """
    found = verify_key_set(text, (root,)).content
    return found.trust(), found.number


def _or_none(content: dict[str, Any], name: str, most: int) -> int | None:
    return None if content[name] is None else integer(content, name, 0, most, _WHAT)


def _point(jwk: object) -> bytes | None:
    if jwk is None:
        return None
    if not isinstance(jwk, dict):
        raise MalformedToken(f"the {_WHAT}'s keys must be JWKs")
    public_key_from_jwk(jwk)
    return point_from_jwk(jwk)
