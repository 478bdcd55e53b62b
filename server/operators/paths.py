"""Reads a request's path segment by segment, so that an id in it may have a slash (`%2F`). Pure.

ASGI hands over a path that is decoded whole: `order%2F77` looks like two segments there, and would be another path.
"""

from typing import Any
from urllib.parse import unquote

from starlette.convertors import Convertor, register_url_convertor

KIND = "segment"
"""The kind of a part of a route: `{license_id:segment}`."""
_SLASH = "\ud800"
"""Stands for a slash within a segment: half a surrogate pair, which no decoded path has."""


def routed(raw_path: bytes) -> str:
    """A path as routes match it.

    Args:
        raw_path: as it came, without the query.
    """
    return "/".join(unquote(part).replace("/", _SLASH) for part in raw_path.decode("latin-1").split("/"))


class _Segment(Convertor[str]):
    """One segment, with its slashes."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        return value.replace(_SLASH, "/")

    def to_string(self, value: str) -> str:
        return value.replace("/", _SLASH)


register_url_convertor(KIND, _Segment())


class BySegments:
    """Has an application match paths by `routed`. ASGI middleware.

    Args:
        app: the application.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Handles one request, or the lifespan."""
        if scope["type"] == "http" and scope.get("raw_path") is not None:
            scope = {**scope, "path": routed(scope["raw_path"])}
        await self._app(scope, receive, send)
