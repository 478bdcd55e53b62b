"""The application of the listener: limits rates, identifies the device, bounds the body, and answers. ASGI.

An address is limited before anything is looked up; a device that has identified itself is limited by its id, and no longer by
address. What it identifies itself with is looked up for each request, so what was blocked or revoked is refused on connections
that are open, too.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import anyio.to_thread
from sqlalchemy.exc import SQLAlchemyError

from server.base.errors import RegistryError
from server.base.jsonlog import place_of
from server.base.limits import ADDRESS_RATE, AGENT_RATE, LOT_ASKED_RATE, MAX_BODY_BYTES, address_key, buckets
from server.fleet.ddi import credentials
from server.registry.database import Database
from server.web.bodies import BodyRefused, whole_body
from server.web.middleware import Lots

from .answers import HAL, JSON
from .credentials import shown_by
from .downloads import Downloads
from .endpoints import Answer, Download, Endpoints
from .paths import Route, route_of
from .problems import RETRY_S, Refused

DEVICE = "license_server.ddi_device"
"""In `scope["extensions"]`: the id of the device that has identified itself."""
STREAMED = "license_server.ddi_streamed"
"""In `scope["extensions"]`: the response is a download, which takes as long as the device's network."""
_BODY_KINDS = {400: "malformed", 408: "too-slow", 413: "too-large"}
_JSON_TYPES = (JSON.encode(), HAL.encode())
_log = logging.getLogger("license_server")

Scope = dict[str, Any]
Observe = Callable[[int, str | None, float], None]
"""Called after each response with its status, the kind of its refusal, and the seconds that it took."""
Heard = Callable[[str, int, float], None]


