"""Reads the body of a request, whole and bounded."""

import asyncio
from typing import Any

from server.base.limits import REQUEST_DEADLINE_S

Scope = dict[str, Any]


class BodyRefused(Exception):
    """The body is too large, too slow, or not complete.

    Attributes:
        status: of HTTP.
        text: the reason in words.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


async def whole_body(scope: Scope, receive: Any, most: int) -> bytes:
    """The body.

    Args:
        scope: of the request.
        receive: of ASGI.
        most: bytes that it may have.

    Raises:
        BodyRefused: it has more, did not arrive in time, or ends early.
    """
    too_large = BodyRefused(413, f"the body is too large; the limit is {most} bytes")
    for name, value in scope["headers"]:
        # The protocol has checked that it is a number, but not how many digits it has.
        if name == b"content-length" and (len(value) > 9 or int(value) > most):
            raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(REQUEST_DEADLINE_S):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise BodyRefused(400, "the connection was closed before the end of the body")
                body += message.get("body", b"")
                if len(body) > most:
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise BodyRefused(408, f"the request did not arrive within {REQUEST_DEADLINE_S} s") from None
