"""Answers requests: finds the resource, checks the form, and asks the agent. It decides nothing that the agent decides."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec

from ipc.errors import ErrorCode

from . import problems as p
from .agent import LONG_S, SOON_S, AgentDown, AgentRefuses, Conversation, NoReply
from .forms import Act, Certificates, Empty, SessionOrder, decode_base64
from .limits import Limits
from .openapi import make_document
from .problems import MEDIA_TYPE, Kind, Problem
from .routes import JSON, ROUTES, Parameter, Route, find
from .talks import Talk, Talks, TooMany

log = logging.getLogger(__name__)

SESSION_HEADER = "license-agent-session"
REVOKED_KNOWN_S = 10.0
"""How long the agent's word that a certificate is not revoked counts here. Acts are judged by the agent each time."""
OPENING = 2
"""Conversations that begin at once: with them, all others and the one without a signature, the agent's limit is not reached."""
DELAYING = frozenset(
    {ErrorCode.UNAUTHENTICATED, ErrorCode.REFUSED, ErrorCode.BAD_REQUEST, ErrorCode.UNKNOWN_OP, ErrorCode.UNSUPPORTED_VERSION}
)
"""Answers to a signed request after which the agent may answer this program's user, and so everybody here, late for a while."""
_F = TypeVar("_F")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who holds the TLS connection.

    Attributes:
        digest: SHA-256 of the certificate, hex.
        certificate: DER.
    """

    digest: str
    certificate: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        method: of HTTP.
        path: without query.
        query: without the question mark.
        headers: names in small letters; a name that comes twice is refused before.
        body: whole.
    """

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Response:
    """What is answered.

    Attributes:
        status: of HTTP.
        body: whole.
        media_type: of the body.
        headers: further ones.
    """

    status: int
    body: bytes = b""
    media_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


def problem_response(problem: Problem) -> Response:
    """The answer that a problem is."""
    headers = list(problem.headers)
    if problem.retry_s is not None:
        headers.append(("retry-after", str(problem.retry_s)))
    if problem.kind.status == 401:
        headers.append(("www-authenticate", "License-Agent-Admin"))
    return Response(problem.kind.status, msgspec.json.encode(problem.members()), MEDIA_TYPE, tuple(headers))


