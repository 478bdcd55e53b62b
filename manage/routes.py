"""Holds the table of routes: each resource, what comes in and goes out, and the problems it may answer with. Pure."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from ipc.bounds import MAX_ID, MAX_LICENSE_ID_CHARS

from . import problems as p
from .forms import Act, Challenge, Empty, Health, Performed, Session, SessionOrder, SystemInfo
from .problems import Kind

JSON, TEXT = "application/json", "text/plain"
MAX_RECORDS = 1000
"""Records of the audit log in one answer, as of the admin socket."""
MAX_LINES = 50
"""Lines of the maintenance register in one answer, as of the admin socket."""
_ALWAYS = (p.BAD_REQUEST, p.REVOKED, p.NO_METHOD, p.TOO_SLOW, p.TOO_LARGE, p.LIMITED, p.INTERNAL)
_AGENT = (p.AGENT_FAILED, p.AGENT_DOWN, p.UNAVAILABLE, p.NO_REPLY)
_SIGNED = (p.NOT_SIGNED, p.REFUSED, p.NOT_FOUND, p.NO_CHALLENGE, p.NO_JSON, p.UNKNOWN_OP, p.BAD_PARAMS)
_READ = (p.NO_SESSION, p.REFUSED, p.NOT_FOUND, p.BAD_PARAMS)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter in the path or the query.

    Attributes:
        name: as in the path's braces, or in the query.
        text: for people.
        schema: JSON Schema of its value.
        default: in the query; a parameter of the path has none.
        numbers: least and greatest, of a whole number.
    """

    name: str
    text: str
    schema: dict[str, Any]
    default: int | None = None
    numbers: tuple[int, int] | None = None

    @property
    def in_path(self) -> bool:
        """Whether it is a part of the path."""
        return self.numbers is None

    def document(self) -> dict[str, Any]:
        """As the OpenAPI document has it."""
        where = {"in": "path", "required": True} if self.in_path else {"in": "query", "required": False}
        return {"name": self.name, **where, "description": self.text, "schema": self.schema}


def _number(name: str, text: str, least: int, most: int, default: int) -> Parameter:
    schema = {"type": "integer", "minimum": least, "maximum": most, "default": default}
    return Parameter(name, text, schema, default, (least, most))


def _of_path(name: str, text: str, **schema: Any) -> Parameter:
    return Parameter(name, text, {"type": "string", **schema})


@dataclass(frozen=True, slots=True)
class Route:
    """A method of a resource.

    Attributes:
        method: of HTTP.
        path: with parameters in braces.
        name: of the operation in the document.
        summary: in a few words.
        description: in a sentence.
        reply: form of the answer; None for an object as the admin socket gives it, or a text.
        body: form of the request's body; None without one.
        body_required: whether the body must be there.
        session: whether a session is needed.
        op: the operation of the admin socket that a read asks.
        status: of a success.
        media_type: of a success.
        parameters: of path and query.
        problems: kinds of problems that it may answer with.
    """

    method: str
    path: str
    name: str
    summary: str
    description: str
    reply: Any = None
    body: Any = None
    body_required: bool = True
    session: bool = False
    op: str = ""
    status: int = 200
    media_type: str = JSON
    parameters: tuple[Parameter, ...] = ()
    problems: tuple[Kind, ...] = _ALWAYS + _AGENT


