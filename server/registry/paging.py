"""Reads long lists page by page: each page continues behind the last row of the one before, in a transaction of its own.

So neither memory nor a transaction grows with the list, and nobody waits for its reader: a row that comes or goes
meanwhile is in the list or not, and every other row is in it once.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

from sqlalchemy.orm import Session

from .database import Database

PAGE = 500
"""Rows of one statement."""
T = TypeVar("T")


def pages(database: Database, read: Callable[[Session, T | None, int], list[T]], limit: int | None = None) -> Iterator[list[T]]:
    """The pages of a list; none of them is empty.

    Args:
        database: where they are.
        read: given the last row of the page before (None at the start) and a number, returns at most so many rows behind it.
        limit: rows in all, at most; None for all.
    """
    last: T | None = None
    while limit is None or limit > 0:
        size = PAGE if limit is None else min(PAGE, limit)
        with database.read() as session:
            page = read(session, last, size)
        if page:
            yield page
            last = page[-1]
        if len(page) < size:
            return
        limit = None if limit is None else limit - len(page)
