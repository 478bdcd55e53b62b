"""Says each problem of the operator API in the form of RFC 9457: what is wrong, and what to do next. Pure."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from contracts.exchange import RefusalCode
from server.acts.replies import KeyReused
from server.acts.runner import PreconditionFailed, PreconditionMissing
from server.acts.tables import BadRow, RowsRefused
from server.base.errors import Conflict, Invalid, NotAllowed, NotFound, RegistryError
from server.base.refused import RequestRefused
from server.registry.clockwatch import ClockNotTrusted

MEDIA_TYPE = "application/problem+json"
TYPE = "urn:license-agent:problem:"
"""How a problem is named: this, then a name of `KINDS`."""
RETRY_S = 30
"""When to come again while the database does not answer, in seconds."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem: HTTP status, title, and what to do next."""

    status: int
    title: str
    next: str


KINDS: dict[str, Kind] = {
    "malformed": Kind(400, "The request is malformed", "correct what 'detail' names; /operator/v1/openapi.json has the forms"),
    "cursor-refused": Kind(400, "The cursor is not of this list", "begin again without a cursor, with the same filters"),
    "two-credentials": Kind(400, "There are two credentials", "send a client certificate or an Authorization header, not both"),
    "not-signed-in": Kind(
        401, "Nobody is signed in", "sign in with a client certificate of the operator CA, or a token that counts"
    ),
    "not-allowed": Kind(403, "You may not do this", "ask an administrator, or use an account that may"),
    "not-found": Kind(404, "It does not exist", "list what exists, and correct the name"),
    "no-such-path": Kind(404, "There is no such path", "see the paths in /operator/v1/openapi.json"),
    "method-not-allowed": Kind(405, "This path does not have this method", "see the methods in /operator/v1/openapi.json"),
    "too-slow": Kind(408, "The request took too long to arrive", "send it again"),
    "conflict": Kind(409, "What exists does not allow it", "do what 'detail' says, then send the request again"),
    "precondition-failed": Kind(412, "It has changed since you read it", "read it again, and decide again"),
    "too-large": Kind(413, "The request is too large", "split it"),
    "unsupported-media-type": Kind(415, "The content-type is not application/json", "send application/json"),
    "invalid": Kind(422, "What was asked for is out of bounds", "correct what 'detail' names"),
    "rows-refused": Kind(422, "Lines of the table are bad", "correct the lines in 'rows', or send it with row_by_row"),
    "idempotency-key-reused": Kind(422, "The idempotency key came with another request", "use a new key for a new request"),
    "precondition-required": Kind(428, "If-Match is missing", "read it, and send its ETag as If-Match"),
    "rate-limited": Kind(429, "Too many requests", "wait for the seconds in Retry-After"),
    "internal": Kind(500, "The server failed", "look into the server's log, and report it"),
    "unavailable": Kind(503, "The server cannot answer now", "wait for the seconds in Retry-After"),
}

_KINDS_OF: tuple[tuple[type[Exception], str], ...] = (
    (KeyReused, "idempotency-key-reused"),
    (RowsRefused, "rows-refused"),
    (PreconditionFailed, "precondition-failed"),
    (PreconditionMissing, "precondition-required"),
    (NotFound, "not-found"),
    (NotAllowed, "not-allowed"),
    (Invalid, "invalid"),
    (Conflict, "conflict"),
    (ClockNotTrusted, "unavailable"),
    (RegistryError, "conflict"),
    (SQLAlchemyError, "unavailable"),
)


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem to be sent.

    Attributes:
        kind: a name of `KINDS`.
        detail: what is wrong this time.
        retry_after_s: seconds until the request may succeed; None if unknown.
        rows: the bad lines of a table.
    """

    kind: str
    detail: str
    retry_after_s: int | None = None
    rows: Sequence[BadRow] = ()

    @property
    def status(self) -> int:
        """The HTTP status."""
        return KINDS[self.kind].status

    def body(self) -> bytes:
        """The JSON object."""
        kind = KINDS[self.kind]
        content: dict[str, object] = {
            "type": TYPE + self.kind,
            "title": kind.title,
            "status": kind.status,
            "detail": self.detail,
            "next": kind.next,
        }
        if self.rows:
            content["rows"] = [row.model_dump() for row in self.rows]
        return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()

    def headers(self) -> dict[str, str]:
        """The response's headers."""
        found = {"content-type": MEDIA_TYPE}
        if self.retry_after_s is not None:
            found["retry-after"] = str(self.retry_after_s)
        if self.kind == "not-signed-in":
            found["www-authenticate"] = 'Bearer realm="license-server"'
        return found


def problem_of(error: Exception) -> Problem:
    """What an error of an act is for its caller."""
    if isinstance(error, RequestRefused):
        limited = error.code is RefusalCode.RATE_LIMITED
        return Problem("rate-limited" if limited else "conflict", error.text, error.retry_after_s)
    kind = next((name for known, name in _KINDS_OF if isinstance(error, known)), "internal")
    if isinstance(error, SQLAlchemyError):
        # The text of an exception may quote what was being processed.
        return Problem(kind, "the server's database does not answer", RETRY_S)
    detail = str(error) if isinstance(error, RegistryError) else "internal error; the server's log says where"
    rows = error.rows if isinstance(error, RowsRefused) else ()
    return Problem(kind, detail, RETRY_S if kind == "unavailable" else None, rows)
