"""Admits requests of operators: limits their rate, signs them in, reads the body. ASGI middleware.

An address is limited before anything is looked up; who has signed in is limited by account, and no longer by address.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
from sqlalchemy.exc import SQLAlchemyError

from server.accounts import provider as providers
from server.accounts import signin
from server.accounts.signin import SignedIn
from server.acts import caller as callers
from server.acts.runner import Runner
from server.base.jsonlog import place_of
from server.base.limits import (
    ADDRESS_RATE,
    AGENT_RATE,
    LOT_ASKED_RATE,
    MAX_OPERATOR_BODY_BYTES,
    address_key,
    buckets,
)
from server.oidc.reader import ProviderUnavailable
from server.oidc.signin import ProviderSignIn
from server.oidc.tokens import TokenRefused, looks_like_one
from server.registry.database import Database
from server.web.bodies import BodyRefused, whole_body
from server.web.middleware import Lots, is_json, replay
from server.web.peers import Peer
from server.web.transport import PEER_EXTENSION

from .problems import RETRY_S, Problem, problem_of

OPERATOR = "license_server.operator"
"""In `scope["extensions"]`: the `Caller`."""
PROBLEM = "license_server.problem"
"""In `scope["extensions"]`: a list that the application adds its problem to, for the log."""
MAX_TOKEN_CHARS = 8192
_BODY_PROBLEMS = {400: "malformed", 408: "too-slow", 413: "too-large"}
_log = logging.getLogger("license_server")

Scope = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Credential:
    """What a request brings to sign in with: one of the two."""

    peer: Peer | None
    token: str | None


class Gate:
    """Passes to the application only requests of operators who have signed in, within their rates, with whole bodies.

    Args:
        app: the application.
        database: has the accounts.
        runner: records refusals.
        clock_problem: why nobody can be signed in now; None if the clock is trusted. Runs in a thread.
        lots: the accounts' allowance is shared with other processes; None if this process is the only one.
        openid: verifies tokens of the OpenID provider, if the registry has one.
        observe: called after each response, with its status, the kind of its problem, and the seconds that it took.
        wall: seconds since 1970 UTC.
        steady: seconds of a clock that never goes back.
    """

    def __init__(
        self,
        app: Any,
        database: Database,
        runner: Runner,
        clock_problem: Callable[[], str | None] = lambda: None,
        lots: Lots | None = None,
        openid: ProviderSignIn | None = None,
        observe: Callable[[int, str | None, float], None] = lambda _status, _kind, _seconds: None,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._database = database
        self._runner = runner
        self._clock_problem = clock_problem
        self._lots = lots
        self._openid = ProviderSignIn() if openid is None else openid
        self._observe = observe
        self._wall = wall
        self._steady = steady
        self._addresses = buckets(ADDRESS_RATE)
        self._accounts = buckets(AGENT_RATE if lots is None else lots.rate)
        self._asked = buckets(LOT_ASKED_RATE)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Handles one request, or the lifespan."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, started = self._steady(), 500, False
        said: list[Problem] = []
        scope["extensions"] = {**scope.get("extensions", {}), PROBLEM: said}

        async def noting(message: dict[str, Any]) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                message["headers"] = [*message.get("headers", []), (b"cache-control", b"no-store")]
                if _ends(scope["extensions"].get(OPERATOR), status):
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            admitted = await self._admit(scope, receive)
            if isinstance(admitted, Problem):
                said.append(admitted)
                await send_problem(noting, admitted)
            else:
                await self._app(scope, replay(admitted), noting)
        except Exception as problem:  # noqa: BLE001 - whatever the application did not foresee ends here
            _log.error("a request failed", extra={"fields": {"kind": type(problem).__name__, "at": place_of(problem)}})
            if not started:
                await send_problem(noting, Problem("internal", "internal error; the server's log says where"))
        finally:
            self._tell(scope, status, said, self._steady() - began)

    async def _admit(self, scope: Scope, receive: Any) -> Problem | bytes:
        address = _address(scope)
        key, now = address_key(address), self._steady()
        if not self._addresses.take(key, now):
            return _limited(self._addresses.wait(key, now))
        credential = _credential(scope)
        if isinstance(credential, Problem):
            return credential
        found = await anyio.to_thread.run_sync(self._sign_in, credential, address)
        if isinstance(found, Problem):
            return found
        self._addresses.give(key, 1, now)
        # From here on it is known who asks: the log names them, and a 429 does not end their connection.
        scope["extensions"][OPERATOR] = callers.of(found)
        account = f"account {found.account}"
        if not self._accounts.take(account, now) and not await self._take_lot(account, now):
            return _limited(self._accounts.wait(account, now))
        if scope["method"] in ("POST", "PUT", "PATCH") and not is_json(scope["headers"]):
            return Problem("unsupported-media-type", "the content-type must be application/json")
        try:
            return await whole_body(scope, receive, MAX_OPERATOR_BODY_BYTES)
        except BodyRefused as refused:
            return Problem(_BODY_PROBLEMS[refused.status], refused.text)

    def _sign_in(self, credential: _Credential, address: str) -> SignedIn | Problem:
        """Who has this credential now; runs in a thread."""
        now = int(self._wall())
        try:
            problem = self._clock_problem()
            if problem is not None:
                return Problem("unavailable", problem, RETRY_S)
            try:
                found, why = self._find(credential, now), _why(credential)
            except TokenRefused as refused:
                found, why = None, f"this token does not count: {refused}"
            if found is None:
                fields = {"act": "sign_in", "via": _via(credential), "text": why[:200]}
                self._runner.record_refusal(f"address {address}"[:128], now, **fields)
                return Problem("not-signed-in", why)
            if found.use_due:
                with self._database.write() as session:
                    signin.note_use(session, found, now)
        except SQLAlchemyError as error:
            return problem_of(error)
        except ProviderUnavailable as unavailable:
            return Problem("unavailable", f"{unavailable}; certificates, and tokens of programs, still sign in", RETRY_S)
        return found

    def _find(self, credential: _Credential, now: int) -> SignedIn | None:
        if credential.peer is not None:
            if not credential.peer.valid_at(now):
                return None
            with self._database.read() as session:
                return signin.by_certificate(session, credential.peer.fingerprint, now)
        token = credential.token or ""
        if looks_like_one(token):
            return self._find_vouched(token, now)
        with self._database.read() as session:
            return signin.by_token(session, token, now)

    def _find_vouched(self, token: str, now: int) -> SignedIn | None:
        """Whom the OpenID provider vouches for; no transaction is open while its keys are read."""
        with self._database.read() as session:
            provider = providers.present(session)
        if provider is None:
            raise TokenRefused("this server has no OpenID provider; programs sign in with tokens of this server")
        vouched = self._openid.vouched(token, provider, now)
        with self._database.read() as session:
            if providers.present(session) != provider:
                raise TokenRefused("the OpenID provider was changed a moment ago")
            found = signin.by_subject(session, vouched.issuer, vouched.subject, now)
        if found is None:
            raise TokenRefused("it verifies, but no account that may sign in has its subject")
        return found

    async def _take_lot(self, key: str, now: float) -> bool:
        """Whether an account that has used up what this process lets it ask gets a lot of the allowance that all share."""
        if self._lots is None or not self._asked.take(key, now):
            return False
        if not await anyio.to_thread.run_sync(self._lots.take, key, int(self._wall())):
            return False
        self._accounts.give(key, self._lots.rate.burst, now)
        return self._accounts.take(key, now)

    def _tell(self, scope: Scope, status: int, said: list[Problem], seconds: float) -> None:
        """Logs a refusal: who and what, by names of our own, and never what the request contains."""
        self._observe(status, said[0].kind if said else None, seconds)
        if status < 400:
            return
        caller = scope["extensions"].get(OPERATOR)
        fields: dict[str, Any] = {"endpoint": "operators", "status": status, "ms": round(seconds * 1000)}
        fields["code"] = said[0].kind if said else None
        fields["address"] = _address(scope)[:64]
        if caller is not None:
            fields["account"] = caller.account
        _log.info("refused", extra={"fields": fields})


def _ends(caller: callers.Caller | None, status: int) -> bool:
    """Whether the connection ends with this response."""
    if status in (408, 413):
        return True  # the rest of the body is not read
    # Nobody is worth a connection that waits. Who has signed in is: another handshake would cost more.
    return caller is None and status in (400, 401, 429)


def _credential(scope: Scope) -> _Credential | Problem:
    """What the request brings to sign in with."""
    peer: Peer | None = scope["extensions"].get(PEER_EXTENSION)
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(given) > 1:
        return Problem("malformed", "there are two Authorization headers")
    if given and peer is not None:
        return Problem("two-credentials", "there are a client certificate and an Authorization header")
    if not given:
        return _Credential(peer, None) if peer is not None else Problem("not-signed-in", _why(_Credential(None, None)))
    scheme, space, token = given[0].partition(b" ")
    if scheme.lower() != b"bearer" or not space or len(token) > MAX_TOKEN_CHARS or not token.isascii():
        return Problem("not-signed-in", "the Authorization header must be 'Bearer TOKEN'")
    return _Credential(None, token.decode("ascii"))


def _via(credential: _Credential) -> str:
    if credential.peer is not None:
        return signin.CERTIFICATE
    return signin.OIDC if looks_like_one(credential.token or "") else signin.TOKEN


def _why(credential: _Credential) -> str:
    if credential.peer is not None:
        return "this client certificate does not count: it has ended, was revoked, or its account may not sign in"
    if credential.token is not None:
        return "this token does not count: it has ended, was revoked, or its account may not sign in"
    return "there is neither a client certificate nor an Authorization header"


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return "" if client is None else str(client[0])


def _limited(wait: int) -> Problem:
    return Problem("rate-limited", f"too many requests; try again in {wait} s", max(wait, 1))


async def send_problem(send: Any, problem: Problem) -> None:
    """Sends a problem to an ASGI server."""
    body = problem.body()
    headers = [(name.encode(), value.encode()) for name, value in problem.headers().items()]
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
