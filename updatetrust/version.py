"""Orders versions of products. Pure.

    3.2.1-rc.1 < 3.2.1 = 3.2.1.0 < 3.2.2 < 3.10

Numbers that are missing are zero. A pre-release is below its release; two of them are compared part by part between the dots,
as SemVer 2.0.0 (11.4) does: numbers by value and below words, words by their characters, and a longer one above its beginning.
"""

import re
from dataclasses import dataclass, field
from functools import total_ordering

from contracts.directive import VERSION_PATTERN

NUMBERS = 4
_FORM = re.compile(VERSION_PATTERN)
_Key = tuple[tuple[int, ...], int, tuple[tuple[int, int, str], ...]]


class MalformedVersion(ValueError):
    """The text is no version; the message says what one looks like."""


@total_ordering
@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """A version of a product. Two are equal if none is above the other, so `3.2` equals `3.2.0`.

    Attributes:
        text: as it was written.
    """

    text: str
    _key: _Key = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> "Version":
        """The version that a text names.

        Raises:
            MalformedVersion: it has another form.
        """
        if not _FORM.search(text):
            raise MalformedVersion(
                f"{ascii(text)[:60]} is not a version: one to four numbers with dots, then perhaps a dash and a pre-release"
            )
        numbers, dash, pre = text.partition("-")
        counted = [int(number) for number in numbers.split(".")]
        parts = tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in pre.split(".")) if dash else ()
        return cls(text, (tuple(counted + [0] * (NUMBERS - len(counted))), 0 if dash else 1, parts))

    def __eq__(self, other: object) -> bool:
        return self._key == other._key if isinstance(other, Version) else NotImplemented

    def __lt__(self, other: object) -> bool:
        return self._key < other._key if isinstance(other, Version) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key)

    def __str__(self) -> str:
        return self.text
