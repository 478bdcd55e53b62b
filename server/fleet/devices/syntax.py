"""Parses the selection language, which names devices by what is known of them. Pure.

    tag=beta and (hardware=pos-x200 or attr.lane=express) and not pos.version<2.1

`not` binds more tightly than `and`, and `and` more tightly than `or`. docs/guides/fleets.md describes the terms. The bounds
keep what one selection costs the database small: operators of every role may send one (threat-model T59).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import NoReturn

from contracts.directive import PRODUCT_PATTERN
from server.base.errors import Invalid
from updatetrust.version import MalformedVersion, Version

MAX_CHARS = 1000
MAX_DEPTH = 8
"""Parentheses and `not` inside each other, at most."""
MAX_TERMS = 32
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Of an attribute."""

_TOKEN = re.compile(
    r"""\s*(?: (?P<quoted> " (?: [^"\\] | \\["\\] )* " )
             | (?P<operator> != | <= | >= | = | < | > )
             | (?P<parenthesis> [()] )
             | (?P<word> [^\s"()=<>!]+ ) )""",
    re.VERBOSE,
)
_END = re.compile(r"\s*\Z")
_WORDS = ("and", "or", "not")


class Field(StrEnum):
    """What a term is about."""

    TAG = "tag"
    HARDWARE = "hardware"
    SITE = "site"
    KIND = "kind"
    ZONE = "zone"
    ID = "id"
    FLEET = "fleet"
    ATTRIBUTE = "attr"
    VERSION = "version"


_PLAIN = {each.value: each for each in Field if each not in (Field.ATTRIBUTE, Field.VERSION)}
_EXPECTED = "tag, hardware, site, kind, zone, id, fleet, attr.NAME or PRODUCT.version"


@dataclass(frozen=True, slots=True)
class Term:
    """One comparison.

    Attributes:
        field: what is compared.
        operator: one of = != < <= > >=; only versions have others than =.
        value: what it is compared with; for a prefix of ids without the star.
        name: of the attribute or product; empty for other fields.
        prefix: whether `value` is the beginning of an id.
    """

    field: Field
    operator: str
    value: str
    name: str = ""
    prefix: bool = False

    @property
    def version(self) -> Version:
        """The version that a term about versions compares with."""
        return Version.parse(self.value)

    def admits(self, version: str) -> bool:
        """Whether a version satisfies a term about versions. One that is malformed satisfies none."""
        try:
            found, wanted = Version.parse(version), self.version
        except MalformedVersion:
            return False
        return {
            "=": found == wanted, "!=": found != wanted, "<": found < wanted,
            "<=": found <= wanted, ">": found > wanted, ">=": found >= wanted,
        }[self.operator]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Not:
    """What its part does not select."""

    part: "Node"


@dataclass(frozen=True, slots=True)
class All:
    """What each part selects."""

    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Some:
    """What at least one part selects."""

    parts: tuple["Node", ...]


Node = Term | Not | All | Some


@dataclass(frozen=True, slots=True)
class Selection:
    """A selection that was parsed.

    Attributes:
        text: as it was written.
        root: what it says.
    """

    text: str
    root: Node

    def terms(self) -> Iterator[Term]:
        """Its comparisons, from left to right."""
        return _terms(self.root)


def _terms(node: Node) -> Iterator[Term]:
    if isinstance(node, Term):
        yield node
    else:
        for part in (node.part,) if isinstance(node, Not) else node.parts:
            yield from _terms(part)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    column: int


@lru_cache(maxsize=512)
def parse(text: str) -> Selection:
    """The selection that a text describes.

    Raises:
        Invalid: the text is no selection, or is beyond the bounds; the message names the column and what was expected.
    """
    if len(text) > MAX_CHARS:
        raise Invalid(
            f"the selection has {len(text)} characters; at most {MAX_CHARS} are possible: use a tag instead of a list"
        )
    reader = _Reader(_tokens(text))
    root = reader.some(0)
    reader.require_end()
    return Selection(text, root)


