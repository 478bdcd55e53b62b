"""Compiles each SQL statement once in a process, though each test has a database, and so an engine, of its own.

SQLAlchemy keeps compiled statements for each engine, by its dialect object: a test of a few requests spends most of its time on
compiling what the test before has compiled. All engines of the tests are made in the same way and speak to the same SQLite or
PostgreSQL, so those of one kind have the same statements.
"""

from typing import Any

from sqlalchemy import Engine
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.util import LRUCache

_MOST = 5000
_statements: LRUCache[Any, Any] = LRUCache(_MOST)


def share_compiled_statements() -> None:
    """From now on, engines that are made in this process share their compiled statements."""
    made = Engine.__init__

    def make(self: Engine, *arguments: Any, **named: Any) -> None:
        made(self, *arguments, **named)
        self._compiled_cache = _statements

    Engine.__init__ = make  # type: ignore[method-assign]
    # Keys of this cache, and of those that mappers have for what a session writes, begin with the dialect.
    DefaultDialect.__eq__ = _same  # type: ignore[method-assign]
    DefaultDialect.__hash__ = _kind  # type: ignore[method-assign]


def _same(dialect: DefaultDialect, other: object) -> bool:
    return type(dialect) is type(other)


def _kind(dialect: DefaultDialect) -> int:
    return hash(type(dialect))