class App:
    """The interface.

    Args:
        connect: opens a conversation with the agent.
        new_id: makes an id that nobody can guess.
        monotonic: seconds.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[Conversation]], new_id: Callable[[], str], monotonic: Callable[[], float]
    ) -> None:
        self._connect = connect
        self._monotonic = monotonic
        self._limits = Limits()
        self._talks = Talks(new_id)
        self._unsigned: Conversation | None = None
        self._opening = asyncio.Semaphore(OPENING)
        self._not_revoked: dict[str, float] = {}
        self._document = msgspec.json.encode(make_document(ROUTES))
        self._handlers: dict[str, Callable[[Route, Request, Caller, dict[str, Any]], Awaitable[Response]]] = {
            "makeChallenge": self._make_challenge,
            "performAct": self._perform,
            "beginSession": self._begin_session,
            "endSession": self._end_session,
            "showDocument": self._show_document,
            "showHealth": self._show_health,
            "showSystemInfo": self._show_system_info,
        }

    def tidy(self) -> None:
        """Ends conversations that are over; called every second."""
        self._talks.tidy(self._monotonic())

    def close(self) -> None:
        """Ends all conversations."""
        self._talks.end_all()
        if self._unsigned is not None:
            self._unsigned.close()

    async def handle(self, request: Request, caller: Caller) -> Response:
        """The answer to a request; never raises."""
        try:
            return await self._handle(request, caller)
        except Problem as problem:
            return problem_response(problem)
        except AgentDown as error:
            return problem_response(Problem(p.AGENT_DOWN, error.text, next=error.action))
        except NoReply as error:
            return problem_response(Problem(p.NO_REPLY, str(error)))
        except AgentRefuses as error:
            return problem_response(_refusal(error, {}))
        except Exception:
            log.exception("a request failed: %s %s", request.method, request.path[:100])
            return problem_response(Problem(p.INTERNAL, "the interface failed"))

    async def _handle(self, request: Request, caller: Caller) -> Response:
        if wait := self._limits.wait(caller.digest, self._monotonic()):
            raise Problem(p.LIMITED, "requests of this certificate, or of all, come too often", retry_s=wait)
        try:
            found = find("GET" if request.method == "HEAD" else request.method, request.path)
        except ValueError:
            raise Problem(p.BAD_REQUEST, "the path's escapes are no UTF-8") from None
        if isinstance(found, list):
            if not found:
                raise Problem(p.NO_PATH, f"there is nothing at {request.path[:100]}")
            allowed = ", ".join(sorted({*found, *(("HEAD",) if "GET" in found else ())}))
            raise Problem(p.NO_METHOD, f"{request.path[:100]} knows {allowed}", headers=(("allow", allowed),))
        route, values = found
        arguments = _arguments(route, values, request.query)
        if route.name != "showDocument":
            await self._check_revoked(caller)
        return await self._handlers.get(route.name, self._read)(route, request, caller, arguments)

    # The agent, without a signature

    async def _ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Asks what needs no signature, on one connection for everybody."""
        for again in (True, False):
            kept = self._unsigned
            agent = kept or await self._connect()
            if kept is None:
                if self._unsigned is not None:  # another request was faster
                    self._unsigned.close()
                self._unsigned = agent
            try:
                return await agent.ask(op, fields)
            except (AgentDown, NoReply):
                agent.close()
                if self._unsigned is agent:
                    self._unsigned = None
                # The agent may have been started again since the last request. These are reads: asking twice is harmless.
                if kept is None or not again:
                    raise
            except AgentRefuses as error:
                if error.code is ErrorCode.UNKNOWN_OP:
                    raise Problem(
                        p.AGENT_DOWN,
                        "the agent is of an older release, which knows no signatures",
                        next="install the packages license-agent and license-agent-manage of one release",
                    ) from None
                raise
        raise AssertionError

    async def _check_revoked(self, caller: Caller) -> None:
        now = self._monotonic()
        if self._not_revoked.get(caller.digest, -REVOKED_KNOWN_S) > now - REVOKED_KNOWN_S:
            return
        reply = await self._ask("certificate_check", digests=[caller.digest])
        if reply.get("revoked") != []:
            raise Problem(p.REVOKED, f"the certificate {caller.digest} is revoked")
        self._not_revoked = {digest: at for digest, at in self._not_revoked.items() if at > now - REVOKED_KNOWN_S}
        self._not_revoked[caller.digest] = now

    async def _show_document(self, _route: Route, _request: Request, _caller: Caller, _values: dict[str, Any]) -> Response:
        return Response(200, self._document)

    async def _show_health(self, _route: Route, _request: Request, _caller: Caller, _values: dict[str, Any]) -> Response:
        reply = await self._ask("health")
        return _json(200, {"verdict": reply["verdict"], "exit_status": reply["exit_status"]})

    async def _show_system_info(self, _route: Route, _request: Request, _caller: Caller, _values: dict[str, Any]) -> Response:
        reply = await self._ask("system_info")
        found = {"version": reply["agent_version"], "build": reply["build"], "uptime_s": reply["uptime_s"]}
        return _json(200, {**found, "boot_id": reply["boot_id"].hex()})

    # The agent, with one

    async def _make_challenge(self, _route: Route, request: Request, caller: Caller, _values: dict[str, Any]) -> Response:
        if request.body:
            _body(request, Empty)
        try:
            self._talks.make_room(caller.digest, self._monotonic())
        except TooMany as error:
            raise Problem(p.TOO_MANY, str(error), retry_s=60) from None
        async with self._opening:
            agent = await self._connect()
            try:
                given = await agent.ask("challenge", {})
                self._talks.make_room(caller.digest, self._monotonic())  # others may have begun one in the meantime
            except TooMany as error:
                agent.close()
                raise Problem(p.TOO_MANY, str(error), retry_s=60) from None
            except BaseException:
                agent.close()
                raise
            talk = self._talks.begin(caller.digest, agent, given, self._monotonic())
        return _json(201, self._challenge(talk))

    def _challenge(self, talk: Talk) -> dict[str, Any]:
        given, left = talk.given, int(talk.challenge_ends - self._monotonic())
        named = {"id": talk.challenge_id, "agent_id": given["agent_id"], "boot_id": given["boot_id"].hex()}
        return {**named, "challenge": given["challenge"].hex(), "expires_in": max(0, left)}

    async def _perform(self, _route: Route, request: Request, caller: Caller, _values: dict[str, Any]) -> Response:
        act = _body(request, Act)
        if act.op == "session_begin":
            raise Problem(p.BAD_PARAMS, "a session is not an act", next="Send it to POST /v1/sessions.")
        _talk, result, challenge = await self._signed(act, act.op, act.params, caller, LONG_S)
        return _json(200, {"result": result, "challenge": challenge})

    async def _begin_session(self, _route: Route, request: Request, caller: Caller, _values: dict[str, Any]) -> Response:
        order = _body(request, SessionOrder)
        talk, result, challenge = await self._signed(order, "session_begin", {}, caller, SOON_S)
        self._talks.session_begun(talk, float(result["seconds"]), self._monotonic())
        named = {"session": talk.session_id, "role": result["role"], "name": result["name"]}
        return _json(201, {**named, "expires_in": int(talk.session_ends - self._monotonic()), "challenge": challenge})

    async def _signed(
        self, order: Act | SessionOrder, op: str, params: dict[str, Any], caller: Caller, seconds: float
    ) -> tuple[Talk, dict[str, Any], dict[str, Any]]:
        """Passes on what somebody has signed; returns the conversation, the agent's reply and the next challenge."""
        signature, certificates = _proof(order.signature, order.certificates, caller)
        if wait := self._limits.wait_to_sign(caller.digest, self._monotonic()):
            raise Problem(p.LIMITED, "too many signed requests of this certificate were refused", retry_s=wait)
        talk = self._talks.take(order.challenge, caller.digest, self._monotonic())
        if talk is None:
            raise Problem(p.NO_CHALLENGE, "the challenge was used, is over, or was given to another certificate")
        try:
            reply = await talk.agent.ask_signed(op, params, certificates, signature, seconds)
            return talk, reply, self._next(talk, reply.pop("next_challenge", None))
        except AgentRefuses as error:
            if error.code in DELAYING:
                self._limits.failed(caller.digest, self._monotonic())
            more = {"challenge": self._next(talk, error.challenge)} if error.challenge is not None else {}
            raise _refusal(error, more) from None
        except ValueError as error:
            self._talks.challenge_given(talk, self._monotonic())  # nothing was sent: the challenge is as it was
            raise Problem(p.BAD_PARAMS, str(error), more={"challenge": self._challenge(talk)}) from None
        except (AgentDown, NoReply):
            self._talks.end(talk)
            raise
        finally:
            self._talks.done(talk)

    def _next(self, talk: Talk, challenge: Any) -> dict[str, Any]:
        if not isinstance(challenge, bytes):
            raise NoReply("the agent's reply has no challenge")
        talk.given = {**talk.given, "challenge": challenge}
        self._talks.challenge_given(talk, self._monotonic())
        return self._challenge(talk)

    # Sessions

    async def _end_session(self, _route: Route, _request: Request, caller: Caller, values: dict[str, Any]) -> Response:
        talk = self._talks.session(values["id"], caller.digest, self._monotonic())
        if talk is None:
            raise Problem(p.NOT_FOUND, "this certificate has no such session")
        self._talks.end(talk)
        return Response(204)

    async def _read(self, route: Route, request: Request, caller: Caller, values: dict[str, Any]) -> Response:
        talk = self._talks.session(request.headers.get(SESSION_HEADER, ""), caller.digest, self._monotonic())
        if talk is None:
            raise Problem(p.NO_SESSION, "the header License-Agent-Session names no session of this certificate")
        fields = values
        if route.op == "license_explain":
            fields = {"by": "license", "subject": values["id"]}
        elif route.op == "audit_export":
            fields = {"after_seq": values["after"], "limit": values["limit"]}
        try:
            reply = await talk.agent.ask(route.op, fields, LONG_S if route.op == "audit_verify" else SOON_S)
        except (AgentDown, NoReply):
            self._talks.end(talk)
            raise
        except AgentRefuses as error:
            if error.code is ErrorCode.UNAUTHENTICATED:
                self._talks.end(talk)
                raise Problem(p.NO_SESSION, f"the agent has ended the session: {error.text}") from None
            raise
        except ValueError as error:
            raise Problem(p.BAD_PARAMS, str(error)) from None
        if route.media_type != JSON:
            return Response(200, str(reply.get("text", "")).encode(), f"{route.media_type}; version=0.0.4; charset=utf-8")
        return _json(200, reply)


