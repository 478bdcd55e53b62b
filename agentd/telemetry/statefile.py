"""Reads and writes `state.json`: the agent's state without secrets, for people and tools. No verdict depends on it.

A checksum and a backup show and repair a corrupt file. The next start reads from it what no other file keeps (`Kept`): the last
contact with the server, since when the agent has been degraded, and whether an administrator switched that on.
"""

import hashlib
import json
from enum import Enum
from pathlib import Path
from typing import Any

from agentd.sync.mode import Kept
from common.files import write_atomic

FORMAT = 1
MAX_TIME_S = 253_402_300_800  # the year 10000


class Origin(Enum):
    """Where a state was read from."""

    MAIN = "state.json"
    BACKUP = "its backup"
    NOTHING = "nothing"


def encode_state(content: dict[str, Any]) -> bytes:
    """The file's bytes: indented JSON with a SHA-256 over its compact form."""
    body = {"format": FORMAT, **content}
    return json.dumps({**body, "checksum": _checksum(body)}, indent=2).encode() + b"\n"


def decode_state(data: bytes) -> dict[str, Any] | None:
    """The content, or None if it is not whole."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    found = content.pop("checksum", None)
    if content.get("format") != FORMAT or found != _checksum(content):
        return None
    return content


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class StateFile:
    """The file and its backup.

    Args:
        path: `state.json`; the backup lies beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._backup = path.with_name(path.name + ".bak")

    def read(self) -> tuple[Kept, Origin, bool]:
        """What is kept, where it was found, and whether `state.json` existed but was corrupt."""
        corrupt = False
        for path, origin in ((self.path, Origin.MAIN), (self._backup, Origin.BACKUP)):
            try:
                content = decode_state(path.read_bytes())
            except FileNotFoundError:
                continue
            except OSError:
                corrupt = True
                continue
            if content is not None:
                held = content.get("degraded_held") is True
                kept = Kept(_time(content, "last_server_contact"), _time(content, "degraded_since"), held)
                return kept, origin, corrupt
            corrupt = True
        return Kept(), Origin.NOTHING, corrupt

    def write(self, content: dict[str, Any]) -> None:
        """Replaces the file, then its backup."""
        data = encode_state(content)
        write_atomic(self.path, data)
        write_atomic(self._backup, data)


def _time(content: dict[str, Any], name: str) -> int | None:
    value = content.get(name)
    # The checksum does not protect against careful forgery: a value that is not a time would fail later, in a reply.
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_TIME_S else None
