"""Reads what devices send: feedback, attributes, confirmations. Clients write more members than DDI has, and some as text.

Bounded, and lenient only where clients differ: `id` is a number or a text, `time` is anything, unknown members are passed over.
"""

from enum import StrEnum
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

MAX_DETAILS, MAX_DETAIL_CHARS = 64, 512
MAX_ATTRIBUTES, MAX_VALUE_CHARS = 100, 256


class Malformed(Exception):
    """A body has another form. The text says where, and never what is in it."""


class Execution(StrEnum):
    """What the device is doing."""

    CLOSED = "closed"
    PROCEEDING = "proceeding"
    CANCELED = "canceled"
    SCHEDULED = "scheduled"
    REJECTED = "rejected"
    RESUMED = "resumed"
    DOWNLOADED = "downloaded"
    DOWNLOAD = "download"


class Finished(StrEnum):
    """What came of it."""

    SUCCESS = "success"
    FAILURE = "failure"
    NONE = "none"


class Mode(StrEnum):
    """What a device's attributes do with those that it reported before."""

    MERGE = "merge"
    REPLACE = "replace"
    REMOVE = "remove"


class Answer(StrEnum):
    """What a device says to a deployment that it has to confirm."""

    CONFIRMED = "confirmed"
    DENIED = "denied"


Detail = Annotated[str, Meta(max_length=8192)]
Details = Annotated[list[Detail], Meta(max_length=1024)]


class _Result(Struct):
    finished: Finished


class _Status(Struct):
    execution: Execution
    result: _Result
    code: int | None = None
    details: Details = []


class Feedback(Struct):
    """What a device says of an action."""

    status: _Status
    id: int | str | None = None

    @property
    def execution(self) -> Execution:
        """What it is doing."""
        return self.status.execution

    @property
    def finished(self) -> Finished:
        """What came of it."""
        return self.status.result.finished

    def messages(self) -> list[str]:
        """What it says in words, bounded, without control characters."""
        return _lines(self.status.details)

    def names(self, number: int) -> bool:
        """Whether it is about that action, as far as it says so. SWUpdate writes a number, rauc-hawkbit-updater a text."""
        return self.id is None or str(self.id) == str(number)


class ConfigData(Struct):
    """A device's attributes."""

    data: dict[str, str | int | float | bool]
    mode: Mode = Mode.MERGE


class Confirmation(Struct):
    """A device's answer to a deployment that it has to confirm."""

    confirmation: Answer
    code: int | None = None
    details: Details = []

    def messages(self) -> list[str]:
        """What it says in words, bounded, without control characters."""
        return _lines(self.details)


class AutoConfirm(Struct):
    """Who wants that a device confirms each deployment at once."""

    initiator: Annotated[str, Meta(max_length=64)] | None = None
    remark: Annotated[str, Meta(max_length=512)] | None = None


T = TypeVar("T", Feedback, ConfigData, Confirmation, AutoConfirm)


def read(form: type[T], body: bytes) -> T:
    """The content of a body.

    Raises:
        Malformed: it is not JSON of that form.
    """
    try:
        return msgspec.json.decode(body, type=form)
    except msgspec.ValidationError as problem:
        raise Malformed(_where(str(problem))) from None
    except (msgspec.DecodeError, RecursionError):
        raise Malformed("the body is not JSON") from None


def _where(text: str) -> str:
    """The place in msgspec's sentence, without the value, which a device may have made up."""
    place = text.rpartition(" - at ")[2] if " - at " in text else "`$`"
    return f"the body has another form at {place}"[:200]


def _lines(texts: list[str]) -> list[str]:
    made = ("".join(c if c.isprintable() else " " for c in text)[:MAX_DETAIL_CHARS].strip() for text in texts[:MAX_DETAILS])
    return [line for line in made if line]