def _json(status: int, members: dict[str, Any]) -> Response:
    return Response(status, msgspec.json.encode(members))


def _refusal(error: AgentRefuses, more: dict[str, Any]) -> Problem:
    kind: Kind = p.kind_of(error.code)
    retry = 1 if kind is p.LIMITED else None
    return Problem(kind, error.text, retry_s=retry, more={"code": int(error.code), **more})


def _proof(signature: str, certificates: Any, caller: Caller) -> tuple[bytes, list[bytes]]:
    shown: Certificates | None = certificates if isinstance(certificates, list) else None
    try:
        chain = [caller.certificate] if shown is None else [decode_base64(each) for each in shown]
        return decode_base64(signature), chain
    except ValueError:
        raise Problem(p.BAD_REQUEST, "signature and certificates must be base64, without line breaks") from None


def _body(request: Request, form: type[_F]) -> _F:
    kind, _, parameter = request.headers.get("content-type", "").lower().partition(";")
    if kind.strip() != JSON or parameter.strip() not in ("", "charset=utf-8", 'charset="utf-8"'):
        raise Problem(p.NO_JSON, "the content-type must be application/json")
    try:
        return msgspec.json.decode(request.body, type=form)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(p.BAD_REQUEST, f"the body is refused: {str(error)[:200]}") from None


def _arguments(route: Route, values: dict[str, str], query: str) -> dict[str, Any]:
    """The parameters of a request, from its path and its query."""
    known = {each.name: each for each in route.parameters if not each.in_path}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=10, errors="strict")
    except ValueError:
        raise Problem(p.BAD_REQUEST, "the query cannot be read") from None
    given = dict(pairs)
    if len(given) < len(pairs) or not given.keys() <= known.keys():
        names = ", ".join(known) or "none"
        raise Problem(p.BAD_REQUEST, f"the query may have each of these once: {names}")
    found: dict[str, Any] = {name: _whole(each, given.get(name)) for name, each in known.items()}
    for each in route.parameters:
        most = each.schema.get("maxLength")
        if each.in_path and most is not None and len(values[each.name]) > most:
            raise Problem(p.BAD_REQUEST, f"'{each.name}' has more than {most} characters")
    return {**values, **found}


def _whole(parameter: Parameter, text: str | None) -> int | None:
    if text is None or parameter.numbers is None:
        return parameter.default
    least, most = parameter.numbers
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 16 and least <= int(text) <= most):
        raise Problem(p.BAD_REQUEST, f"'{parameter.name}' must be a whole number from {least} to {most}")
    return int(text)
