"""The application of the operator API: the routes of all acts, problems in one form, and the OpenAPI document."""

import logging
import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi import Response as HttpResponse
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from server.acts.act import Act
from server.acts.catalog import ACTS
from server.acts.misfits import in_words
from server.acts.runner import Runner
from server.base.errors import RegistryError
from server.base.refused import RequestRefused

from .cursors import CursorRefused
from .gate import PROBLEM
from .paths import BySegments
from .problems import KINDS, Problem, problem_of
from .routes import PREFIX, ProblemReply, add_routes

_log = logging.getLogger("license_server")
_DESCRIPTION = """What operators of the license server, and their programs, may ask and do.

People sign in with a client certificate of the server's operator CA, or with a token of the OpenID provider; programs with a
token. What an account may do depends on its role (`x-roles`: these roles, and those that include them), and for a token also on
its scopes (`x-scope`). Times are seconds since 1970 UTC. A list has `next`, which is the `cursor` of its next page. A change
with an `Idempotency-Key` is done once, however often it is sent within a day. An act that touches many agents answers 202:
another person must approve it, and then the same request, with `Approval-Id`, does it. A problem is of the form of RFC 9457,
and its `next` says what to do."""


def create_app(
    runner: Runner, cursor_key: bytes, wall: Callable[[], float] = time.time, acts: tuple[Act, ...] = ACTS
) -> FastAPI:
    """Makes the application. `gate.Gate` belongs in front of it.

    Args:
        runner: performs acts.
        cursor_key: 32 bytes.
        wall: seconds since 1970 UTC.
        acts: those of the catalog.
    """
    app = FastAPI(
        title="license-server: operators",
        version="1",
        description=_DESCRIPTION,
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(BySegments)
    _add_errors(app)
    add_routes(app, acts, runner, cursor_key, wall)
    _complete(app)
    return app


def _add_errors(app: FastAPI) -> None:
    def respond(request: Request, problem: Problem) -> HttpResponse:
        request.scope["extensions"][PROBLEM].append(problem)
        return HttpResponse(problem.body(), problem.status, problem.headers())

    def invalid(request: Request, error: Exception) -> HttpResponse:
        assert isinstance(error, RequestValidationError | ValidationError)
        return respond(request, Problem("malformed", in_words(error.errors())))

    def http(request: Request, error: Exception) -> HttpResponse:
        assert isinstance(error, HTTPException)
        kinds = {404: "no-such-path", 405: "method-not-allowed"}
        kind = kinds.get(error.status_code, "malformed")
        response = respond(request, Problem(kind, KINDS[kind].title))
        response.headers.update(error.headers or {})
        return response

    def cursor(request: Request, _error: Exception) -> HttpResponse:
        text = "the cursor was changed, or belongs to another list or other filters"
        return respond(request, Problem("cursor-refused", text))

    def refused(request: Request, error: Exception) -> HttpResponse:
        if isinstance(error, SQLAlchemyError):
            # The kind only: the text of an exception may quote what was being processed.
            _log.error("database error", extra={"fields": {"kind": type(error).__name__}})
        return respond(request, problem_of(error))

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(ValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(CursorRefused, cursor)
    for kind in (RegistryError, RequestRefused, SQLAlchemyError):
        app.add_exception_handler(kind, refused)


def _complete(app: FastAPI) -> None:
    """Adds how to sign in to the document, and removes FastAPI's own 422, which this server never sends in that form."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        document = original()
        schemas = document["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        problem = ProblemReply.model_json_schema(ref_template="#/components/schemas/{model}")
        # What a form refers to is beside it in the document: generators of clients follow references, and know no `$defs`.
        schemas |= problem.pop("$defs", {}) | {"ProblemReply": problem}
        for path in document["paths"].values():
            for operation in path.values():
                own = operation["responses"].get("422", {}).get("content", {})
                if "application/json" in own:
                    del operation["responses"]["422"]
        document["components"]["securitySchemes"] = {
            "token": {"type": "http", "scheme": "bearer", "description": "A program's token, or one of the OpenID provider."},
            "certificate": {"type": "mutualTLS", "description": "A client certificate of the server's operator CA."},
        }
        document["security"] = [{"token": []}, {"certificate": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
