"""Finds texts that must not leave the machine, and takes them out: tokens, signed or encrypted texts, private keys.

By form alone, and rather too much than too little: a word that only looks like a token is removed too. Performs no IO.
"""

import re
from collections import Counter

_B64 = "[A-Za-z0-9_-]"
_EDGE = r"(?<![A-Za-z0-9_\-+/=.:])", r"(?![A-Za-z0-9_\-+/=.])"

KINDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "a private key",
        re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    ),
    ("an age key", re.compile(r"AGE-(?:SECRET|PLUGIN)-[A-Z0-9-]{8,}", re.IGNORECASE)),
    # JSON within JSON within JSON too.
    ("a private JWK", re.compile(r'\\*"(?:d|k)\\*"\s*:\s*\\*"[A-Za-z0-9_-]{22,}\\*"')),
    # A license token, a delivery, a signed request: three or five parts in compact serialization.
    ("a token", re.compile(rf"eyJ{_B64}{{8,}}(?:\.{_B64}*){{2,4}}")),
    ("a webhook key", re.compile(rf"lawh_{_B64}{{16,}}")),
    # `secrets.token_urlsafe(24)`: exactly 32 characters, of both cases; a digest in hex has one.
    ("an enrollment token", re.compile(rf"{_EDGE[0]}(?={_B64}*[a-z])(?={_B64}*[A-Z]){_B64}{{32}}{_EDGE[1]}")),
)
"""Each kind with its form. The order counts: a key is one finding, whatever its lines look like."""


def found(text: str) -> list[str]:
    """The kinds of what is in a text, each once."""
    return [kind for kind, form in KINDS if form.search(text)]


def removed(text: str) -> tuple[str, Counter[str]]:
    """A text without what must not be in it, and how often each kind was."""
    counts: Counter[str] = Counter()
    for kind, form in KINDS:
        text, count = form.subn(f"[{kind} was removed]", text)
        if count:
            counts[kind] += count
    return text, counts
