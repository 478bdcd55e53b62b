"""Asks the license server: signs requests, checks replies. What carries them is handed in and is not trusted.

Whoever carries a request and its reply may be anybody. A reply counts when a key of the server signed it for this agent and
this request; all else, errors of HTTP among it, means only that there was no contact.
"""

import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from agentd.base.clock import Clock
from agentd.base.hardware import Hardware
from contracts.exchange import (
    RefusalCode,
    Refused,
    Reply,
    Request,
    purpose_of,
    request_input,
    verify_reply,
    with_signature,
)
from contracts.jose import BadSignature, MalformedToken, parse_json_object
from contracts.licensetoken import WrongAudience
from contracts.trust import Trust

log = logging.getLogger(__name__)

API = "/api/v1"
SIGN_DEADLINE_S = 10.0
CHALLENGE_KEPT_S = 120.0
"""A challenge is used for so long; the server takes it for longer."""
MAX_CHALLENGE_CHARS = 256


class NoContact(Exception):
    """The server was not reached, or nothing came that counts as its answer. Nothing has changed here.

    Attributes:
        retry_after_s: when it may be tried again, if the other side said so. That word is not signed: it can only delay.
    """

    def __init__(self, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class NotTheServer(NoContact):
    """Something came as an answer that the server has not signed for this request."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of HTTP.

    Attributes:
        status: its number.
        retry_after_s: what its Retry-After asks for.
        body: its content.
    """

    status: int
    body: bytes
    retry_after_s: float | None = None


Carry = Callable[[str, str, bytes], Awaitable[Answer]]
"""Takes a method, a path and a body to the server and brings the answer; raises NoContact."""

R = TypeVar("R", bound=Reply)


class Exchange:
    """Asks on behalf of one agent.

    Args:
        agent_id: who asks.
        trust: whose signatures count, at the time of the call.
        hardware: signs.
        clock: for timestamps, and the age of a challenge.
        carry: takes requests to the server.
        latest: end of the client certificate in use. A server whose clock is past it would not have let this agent in; one
            that signs a later time all the same has a wrong clock, and would take this agent's clock along.
        random: gives that many random bytes.
    """

    def __init__(
        self,
        agent_id: str,
        trust: Callable[[], Trust],
        hardware: Hardware,
        clock: Clock,
        carry: Carry,
        latest: Callable[[], int],
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._agent_id = agent_id
        self._trust = trust
        self._hardware = hardware
        self._clock = clock
        self._carry = carry
        self._latest = latest
        self._random = random
        self._challenge: tuple[str, float] | None = None

    async def ask(self, kind: type[R], make: type[Request], **fields: Any) -> R:
        """The server's reply to a request.

        Args:
            kind: what the reply must be.
            make: the request.
            fields: of the request, besides those that every request has.

        Raises:
            NoContact: there was no reply that counts.
            Refused: the server says no.
            HwsecError: the hardware does not sign.
        """
        try:
            return await self._ask(kind, make, fields)
        except Refused as refused:
            if refused.refusal.code is not RefusalCode.STALE_CHALLENGE:
                raise
        self._challenge = None
        return await self._ask(kind, make, fields)

    async def _ask(self, kind: type[R], make: type[Request], fields: Mapping[str, Any]) -> R:
        request = make(
            agent_id=self._agent_id,
            request_id=self._random(16).hex(),
            challenge=await self._fresh_challenge(),
            timestamp=self._clock.now(),
            **fields,
        )
        signed = request_input(request)
        signature = await self._hardware.run(lambda line: line.backend.sign(signed), SIGN_DEADLINE_S)
        body = json.dumps({"request": with_signature(signed, signature)}).encode()
        answer = await self._carry("POST", f"{API}/{purpose_of(request)}", body)
        text = _text_of(answer, "reply")
        try:
            reply = verify_reply(text, kind, self._agent_id, request.request_id, self._trust())
        except (MalformedToken, BadSignature, WrongAudience) as error:
            raise NotTheServer(f"the answer to {purpose_of(request)} is not the server's: {error}") from None
        if reply.issued_at > self._latest():
            raise NoContact(
                f"the server's clock is wrong: it says {reply.issued_at}, and this agent's certificate has ended then"
            )
        return reply

    async def _fresh_challenge(self) -> str:
        now = self._clock.monotonic()
        if self._challenge is not None and now - self._challenge[1] < CHALLENGE_KEPT_S:
            return self._challenge[0]
        challenge = _text_of(await self._carry("POST", f"{API}/challenge", b"{}"), "challenge")
        # JSON can carry what is no text (half a surrogate pair), and could not be sent back.
        if not 16 <= len(challenge) <= MAX_CHALLENGE_CHARS or not challenge.isascii():
            raise NotTheServer("what came as a challenge is none")
        self._challenge = (challenge, now)
        return challenge

    async def fetch_key_set(self, root: str | None = None) -> str:
        """The present key set as the server has it; not checked.

        Args:
            root: the newest one that the root with this pin has signed.

        Raises:
            NoContact: it did not come.
        """
        answer = await self._carry("GET", f"{API}/key-set" + ("" if root is None else f"?root={root}"), b"")
        if answer.status != 200:
            raise no_contact(answer)
        try:
            return answer.body.decode("ascii")
        except UnicodeDecodeError:
            raise NotTheServer("what came as the key set is none") from None


def no_contact(answer: Answer) -> NoContact:
    """What an answer without a signed reply means."""
    text = f"the server answers with HTTP status {answer.status}"
    try:
        error = parse_json_object(answer.body, "error").get("error")
        if isinstance(error, dict):
            text += f": {ascii(str(error.get('text') or error.get('code')))[1:-1][:200]}"
    except MalformedToken:
        pass
    return NoContact(text, answer.retry_after_s)


def _text_of(answer: Answer, name: str) -> str:
    try:
        content = parse_json_object(answer.body, "answer")
    except MalformedToken:
        content = {}
    value = content.get(name)
    if isinstance(value, str):
        return value
    if answer.status == 200:
        raise NotTheServer(f"what came is not the server's answer: it has no {name}")
    raise no_contact(answer)
