"""Maps HTTP to the exchange and the enrollment: paths, bodies, statuses. A thin shell; it decides nothing."""

import hashlib
import json
import logging
import time
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Query, Request
from fastapi import Response as HttpResponse
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from contracts.exchange import EXCHANGE_VERSION, RefusalCode
from server.base.limits import MAX_HEADER_REQUEST_CHARS
from server.enrollment.service import Enrollment
from server.exchange.capabilities import signed_list
from server.exchange.challenges import CHALLENGE_LIFETIME_S
from server.exchange.content import KINDS
from server.exchange.service import RENEWAL, Exchange, outside_its_dates
from server.keys.keyring import Keyring
from server.registry.clockwatch import ClockNotTrusted
from server.web.middleware import CALLER, NOTE, Caller
from server.web.peers import Peer
from server.web.responses import CLOCK_RETRY_S, DATABASE_DOWN, Response, error

from .forms import JWS_PATTERN, BeginBody, ChallengeReply, ErrorReply, Nothing, SignedReply, SignedRequest

PREFIX = "/api/v1"
BY_GET = ("secret-status", "revocation-list")
"""Purposes that also have a GET endpoint."""
_log = logging.getLogger("license_server")

_DESCRIPTION = """The license server's side of the exchange with agents; docs/protocol.md describes what is signed.

A rotation key signs every reply, and every refusal to an agent or a device. An `error` is not signed: the server could not yet
tell who asks. All paths below `/api/v1/` but the provisioning, `key-set` and `capabilities` need a client certificate."""


class _Stop(Exception):
    def __init__(self, answer: Response) -> None:
        self.answer = answer


def _caller(request: Request) -> Caller:
    caller: Caller = request.scope["extensions"][CALLER]
    return caller


async def _peer(request: Request) -> Peer:
    caller = _caller(request)
    if caller.peer is not None:
        return caller.peer
    if caller.outside is None:
        raise _Stop(error(401, RefusalCode.UNKNOWN_AGENT, "this endpoint needs a client certificate"))
    raise _Stop(outside_its_dates(caller.outside))


async def _peer_of_any_date(request: Request) -> Peer:
    """The caller's certificate, even one that can only be renewed; `Exchange` looks at its dates."""
    caller = _caller(request)
    return await _peer(request) if caller.outside is None else caller.outside


AgentPeer = Annotated[Peer, Depends(_peer)]
RenewingPeer = Annotated[Peer, Depends(_peer_of_any_date)]

_ERRORS: dict[int, str] = {
    400: "The request is malformed.",
    408: "The request took too long to arrive.",
    413: "The request is too large.",
    415: "The content-type is not application/json.",
    429: "Too many requests; Retry-After says when to try again.",
    500: "The server failed.",
    503: "The server cannot answer now.",
}
_AGENT_ERRORS = {
    401: "No client certificate, or one that is unknown, replaced, revoked, outside its dates, or of another CA.",
    403: "Refused: the request is not authentic, or not allowed.",
    409: "Refused: the request conflicts with what the server knows.",
}


def _responses(*extra: int, signed: bool) -> dict[int | str, dict[str, Any]]:
    texts = {**_ERRORS, **{status: _AGENT_ERRORS[status] for status in extra}}
    both = {403, 409, 429, 503} if signed else set()
    return {
        status: {"model": SignedReply | ErrorReply if status in both else ErrorReply, "description": text}
        for status, text in sorted(texts.items())
    }


