"""Declares what an act is: a thing that an operator may do or ask, once, for the API, the command line and the console.

`catalog` has all of them; `runner` performs them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from server.accounts.roles import Role
from server.agents.clones import Clones
from server.agents.enrollment_tokens import EnrollmentTokens
from server.agents.registry import Agents
from server.base.settings import Place
from server.keys.keyring import Keyring
from server.keys.lifecycle import KeyLifecycle
from server.keys.succession import Succession
from server.licensing.licenses.licenses import Licenses
from server.licensing.sales.customers import Customers
from server.licensing.secrets.secrets import Secrets
from server.notify.webhooks import Webhooks
from server.registry.cipher import Cipher
from server.registry.clockwatch import ClockWatch
from server.registry.database import Database

MAX_PAGE = 500
"""Rows of a page of a list, at most."""
DEFAULT_PAGE = 100
MAX_TIME = 253_402_300_799
"""The last second of the year 9999."""
MAX_NUMBER = 2**53 - 1
"""The greatest number that every JSON parser reads exactly."""


class Form(BaseModel):
    """The base of bodies and results."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, from_attributes=True, defer_build=True)


# Patterns of pydantic's own engine: `$` is the end of the text only. PostgreSQL takes no NUL character.
Id = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
"""Of a license or a seat: any text that a token may have, because tables and release 0.1.0 have issued such, and whatever was
issued can be revoked."""
VendorId = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""Of a product, entitlement set, policy, customer or site: the vendor's own."""
AgentId = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[!-~]+$")]
Hex = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[0-9a-f]+$")]
Line = Annotated[str, Field(max_length=500, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Time = Annotated[int, Field(ge=0, le=MAX_TIME)]
Number = Annotated[int, Field(ge=0, le=MAX_NUMBER)]


class Nothing(Form):
    """No members."""


class PageForm(Form):
    """Which part of a list is asked for. `after` is the place behind which the page begins; the API hides it in its cursors."""

    after: Annotated[str, Field(max_length=256, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")] = ""
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE


T = TypeVar("T")


class Listed(Form, Generic[T]):
    """A page of a list. `after` is where the next page begins; None if this is the last one."""

    items: tuple[T, ...]
    after: str | None = None


class Parts(Protocol):
    """The components of an open server that acts use; `server.wiring.Server` has them."""

    @property
    def place(self) -> Place: ...  # noqa: D102
    @property
    def database(self) -> Database: ...  # noqa: D102
    @property
    def cipher(self) -> Cipher: ...  # noqa: D102
    @property
    def clock(self) -> ClockWatch: ...  # noqa: D102
    @property
    def keys(self) -> Keyring: ...  # noqa: D102
    @property
    def key_lifecycle(self) -> KeyLifecycle: ...  # noqa: D102
    @property
    def agents(self) -> Agents: ...  # noqa: D102
    @property
    def enrollment_tokens(self) -> EnrollmentTokens: ...  # noqa: D102
    @property
    def secrets(self) -> Secrets: ...  # noqa: D102
    @property
    def licenses(self) -> Licenses: ...  # noqa: D102
    @property
    def customers(self) -> Customers: ...  # noqa: D102
    @property
    def clones(self) -> Clones: ...  # noqa: D102
    @property
    def succession(self) -> Succession: ...  # noqa: D102
    @property
    def webhooks(self) -> Webhooks: ...  # noqa: D102


class WhoAsks(Protocol):
    """What an act may know of its caller; `caller.Caller` has it."""

    @property
    def account(self) -> str: ...  # noqa: D102
    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def role(self) -> Role | None: ...  # noqa: D102
    @property
    def scopes(self) -> frozenset[str] | None: ...  # noqa: D102
    @property
    def via(self) -> str: ...  # noqa: D102
    @property
    def credential(self) -> str: ...  # noqa: D102
    @property
    def break_glass(self) -> str | None: ...  # noqa: D102
    @property
    def is_local(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Context:
    """Where an act is performed.

    Attributes:
        server: the components.
        session: of the transaction; one that only reads for an act that reads.
        database: for an act with transactions of its own: what they record names the caller.
        caller: who asks. The runner has checked that they may.
        now: seconds since 1970 UTC.
        reason: why, as the caller says; may be empty.
        reached: called with the number of lines that were done, by an act that has many.
    """

    server: Parts
    session: Session
    database: Database
    caller: WhoAsks
    now: int
    reason: str = ""
    reached: Callable[[int], None] = lambda _lines: None


Run = Callable[[Context, Any], Any]


@dataclass(frozen=True, slots=True)
class Sheet:
    """How a list is written as CSV.

    Attributes:
        columns: their names.
        cells: of an item; what a spreadsheet would run as a formula is defused by who writes them.
    """

    columns: tuple[str, ...]
    cells: Callable[[Any], Sequence[object]]


@dataclass(frozen=True, slots=True)
class Act:
    """An act.

    Attributes:
        name: `subject.verb`; never changes, because approvals and the audit name it.
        scope: what a token needs; empty where every token will do.
        least: the role that it needs, or one that includes it (`roles.INCLUDES`).
        body: the form of what it is asked with.
        result: the form of what it answers.
        run: performs it; the first paragraph of its docstring describes the act.
        path: of the operator API, behind `/operator/v1`. Parts in braces are members of the body.
        method: of HTTP. An act with GET reads, and changes nothing.
        also: further roles that may do it.
        approval: whether a second person must approve it.
        possible: raises why it cannot be done as things are, before a second person is asked in vain; changes nothing.
        people_only: whether programs may not do it.
        alone: it has transactions of its own, and `Context.session` is not one of them.
        present: reads, and locks, what the act changes, for `If-Match`; returns what `etag` takes.
        etag: the tag of a result.
        match_required: whether the caller must say which state they want to change.
        after: called behind the commit.
        sheet: how the list is written for who accepts `text/csv`; None for lists that are JSON only.
    """

    name: str
    scope: str
    least: Role
    body: type[Form]
    result: Any
    run: Run
    path: str
    method: str = "POST"
    also: frozenset[Role] = frozenset()
    approval: bool = False
    possible: Run | None = None
    people_only: bool = False
    alone: bool = False
    present: Run | None = None
    etag: Callable[[Any], str] | None = None
    match_required: bool = False
    after: Callable[[Parts], None] | None = None
    sheet: Sheet | None = None

    def __post_init__(self) -> None:
        """Refuses an act that would use up its approval in another transaction than it acts in."""
        if self.alone and self.approval:
            raise ValueError(f"{self.name}: an act that needs an approval acts in the transaction that uses it")

    @property
    def reads(self) -> bool:
        """Whether it changes nothing."""
        return self.method == "GET"

    @property
    def needed(self) -> frozenset[Role]:
        """The roles of which a caller's role must include one."""
        return self.also | {self.least}

    @property
    def summary(self) -> str:
        """What it does, in a sentence."""
        return (self.run.__doc__ or "").strip().partition("\n")[0]


def revision_tag(result: Any) -> str:
    """The tag of a row that counts its changes."""
    return str(result.revision)


def page(rows: list[Any], form: type[T], limit: int, place: Callable[[Any], str]) -> Listed[T]:
    """A page of rows: one row more than `limit` was read, to know whether there is another page.

    Args:
        rows: at most `limit` + 1.
        form: of the items; has `model_validate`.
        limit: of the page.
        place: of a row in the list.
    """
    items = tuple(form.model_validate(row) for row in rows[:limit])  # type: ignore[attr-defined]
    return Listed(items=items, after=place(rows[limit - 1]) if len(rows) > limit else None)
