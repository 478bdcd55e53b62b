"""Defines the messages between the link and those who may use it, and all their bounds. Nothing here performs IO.

The core, or the updater, sends one `Hello`, then one `Fetch` after another. The link answers the first with `Ready`, each of
the others with `Head`, any number of `Chunk` and `End`, or at any point with `Failed`. Both sides decode strictly: what the
link sends is read as hostile input, since an attacker may control it.
"""

import re
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from .byteranges import is_strong, parse_range
from .errors import ErrorCode, LocalProtocolError
from .frames import encode_frame
from .messages import Request, RequestDecoder

LINK_VERSION: Final = 1
LINK_MAX_FRAME_BYTES = 128 * 1024
"""Ceiling of a frame on the link's socket: a request of `MAX_REQUEST_BODY_BYTES` with its headers fits."""
MAX_REQUEST_BODY_BYTES = 64 * 1024
CHUNK_BYTES = 32 * 1024
"""Most bytes of a body in one `Chunk`."""
MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""The largest `max_body` that a fetch may ask for."""
MAX_PATH_CHARS = 2048
MAX_HEADER_VALUE_CHARS = 16 * 1024
"""Longest value of a request header, in characters (a signed request travels in one)."""
MAX_ANSWER_HEADER_CHARS = 1024
"""Longest value of a header in a `Head`."""
MAX_CHAIN_CHARS = 32 * 1024
"""Longest client certificate chain, as PEM."""
MAX_KEY_BYTES = 4 * 1024
"""Most bytes of the TLS client key in its memfd."""
MAX_PINS = 8
MIN_TIMEOUT_MS, MAX_TIMEOUT_MS = 100, 3_600_000
HELLO_TIMEOUT_S = 5
"""A connection without a hello after this time is closed."""
SESSION_IDLE_S = 60
"""A connection without a fetch for this time is closed."""
MAX_SESSIONS = 8
"""Connections that the link serves at once; more wait in the socket's queue."""
MAX_UPDATER_SESSIONS = 4
"""Connections of the updater among them; more are refused, so that the core always finds a free one."""

ANSWER_HEADERS = frozenset({"content-type", "content-length", "retry-after", "etag", "content-range", "date"})
"""The headers of an answer that the link passes on; it drops all others."""

Upstream = Literal["server", "enrollment", "ota", "webhook"]
Method = Literal["GET", "POST"]
RequestHeader = Literal[
    "content-type",
    "accept",
    "agent-request",
    "if-none-match",
    "range",
    "if-range",
    "idempotency-key",
    "license-agent-signature",
]

_PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*(\?[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?")
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})|%(2[EeFf]|5[Cc]|00)")
_VALUE = r"\A[!-~]([ -~]*[!-~])?\Z"

Path = Annotated[str, Meta(min_length=1, max_length=MAX_PATH_CHARS)]
HeaderValue = Annotated[str, Meta(max_length=MAX_HEADER_VALUE_CHARS, pattern=_VALUE)]
Pin = Annotated[str, Meta(min_length=1, max_length=100)]
Text = Annotated[str, Meta(max_length=500)]


class FailCode(StrEnum):
    """Why a fetch brought no whole answer. The list is append-only; `docs/protocol.md` says what each means."""

    UNREACHABLE = "unreachable"
    """No connection, or it broke before the answer began."""
    TIMEOUT = "timeout"
    """The fetch's own deadline, or the limit for one step of it."""
    TLS = "tls"
    """The handshake failed, or the pinned certificate does not vouch for this host at this time."""
    PIN_MISMATCH = "pin_mismatch"
    """No certificate that the server showed has a pinned key. No byte of the request has left."""
    TOO_LARGE = "too_large"
    """The answer's body is above the fetch's `max_body`."""
    REDIRECT = "redirect"
    """The server answered with a redirect, which the link never follows."""
    BAD_RESPONSE = "bad_response"
    """The answer is not HTTP/1.1 as this link accepts it, or it ended too early."""
    PROXY = "proxy"
    """The proxy cannot be reached, or makes no tunnel."""
    NOT_ALLOWED = "not_allowed"
    """The link's own configuration does not allow this user, or this upstream."""
    MALFORMED = "malformed"
    """The request breaks a rule of this protocol. The connection is closed."""
    RANGE = "range"
    """A part of a file was asked for, and the answer is another part, or the whole file; or a part came unasked."""