def _read(path: str, name: str, op: str, summary: str, **more: Any) -> Route:
    description = f"The reply of `{op}` of the admin socket. It needs a session."
    return Route("GET", path, name, summary, description, op=op, session=True, problems=_ALWAYS + _AGENT + _READ, **more)


ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/v1/challenges",
        "makeChallenge",
        "Get a challenge",
        "A challenge that one signature answers, within 60 s, from the TLS certificate that has asked for it.",
        reply=Challenge,
        body=Empty,
        body_required=False,
        status=201,
        problems=(*_ALWAYS, *_AGENT, p.NO_JSON, p.TOO_MANY),
    ),
    Route(
        "POST",
        "/v1/acts",
        "performAct",
        "Perform a signed act",
        "The agent judges certificate, signature and role. The answer has the next challenge, also that of a problem.",
        reply=Performed,
        body=Act,
        problems=_ALWAYS + _AGENT + _SIGNED,
    ),
    Route(
        "POST",
        "/v1/sessions",
        "beginSession",
        "Begin a session",
        "A signed `session_begin`: reads need no further signature for 15 min. It reads as a viewer, whatever the role is.",
        reply=Session,
        body=SessionOrder,
        status=201,
        problems=_ALWAYS + _AGENT + _SIGNED,
    ),
    Route(
        "DELETE",
        "/v1/sessions/{id}",
        "endSession",
        "End a session",
        "A session also ends by itself.",
        status=204,
        parameters=(_of_path("id", "of the session", pattern="^[0-9a-f]{32}$"),),
        problems=(*_ALWAYS, *_AGENT, p.NOT_FOUND),
    ),
    _read("/v1/status", "showStatus", "status", "The agent's state"),
    _read("/v1/secrets", "listSecrets", "secrets", "The versions of the secret: states and dates, never a secret"),
    _read(
        "/v1/licenses/{id}",
        "explainLicense",
        "license_explain",
        "Why a license is valid or not",
        parameters=(_of_path("id", "of the license", minLength=1, maxLength=MAX_LICENSE_ID_CHARS),),
    ),
    _read("/v1/metrics", "showMetrics", "metrics", "The metrics, as in the metrics file", media_type=TEXT),
    _read(
        "/v1/audit",
        "readAudit",
        "audit_export",
        "Records of the audit log, from archives too",
        parameters=(
            _number("after", "the last record that is known already; -1 for the oldest", -1, MAX_ID, -1),
            _number("limit", "records at most; fewer where an answer has no room for so many", 1, MAX_RECORDS, 100),
        ),
    ),
    _read("/v1/audit/verification", "verifyAudit", "audit_verify", "Check the audit log"),
    _read("/v1/public-keys", "showPublicKeys", "public_keys", "The keys with which an auditor checks the log"),
    _read(
        "/v1/access", "showAccess", "admin_access", "How administrators are authenticated, and which certificates are revoked"
    ),
    _read("/v1/updates", "showUpdates", "ota_status", "Where updates of this machine are"),
    _read(
        "/v1/updates/history",
        "readUpdateHistory",
        "ota_history",
        "Lines of the maintenance register, the newest first",
        parameters=(
            _number("skip", "so many of the newest lines", 0, 100_000, 0),
            _number("count", "lines at most", 1, MAX_LINES, 20),
        ),
    ),
    Route(
        "GET",
        "/v1/health",
        "showHealth",
        "Whether the agent works",
        "For monitoring: the verdict alone. It needs no session.",
        reply=Health,
        op="health",
    ),
    Route(
        "GET",
        "/system/info",
        "showSystemInfo",
        "Which program runs",
        "Version, build, time since the start, and the machine's boot. It needs no session.",
        reply=SystemInfo,
        op="system_info",
    ),
    Route(
        "GET",
        "/openapi.json",
        "showDocument",
        "This document",
        "It needs no session.",
    ),
)


def find(method: str, path: str) -> tuple[Route, dict[str, str]] | list[str]:
    """The route of a request with the parameters in its path, or the methods that the path knows; none for an unknown path.

    Args:
        method: of the request.
        path: without query, as it came; escapes are read in the values of parameters only.

    Raises:
        ValueError: a value's escapes are no UTF-8.
    """
    allowed: list[str] = []
    parts = path.split("/")
    for route in ROUTES:
        wanted = route.path.split("/")
        if len(wanted) != len(parts):
            continue
        values: dict[str, str] = {}
        for pattern, part in zip(wanted, parts, strict=True):
            if pattern.startswith("{") and part:
                values[pattern[1:-1]] = unquote(part, errors="strict")
            elif pattern != part:
                break
        else:
            if route.method == method:
                return route, values
            allowed.append(route.method)
    return allowed