def _tokens(text: str) -> list[_Token]:
    found, place = [], 0
    while not _END.match(text, place):
        match = _TOKEN.match(text, place)
        if match is None:
            column = place + len(text[place:]) - len(text[place:].lstrip()) + 1
            if text[column - 1] == '"':
                _refuse(column, "a quote that ends the value, and \\ only before a quote or another \\")
            _refuse(column, "a term; quote a value that has special characters", text[column - 1])
        kind = match.lastgroup or ""
        found.append(_Token(kind, match[kind], match.start(kind) + 1))
        place = match.end()
    return [*found, _Token("end", "", len(text) + 1)]


def _refuse(column: int, expected: str, found: str | None = None) -> NoReturn:
    instead = "" if found is None else f", not {ascii(found)[:60]}"
    raise Invalid(f"the selection is malformed at column {column}: expected {expected}{instead}")


class _Reader:
    """Reads tokens by recursive descent. `depth` counts parentheses and `not`."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._place = 0
        self._count = 0

    @property
    def _next(self) -> _Token:
        return self._tokens[self._place]

    def _take(self) -> _Token:
        token = self._next
        self._place += token.kind != "end"
        return token

    def _is(self, word: str) -> bool:
        if self._next.kind in ("word", "parenthesis") and self._next.text == word:
            self._place += 1
            return True
        return False

    def require_end(self) -> None:
        if self._next.kind != "end":
            _refuse(self._next.column, "'and', 'or' or the end", self._next.text)

    def some(self, depth: int) -> Node:
        parts = [self._every(depth)]
        while self._is("or"):
            parts.append(self._every(depth))
        return parts[0] if len(parts) == 1 else Some(tuple(parts))

    def _every(self, depth: int) -> Node:
        parts = [self._one(depth)]
        while self._is("and"):
            parts.append(self._one(depth))
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _one(self, depth: int) -> Node:
        column = self._next.column
        if depth > MAX_DEPTH:
            _refuse(column, f"at most {MAX_DEPTH} parentheses and 'not' inside each other")
        if self._is("not"):
            return Not(self._one(depth + 1))
        if not self._is("("):
            return self._term()
        inside = self.some(depth + 1)
        if not self._is(")"):
            _refuse(self._next.column, f"')' for the '(' at column {column}", self._next.text or None)
        return inside

    def _term(self) -> Term:
        field, name = self._field()
        operator = self._take()
        if operator.kind != "operator":
            _refuse(operator.column, "an operator: =" if field is not Field.VERSION else "one of = != < <= > >=", operator.text)
        if operator.text != "=" and field is not Field.VERSION:
            _refuse(
                operator.column, "=, as only PRODUCT.version has other operators; write 'not' before the term", operator.text
            )
        self._count += 1
        if self._count > MAX_TERMS:
            _refuse(operator.column, f"at most {MAX_TERMS} terms")
        return self._with_value(field, name, operator.text)

    def _field(self) -> tuple[Field, str]:
        token = self._take()
        if token.kind != "word" or token.text in _WORDS:
            _refuse(token.column, f"a term that begins with {_EXPECTED}", token.text)
        if token.text in _PLAIN:
            return _PLAIN[token.text], ""
        head, _dot, name = token.text.partition(".")
        if head == Field.ATTRIBUTE and re.search(NAME_PATTERN, name):
            return Field.ATTRIBUTE, name
        product, _dot, last = token.text.rpartition(".")
        if last == "version" and re.search(PRODUCT_PATTERN, product):
            return Field.VERSION, product
        _refuse(token.column, _EXPECTED, token.text)

    def _with_value(self, field: Field, name: str, operator: str) -> Term:
        token = self._take()
        if token.kind not in ("word", "quoted") or (token.kind == "word" and token.text in _WORDS):
            _refuse(token.column, "a value, in quotes if it has blanks or is a word of the language", token.text)
        quoted = token.kind == "quoted"
        value = re.sub(r"\\(.)", r"\1", token.text[1:-1]) if quoted else token.text
        if not value or not value.isprintable():
            _refuse(token.column, "a value of printable characters")
        if field is Field.VERSION:
            try:
                Version.parse(value)
            except MalformedVersion as problem:
                _refuse(token.column, f"a version: {problem}")
        prefix = field is Field.ID and not quoted and value.endswith("*")
        value = value[:-1] if prefix else value
        if "*" in value and not quoted:
            _refuse(token.column, "a * only at the end of an id; quote a value that has one", token.text)
        return Term(field, operator, value, name, prefix)