class Provisioning(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """An upstream that an administrator names at run time, as the array of these three."""

    upstream: Literal["server", "enrollment"]
    url: Annotated[str, Meta(min_length=1, max_length=MAX_PATH_CHARS)]
    pins: Annotated[tuple[Pin, ...], Meta(min_length=1, max_length=MAX_PINS)]


class Hello(Request, tag="hello", frozen=True):
    """Begins a connection.

    Attributes:
        time: a time that has certainly passed, seconds since 1970 UTC. A certificate must be valid at some time from then on.
        certificates: the TLS client certificate and its intermediates as PEM; None for no client certificate. Its key comes
            along as one descriptor of a sealed memfd.
        provisioning: an upstream that the link's configuration does not name.
        latest: the latest time that it may be: a certificate that begins later is refused. 0 for `time` itself; None where
            the core knows no upper bound.
    """

    time: Annotated[int, Meta(ge=0, le=253_402_300_799)]
    certificates: Annotated[str, Meta(min_length=1, max_length=MAX_CHAIN_CHARS)] | None
    provisioning: Provisioning | None
    latest: Annotated[int, Meta(ge=0, le=253_402_300_799)] | None


class Fetch(Request, tag="fetch", frozen=True):
    """One HTTP request.

    Attributes:
        path: under the upstream's base, with its query if it has one.
        headers: pairs of name and value, each name at most once.
        max_body: most bytes of the answer's body.
        timeout_ms: for the whole fetch, the time that the core takes to read the answer included.
    """

    upstream: Upstream
    method: Method
    path: Path
    headers: Annotated[tuple[tuple[RequestHeader, HeaderValue], ...], Meta(max_length=6)]
    body: Annotated[bytes, Meta(max_length=MAX_REQUEST_BODY_BYTES)]
    max_body: Annotated[int, Meta(ge=0, le=MAX_ANSWER_BYTES)]
    timeout_ms: Annotated[int, Meta(ge=MIN_TIMEOUT_MS, le=MAX_TIMEOUT_MS)]


class Ready(Request, tag="ready", frozen=True):
    """The link accepted the hello."""


class Head(Request, tag="head", frozen=True):
    """Status and headers of an answer, in pairs of lower-case name and value."""

    status: Annotated[int, Meta(ge=200, le=599)]
    headers: Annotated[
        tuple[tuple[str, Annotated[str, Meta(max_length=MAX_ANSWER_HEADER_CHARS)]], ...], Meta(max_length=len(ANSWER_HEADERS))
    ]


class Chunk(Request, tag="chunk", frozen=True):
    """The next bytes of the body."""

    data: Annotated[bytes, Meta(min_length=1, max_length=CHUNK_BYTES)]


class End(Request, tag="end", frozen=True):
    """The body is complete and had `size` bytes."""

    size: Annotated[int, Meta(ge=0, le=MAX_ANSWER_BYTES)]


class Failed(Request, tag="failed", frozen=True):
    """The answer is missing or incomplete. `id` is 0 where the request's id could not be read."""

    code: FailCode
    text: Text


ToLink = Hello | Fetch
FromLink = Ready | Head | Chunk | End | Failed

_encoder = msgspec.msgpack.Encoder()


def to_link_decoder() -> RequestDecoder[Any]:
    """Decodes `Hello` and `Fetch`; what is wrong with others is a `RemoteProtocolError`."""
    return RequestDecoder(ToLink)


def from_link_decoder() -> RequestDecoder[Any]:
    """Decodes `Ready`, `Head`, `Chunk`, `End` and `Failed`; what is wrong with others is a `RemoteProtocolError`."""
    return RequestDecoder(FromLink)


def encode_link(message: Request) -> bytes:
    """The frame of a message of either side.

    Raises:
        LocalProtocolError: it does not fit a frame.
    """
    return encode_frame(_encoder.encode(message), LINK_MAX_FRAME_BYTES)


def check_fetch(fetch: Fetch) -> None:
    """Checks the rules that the types of `Fetch` cannot express.

    The path must be absolute under the upstream's base (RFC 3986 section 3.3): no scheme, no host, no fragment, no empty or
    dot segment, and none of these in disguise (percent-encoded dot, slash, backslash or NUL).

    Raises:
        LocalProtocolError: with the rule that is broken.
    """
    segments = fetch.path.split("?", 1)[0].split("/")
    if (
        not _PATH.fullmatch(fetch.path)
        or _PERCENT.search(fetch.path)
        or any(segment in (".", "..") for segment in segments)
        or "" in segments[1:-1]
    ):
        raise LocalProtocolError(
            ErrorCode.BAD_REQUEST,
            "the path must begin with one '/' and have no '..', no empty segment, no fragment, no character outside RFC 3986",
        )
    headers = dict(fetch.headers)
    if len(headers) != len(fetch.headers):
        raise LocalProtocolError(ErrorCode.BAD_REQUEST, "a header comes twice")
    if fetch.method == "GET" and fetch.body:
        raise LocalProtocolError(ErrorCode.BAD_REQUEST, "a GET has no body")
    _check_range(fetch, headers.get("range"), headers.get("if-range"))


def _check_range(fetch: Fetch, part: str | None, condition: str | None) -> None:
    if part is None and condition is None:
        return
    if fetch.upstream != "ota" or fetch.method != "GET":
        raise LocalProtocolError(ErrorCode.BAD_REQUEST, "'range' and 'if-range' are for a GET from the upstream ota")
    if part is None or parse_range(part) is None:
        raise LocalProtocolError(ErrorCode.BAD_REQUEST, "'range' must be bytes=FIRST-LAST, and 'if-range' comes with it")
    if condition is not None and not is_strong(condition):
        raise LocalProtocolError(ErrorCode.BAD_REQUEST, "'if-range' must be a strong entity tag in double quotes")
