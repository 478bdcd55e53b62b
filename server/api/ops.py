"""Serves health, readiness and metrics to operators, on a listener of their own."""

from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from server.base.jsonlog import place_of
from server.registry.database import brief

Check = Callable[[], str | None]
"""Returns None, or what is wrong in words without secrets. A check that raises has failed."""


def create_ops(checks: dict[str, Check], metrics: Callable[[], bytes]) -> Starlette:
    """Makes the application for operators.

    Args:
        checks: by name; the server is ready if all pass.
        metrics: returns the text of `/metrics`.
    """

    def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "live"})

    def readyz(_request: Request) -> Response:
        results = {name: _result(check) for name, check in checks.items()}
        ready = all(result == "ok" for result in results.values())
        return JSONResponse({"ready": ready, "checks": results}, 200 if ready else 503)

    def scrape(_request: Request) -> Response:
        return Response(metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return Starlette(routes=[Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", scrape)])


def _result(check: Check) -> str:
    try:
        return check() or "ok"
    except SQLAlchemyError as problem:
        return f"the database does not answer: {brief(problem)}"
    except Exception as problem:  # noqa: BLE001 - whatever a check raises means "not ready", not a stack trace
        return f"failed: {type(problem).__name__} at {place_of(problem)}"
