"""What an agent has reported so far, and whether its audit log went back. Pure."""

from typing import Any, Protocol


class Seen(Protocol):
    """What an agent has reported: a row of the registry, or what a statement has read of it."""

    seen_version: Any
    seen_at: Any
    last_seen: Any
    audit_seq: Any
    audit_head: Any
    audit_turns: Any


def went_back(seen: Seen, seq: int, head: str) -> bool:
    """Whether the agent's audit log has become shorter, or has another hash under the same number: it was changed."""
    return seen.audit_seq is not None and (seq < seen.audit_seq or (seq == seen.audit_seq and head != seen.audit_head))