def create_app(
    exchange: Exchange,
    enrollment: Enrollment,
    keyring: Keyring,
    *,
    with_openapi: bool = False,
    wall: Callable[[], float] = time.time,
) -> FastAPI:
    """Makes the application. `middleware.Middleware` belongs in front of it.

    Args:
        exchange: answers agents.
        enrollment: provisions devices.
        keyring: has the key set.
        with_openapi: serve the OpenAPI document too.
        wall: seconds since 1970 UTC.
    """
    app = FastAPI(
        title="license-server",
        version=str(EXCHANGE_VERSION),
        description=_DESCRIPTION,
        openapi_url=f"{PREFIX}/openapi.json" if with_openapi else None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    _add_errors(app)

    def now() -> int:
        return int(wall())

    @app.post(f"{PREFIX}/challenge", response_model=ChallengeReply, responses=_responses(401, signed=False))
    def challenge(request: Request, peer: RenewingPeer, _body: Nothing) -> HttpResponse:
        """A challenge for requests with the same client certificate."""
        found = exchange.admit(peer, now())
        request.scope["extensions"][NOTE].judged = True
        if isinstance(found, Response):
            return _judged(request, found)
        return _json(200, {"challenge": found, "expires_in": CHALLENGE_LIFETIME_S})

    for purpose, kind in KINDS.items():
        _add_purpose(app, exchange, purpose, (kind.__doc__ or "").strip().partition("\n")[0], now)

    @app.post(f"{PREFIX}/provision", response_model=SignedReply, responses=_responses(403, 409, signed=True))
    def provision(request: Request, body: BeginBody) -> HttpResponse:
        """The first step of a device: its enrollment token, and its hardware."""
        return _respond(request, enrollment.begin(body.model_dump(), _caller(request).address, now()))

    @app.post(f"{PREFIX}/provision/complete", response_model=SignedReply, responses=_responses(403, 409, signed=True))
    def provision_complete(request: Request, body: SignedRequest) -> HttpResponse:
        """The second step of a device: the proof, its keys and a certificate request."""
        return _respond(request, enrollment.complete(body.request, _caller(request).address, now()))

    @app.get(
        f"{PREFIX}/key-set",
        response_class=HttpResponse,
        responses={
            200: {"description": "The key set, signed by the root.", "content": {"application/jose": {"schema": _JOSE}}},
            304: {"description": "The key set has not changed since If-None-Match."},
            **{status: value for status, value in _responses(signed=False).items() if status != 415},
        },
    )
    def key_set(
        if_none_match: Annotated[str | None, Header(max_length=256)] = None,
        root: Annotated[str | None, Query(pattern=r"^sha256:[0-9a-f]{64}$")] = None,
    ) -> HttpResponse:
        """The server's keys, signed by its offline root; with `root`, the newest set that this root has signed."""
        text = keyring.key_set() if root is None else keyring.key_set_of(root) or keyring.key_set()
        etag = f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
        if if_none_match == etag:
            return HttpResponse(status_code=304, headers={"etag": etag})
        return HttpResponse(text, media_type="application/jose", headers={"etag": etag})

    @app.get(
        f"{PREFIX}/capabilities",
        response_class=HttpResponse,
        responses={
            200: {"description": "The list, signed by a rotation key.", "content": {"application/jose": {"schema": _JOSE}}},
            **{status: value for status, value in _responses(signed=False).items() if status != 415},
        },
    )
    def capabilities(request: Request) -> HttpResponse:
        """What this server can do beyond release 0.1.0."""
        try:
            return HttpResponse(signed_list(keyring, now()), media_type="application/jose")
        except ClockNotTrusted as problem:
            return _respond(request, error(503, RefusalCode.UNAVAILABLE, str(problem), CLOCK_RETRY_S))

    _describe_without_422(app)
    return app


_JOSE = {"type": "string", "pattern": JWS_PATTERN}


def _add_purpose(app: FastAPI, exchange: Exchange, purpose: str, summary: str, now: Callable[[], int]) -> None:
    responses = _responses(401, 403, 409, signed=True)
    path, name = f"{PREFIX}/{purpose}", purpose.replace("-", "_")

    def ask(request: Request, peer: AgentPeer, body: SignedRequest) -> HttpResponse:
        return _judged(request, exchange.handle(purpose, peer, body.request, now()))

    def ask_at_any_date(request: Request, peer: RenewingPeer, body: SignedRequest) -> HttpResponse:
        return _judged(request, exchange.handle(purpose, peer, body.request, now()))

    endpoint = ask_at_any_date if purpose == RENEWAL else ask
    endpoint.__doc__ = summary
    app.add_api_route(path, endpoint, methods=["POST"], name=name, response_model=SignedReply, responses=responses)
    if purpose not in BY_GET:
        return

    def ask_by_get(
        request: Request,
        peer: AgentPeer,
        agent_request: Annotated[str, Header(max_length=MAX_HEADER_REQUEST_CHARS, pattern=JWS_PATTERN)],
    ) -> HttpResponse:
        return _judged(request, exchange.handle(purpose, peer, agent_request, now()))

    ask_by_get.__doc__ = summary
    by_get = {status: value for status, value in responses.items() if status != 415}
    app.add_api_route(path, ask_by_get, methods=["GET"], name=f"get_{name}", response_model=SignedReply, responses=by_get)


def _judged(request: Request, answer: Response) -> HttpResponse:
    """The answer of who has asked the registry for the client certificate, unless that did not answer."""
    request.scope["extensions"][NOTE].judged = answer.status != 503
    return _respond(request, answer)


def _respond(request: Request, answer: Response) -> HttpResponse:
    request.scope["extensions"][NOTE].code = None if answer.code is None else answer.code.value
    headers = {} if answer.retry_after_s is None else {"retry-after": str(answer.retry_after_s)}
    return HttpResponse(answer.body(), answer.status, headers, "application/json")


def _json(status: int, content: dict[str, Any]) -> HttpResponse:
    return HttpResponse(json.dumps(content, separators=(",", ":")), status, media_type="application/json")


def _add_errors(app: FastAPI) -> None:
    def stop(request: Request, stopped: Exception) -> HttpResponse:
        assert isinstance(stopped, _Stop)
        return _respond(request, stopped.answer)

    def invalid(request: Request, problem: Exception) -> HttpResponse:
        assert isinstance(problem, RequestValidationError)
        return _respond(request, error(400, RefusalCode.BAD_REQUEST, _where(problem)))

    def http(request: Request, problem: Exception) -> HttpResponse:
        assert isinstance(problem, HTTPException)
        response = _respond(request, error(problem.status_code, RefusalCode.BAD_REQUEST, str(problem.detail)[:200]))
        response.headers.update(problem.headers or {})
        return response

    def database(request: Request, problem: Exception) -> HttpResponse:
        # The kind only: the text of an exception may quote what was being processed.
        _log.error("database error", extra={"fields": {"kind": type(problem).__name__}})
        return _respond(request, DATABASE_DOWN)

    app.add_exception_handler(_Stop, stop)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(SQLAlchemyError, database)


def _where(problem: RequestValidationError) -> str:
    """Where the body is malformed, and how; never what it contains."""
    first = problem.errors()[0]
    place = ".".join(str(part) for part in first.get("loc", ()))[:100]
    return f"malformed request: {place}: {first.get('type', 'invalid')}"


def _describe_without_422(app: FastAPI) -> None:
    """Removes FastAPI's own 422 from the document: this server never sends it."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        document = original()
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