class Gate:
    """Answers requests of devices that have identified themselves, within their rates.

    Args:
        endpoints: answer.
        database: has the credentials.
        tenant: of the paths.
        seen: called with the id of a device that has identified itself.
        clock_problem: why nobody can be identified now; None if the clock is trusted. Runs in a thread.
        lots: the devices' allowance is shared with other processes; None if this process is the only one.
        observe: see `Observe`.
        heard: called with the id of a device that has identified itself, HTTP status and seconds, 0 for a download.
        wall: seconds since 1970 UTC.
        steady: seconds of a clock that never goes back.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        database: Database,
        tenant: str,
        seen: Callable[[str], None] = lambda _device: None,
        clock_problem: Callable[[], str | None] = lambda: None,
        lots: Lots | None = None,
        observe: Observe = lambda _status, _kind, _seconds: None,
        heard: Heard = lambda _device, _status, _seconds: None,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoints = endpoints
        self._database = database
        self._tenant = tenant
        self._seen = seen
        self._clock_problem = clock_problem
        self._lots = lots
        self._observe = observe
        self._heard = heard
        self._wall = wall
        self._steady = steady
        self._addresses = buckets(ADDRESS_RATE)
        self._devices = buckets(AGENT_RATE if lots is None else lots.rate)
        self._asked = buckets(LOT_ASKED_RATE)
        self._downloads = Downloads()

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            return
        began, status, started, kind = self._steady(), 500, False, None
        scope["extensions"] = {**scope.get("extensions", {})}

        async def noting(message: dict[str, Any]) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                message["headers"] = [*message["headers"], (b"cache-control", b"no-store")]
                if status in (408, 413) or (status >= 400 and DEVICE not in scope["extensions"]):
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            try:
                await self._handle(scope, receive, noting)
            except Refused as refused:
                kind = refused.kind
                await _refuse(noting, refused)
            except (RegistryError, SQLAlchemyError) as problem:
                kind = "unavailable"
                # Of our own errors the text, which names rollouts and packages; of the database's the kind only.
                why = str(problem) if isinstance(problem, RegistryError) else type(problem).__name__
                _log.error("a device could not be answered", extra={"fields": {"why": why[:300]}})
                await _refuse(noting, Refused("unavailable", "the server cannot answer this now", RETRY_S))
        except Exception as problem:  # whatever was not foreseen ends here
            fields = {"kind": type(problem).__name__, "at": place_of(problem)}
            _log.error("a request failed", extra={"fields": fields})
            if started:
                raise  # the client sees a response that ends early
            kind = "internal"
            await _refuse(noting, Refused("internal", "internal error; the server's log says where"))
        finally:
            self._tell(scope, status, kind, self._steady() - began)

    async def _handle(self, scope: Scope, receive: Any, send: Any) -> None:
        route = await self._admit(scope)
        self._seen(route.device_id)
        if not route.endpoint:
            raise Refused("not-found", "there is no such path")
        if scope["method"] not in route.methods:
            raise Refused("method", f"this path has {' and '.join(route.methods)}", headers={"allow": ", ".join(route.methods)})
        body = await _body(scope, receive)
        found = await anyio.to_thread.run_sync(self._endpoints.do, route, scope.get("query_string", b""), body)
        if isinstance(found, Download):
            scope["extensions"][STREAMED] = True
            await self._downloads.send(route.device_id, found, scope, receive, send)
        else:
            await _answer(send, found, scope)

    async def _admit(self, scope: Scope) -> Route:
        """Whose request it is, and what it asks for. Raises Refused."""
        client = scope.get("client")
        key, now = address_key("" if client is None else str(client[0])), self._steady()
        if not self._addresses.take(key, now):
            raise _limited(self._addresses.wait(key, now))
        route = route_of(scope["raw_path"])
        if route is None:
            raise Refused("not-found", "there is no such path")
        shown = shown_by(scope, route.device_id, int(self._wall()))
        if route.tenant != self._tenant or not await anyio.to_thread.run_sync(self._admits, shown, route.device_id):
            # One text for all: who guesses learns neither which devices nor which tokens there are.
            raise Refused("not-signed-in", "what the device has shown does not count for this path")
        self._addresses.give(key, 1, now)
        scope["extensions"][DEVICE] = route.device_id
        device = f"device {route.device_id}"
        if not self._devices.take(device, now) and not await self._take_lot(device, now):
            raise _limited(self._devices.wait(device, now))
        return route

    def _admits(self, shown: Any, device_id: str) -> bool:
        problem = self._clock_problem()
        if problem is not None:
            raise Refused("unavailable", problem, RETRY_S)
        with self._database.read() as session:
            return credentials.admits(session, shown.kind, shown.digest, device_id, int(self._wall()))

    async def _take_lot(self, key: str, now: float) -> bool:
        """Whether a device that has used up what this process lets it ask gets a lot of the allowance that all share."""
        if self._lots is None or not self._asked.take(key, now):
            return False
        if not await anyio.to_thread.run_sync(self._lots.take, key, int(self._wall())):
            return False
        self._devices.give(key, self._lots.rate.burst, now)
        return self._devices.take(key, now)

    def _tell(self, scope: Scope, status: int, kind: str | None, seconds: float) -> None:
        """Logs a refusal: who and what, by names of our own, and never what the request contains."""
        self._observe(status, kind, seconds)
        if DEVICE in scope["extensions"]:
            self._heard(scope["extensions"][DEVICE], status, 0.0 if STREAMED in scope["extensions"] else seconds)
        if status < 400:
            return
        client = scope.get("client")
        fields: dict[str, Any] = {"endpoint": "ddi", "status": status, "code": kind, "ms": round(seconds * 1000)}
        fields["address"] = "" if client is None else str(client[0])[:64]
        if DEVICE in scope["extensions"]:
            fields["device"] = scope["extensions"][DEVICE]
        _log.info("refused", extra={"fields": fields})


def _limited(wait: int) -> Refused:
    return Refused("rate-limited", f"too many requests; try again in {wait} s", max(wait, 1))


async def _body(scope: Scope, receive: Any) -> bytes:
    try:
        body = await whole_body(scope, receive, MAX_BODY_BYTES)
    except BodyRefused as refused:
        raise Refused(_BODY_KINDS[refused.status], refused.text) from None
    if body and scope["method"] in ("POST", "PUT"):
        kinds = [value.lower().partition(b";")[0].strip() for name, value in scope["headers"] if name == b"content-type"]
        if len(kinds) != 1 or kinds[0] not in _JSON_TYPES:
            raise Refused("media-type", f"the content-type must be {JSON} or {HAL}")
    return body


def content_type_for(headers: list[tuple[bytes, bytes]]) -> str:
    """The type in which a client takes JSON: hawkBit's own, unless it asks for plain JSON and not for that."""
    accepted = b",".join(value.lower() for name, value in headers if name == b"accept")
    return JSON if JSON.encode() in accepted and HAL.encode() not in accepted else HAL


async def _answer(send: Any, found: Answer, scope: Scope) -> None:
    kind = found.kind or content_type_for(scope["headers"])
    headers = [(b"content-length", str(len(found.body)).encode())]
    if found.body:
        headers.append((b"content-type", f"{kind};charset=UTF-8".encode()))
    await send({"type": "http.response.start", "status": found.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else found.body})


async def _refuse(send: Any, refused: Refused) -> None:
    body = refused.body()
    headers = [(b"content-type", f"{JSON};charset=UTF-8".encode()), (b"content-length", str(len(body)).encode())]
    if refused.retry_after_s is not None:
        headers.append((b"retry-after", str(refused.retry_after_s).encode()))
    headers += [(name.encode(), value.encode()) for name, value in refused.headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
