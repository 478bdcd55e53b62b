"""Finds and changes the rows that a vendor names: products, policies, customers, sites, licenses. One set of rules for all.

An id is the vendor's own or a new one, and never changes. A row's revision counts its changes: who has read revision 3 and
changes the row says so, and is refused if somebody else was faster.
"""

import re
import uuid
from typing import Any, Protocol, TypeVar

from sqlalchemy.orm import Session

from common.text import forbidden_in
from contracts.claims import MAX_FEATURES, MAX_METADATA, MAX_NAME_CHARS, MAX_VALUE_CHARS
from server.base.errors import Conflict, Invalid, NotFound
from server.registry import audit, events

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_NAME = 128


class Revised(Protocol):
    """A row that counts its changes."""

    updated_at: Any
    revision: Any


R = TypeVar("R")


def new_id(given: str | None, what: str) -> str:
    """The id of a new row: the given one, or a new one.

    Raises:
        Invalid: it is not an id.
    """
    text = str(uuid.uuid4()) if given is None else given
    if not ID.fullmatch(text):
        raise Invalid(
            f"{what} {ascii(text)[:80]} is not an id: use 1 to 64 letters, digits, dots, dashes and underscores, and begin "
            "with a letter or digit"
        )
    return text


def checked_text(text: str, what: str, most: int = MAX_NAME, least: int = 1) -> str:
    """A text for people, within its bounds. Raises Invalid."""
    if not least <= len(text) <= most:
        raise Invalid(f"{what} must have {least} to {most} characters; it has {len(text)}")
    refused = forbidden_in(text)
    if refused is not None:
        raise Invalid(f"{what} has a character that no text may have: {refused}")
    return text


def checked_features(features: tuple[str, ...]) -> tuple[str, ...]:
    """Features of a license, each once, in their order. Raises Invalid."""
    found = tuple(dict.fromkeys(checked_text(name, "a feature", MAX_NAME_CHARS) for name in features))
    if len(found) > MAX_FEATURES:
        raise Invalid(f"a license has at most {MAX_FEATURES} features, not {len(found)}")
    return found


def checked_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """Metadata of a license. Raises Invalid."""
    if len(metadata) > MAX_METADATA:
        raise Invalid(f"a license has at most {MAX_METADATA} metadata entries, not {len(metadata)}")
    return {
        checked_text(name, "a metadata name", MAX_NAME_CHARS): checked_text(value, f"the metadata {name}", MAX_VALUE_CHARS, 0)
        for name, value in metadata.items()
    }


def require_new(session: Session, model: type[R], row_id: str, what: str) -> None:
    """Returns if there is no row with this id; raises Conflict."""
    if session.get(model, row_id) is not None:
        raise Conflict(f"there is a {what} {row_id!r} already: choose another id, or change that one")


def found(session: Session, model: type[R], row_id: str, what: str, lists: str, *, lock: bool = False) -> R:
    """A row by its id.

    Args:
        session: of any transaction.
        model: its table.
        row_id: its id.
        what: what it is, for the error.
        lists: the command that lists such rows, for the error.
        lock: keep others from changing it until the transaction ends.

    Raises:
        NotFound: there is none.
    """
    row = session.get(model, row_id, with_for_update=lock, populate_existing=lock)
    if row is None:
        raise NotFound(f"there is no {what} {row_id!r}; 'license-server {lists}' lists them")
    return row


def expect(row: Revised, revision: int | None, what: str) -> None:
    """Returns if a row has the revision that the caller has read, or the caller has named none; raises Conflict."""
    if revision is not None and row.revision != revision:
        raise Conflict(
            f"{what} has revision {row.revision}, not {revision}: somebody has changed it; read it again, then repeat it"
        )


def touch(row: Revised, now: int) -> None:
    """Counts a change of a row."""
    row.revision += 1
    row.updated_at = now


def record(session: Session, event: str, now: int, **ids: str) -> None:
    """Writes an operator's act to the feed of events and to the audit, by the ids of what it was about."""
    events.emit(session, event, now, **ids)
    audit.record(session, audit.ADMIN, event, "ok", now, **ids)
