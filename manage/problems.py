"""Holds every problem that the interface answers with (RFC 9457), and which of the agent's errors is which. Pure."""

from dataclasses import dataclass
from typing import Any

from ipc.errors import ErrorCode

TYPE = "urn:license-agent:problem:"
MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem.

    Attributes:
        name: behind `TYPE`; never given another meaning.
        status: of HTTP.
        title: the same for all problems of the kind.
        next: what the caller can do.
    """

    name: str
    status: int
    title: str
    next: str


BAD_REQUEST = Kind(
    "bad-request", 400, "The request has not the form that the document demands.", "Compare it with /openapi.json."
)
NOT_SIGNED = Kind(
    "not-accepted",
    401,
    "The agent does not accept the certificate, the challenge or the signature.",
    "Sign again, with the challenge of this answer or a new one; the detail says what did not count.",
)
NO_SESSION = Kind("no-session", 401, "This needs a session.", "Begin one: POST /v1/sessions with a signed session_begin.")
REVOKED = Kind(
    "certificate-revoked", 403, "The client certificate is revoked.", "Use another certificate, issued by the admin CA."
)
REFUSED = Kind("refused", 403, "The agent's rules forbid this.", "The detail says which rule, or which role is needed.")
NO_PATH = Kind("no-such-resource", 404, "There is no such resource.", "Compare the path with /openapi.json.")
NOT_FOUND = Kind("not-found", 404, "What the request names does not exist.", "Check the name, version or id.")
NO_CHALLENGE = Kind(
    "unknown-challenge",
    404,
    "This certificate has no such challenge.",
    "Ask for one with POST /v1/challenges. A challenge serves once, for 60 s, for the certificate that asked for it.",
)
NO_METHOD = Kind("method-not-allowed", 405, "The resource does not know this method.", "Use a method of the header Allow.")
TOO_SLOW = Kind("request-timeout", 408, "The request did not arrive in time.", "Send it again, whole.")
TOO_LARGE = Kind("too-large", 413, "The request, or what the agent would have to send, is too large.", "Ask for less at once.")
NO_JSON = Kind("not-json", 415, "The content-type is not application/json.", "Send JSON with that content-type.")
UNKNOWN_OP = Kind("unknown-operation", 422, "The agent does not know this operation.", "Compare it with the agent's protocol.")
BAD_PARAMS = Kind("bad-parameters", 422, "The agent does not take these parameters.", "The detail names what is wrong.")
LIMITED = Kind("rate-limited", 429, "Too many requests.", "Wait for the seconds of the header Retry-After.")
TOO_MANY = Kind(
    "too-many-conversations", 429, "Too many conversations with the agent.", "Wait, or end a session: DELETE /v1/sessions/{id}."
)
INTERNAL = Kind("internal", 500, "The interface failed.", "Read the journal of license-agent-manage.")
AGENT_FAILED = Kind("agent-failed", 502, "The agent failed.", "Read the agent's journal.")
AGENT_DOWN = Kind("agent-unavailable", 503, "The agent cannot be reached.", "")  # the problem itself says what to do
UNAVAILABLE = Kind(
    "agent-not-working",
    503,
    "The agent runs, and something that it needs does not work.",
    "Run license-agent-cli status on the machine; try again then.",
)
NO_REPLY = Kind(
    "no-reply",
    504,
    "The agent has not answered; whether it has performed the request is not known.",
    "Read the state, and the audit log, before you ask again.",
)

KINDS = tuple(value for value in list(globals().values()) if isinstance(value, Kind))
"""Every kind."""

_OF_CODE = {
    ErrorCode.FRAME_TOO_LARGE: TOO_LARGE,
    ErrorCode.UNKNOWN_OP: UNKNOWN_OP,
    ErrorCode.BAD_REQUEST: BAD_PARAMS,
    ErrorCode.RATE_LIMITED: LIMITED,
    ErrorCode.AGENT_MISCONFIGURED: UNAVAILABLE,
    ErrorCode.SHUTTING_DOWN: UNAVAILABLE,
    ErrorCode.NOT_FOUND: NOT_FOUND,
    ErrorCode.REFUSED: REFUSED,
    ErrorCode.UNAVAILABLE: UNAVAILABLE,
    ErrorCode.UNAUTHENTICATED: NOT_SIGNED,
}


def kind_of(code: ErrorCode) -> Kind:
    """The kind of problem that one of the agent's errors is."""
    return _OF_CODE.get(code, AGENT_FAILED)


class Problem(Exception):
    """A request that gets no ordinary answer.

    Attributes:
        kind: of the problem.
        detail: what was wrong this time.
        next: what the caller can do, if it is something else than the kind says.
        retry_s: seconds after which it may work, for the header.
        headers: further headers.
        more: further members.
    """

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        next: str = "",
        retry_s: int | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        more: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.next = next or kind.next
        self.retry_s = retry_s
        self.headers = headers
        self.more = more or {}

    def members(self) -> dict[str, Any]:
        """The members of the answer."""
        kind = self.kind
        found = {"type": TYPE + kind.name, "title": kind.title, "status": kind.status, "detail": self.detail, "next": self.next}
        return {**found, **self.more}
