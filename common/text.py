"""Decides which characters a text for people may have. The rule names ranges of code points, and so never changes.

Refused is what has no place in a name and does harm where it is shown: it breaks lines, drives a terminal, turns the direction
of the text around it, or is no character at all. Everything else is allowed: every space, joiners, private use, and what
Unicode has not assigned yet, since a rule by category would differ with the version of Unicode that an interpreter has.
"""

import re
from typing import Final

FORBIDDEN: Final = (
    (0x0000, 0x001F, "control characters"),
    (0x007F, 0x009F, "control characters: DEL and C1"),
    (0x2028, 0x2029, "line and paragraph separator"),
    (0x202A, 0x202E, "directional embeddings and overrides"),
    (0x2066, 0x2069, "directional isolates"),
    (0x206A, 0x206F, "deprecated format characters"),
    (0xD800, 0xDFFF, "surrogates"),
    (0xFDD0, 0xFDEF, "noncharacters"),
    (0xFEFF, 0xFEFF, "byte order mark"),
    (0xFFF9, 0xFFFB, "interlinear annotation"),
    *((plane << 16 | 0xFFFE, plane << 16 | 0xFFFF, "noncharacters") for plane in range(17)),
)
"""First and last code point of each range, and what it is. `docs/protocol.md` has the same table."""

_PATTERN = re.compile("[" + "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last, _what in FORBIDDEN) + "]")


def forbidden_in(text: str) -> str | None:
    """The first character of a text that is refused, as U+XXXX; None if there is none."""
    # ASCII is the same in every version of Unicode, and most texts are nothing else.
    if text.isascii() and text.isprintable():
        return None
    found = _PATTERN.search(text)
    return None if found is None else f"U+{ord(found[0]):04X}"


def shown(text: str) -> str:
    """A text as a terminal may have it: each refused character but the line break becomes U+XXXX in angle brackets."""
    return _PATTERN.sub(lambda found: found[0] if found[0] == "\n" else f"<U+{ord(found[0]):04X}>", text)


def quantity(count: int, noun: str) -> str:
    """A number with its noun: 1 day, 2 days."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
