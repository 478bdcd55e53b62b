"""Builds responses: a signed reply, or an unsigned error if the server does not know yet who asks. Pure."""

import json
from dataclasses import dataclass

from contracts.exchange import RefusalCode

STATUS_OF = {
    RefusalCode.BAD_REQUEST: 403,
    RefusalCode.UNSUPPORTED_VERSION: 409,
    RefusalCode.UNKNOWN_AGENT: 403,
    RefusalCode.AGENT_REVOKED: 403,
    RefusalCode.BAD_SIGNATURE: 403,
    RefusalCode.STALE_CHALLENGE: 409,
    RefusalCode.REPLAYED: 409,
    RefusalCode.UNKNOWN_VERSION: 409,
    RefusalCode.KEY_MISMATCH: 409,
    RefusalCode.TOO_MANY_VERSIONS: 409,
    RefusalCode.CLAIM_REFUSED: 403,
    RefusalCode.ATTESTATION_FAILED: 403,
    RefusalCode.RATE_LIMITED: 429,
    RefusalCode.UNAVAILABLE: 503,
}
"""The HTTP status of a signed refusal."""
PASSING = frozenset({RefusalCode.RATE_LIMITED, RefusalCode.UNAVAILABLE, RefusalCode.STALE_CHALLENGE})
"""Refusals that pass by themselves. They are not kept: the same request may succeed when it comes again."""


@dataclass(frozen=True, slots=True)
class Response:
    """The response to one request.

    Attributes:
        status: HTTP status.
        reply: JWS by a rotation key; None for an error, which is not signed.
        code: why the request was refused; None for a success.
        text: the reason in words.
        retry_after_s: seconds until the request may succeed; None if unknown.
        challenge: beside an error: a challenge with which the client certificate can be renewed, and nothing else.
    """

    status: int
    reply: str | None = None
    code: RefusalCode | None = None
    text: str = ""
    retry_after_s: int | None = None
    challenge: str | None = None

    def body(self) -> str:
        """The JSON body: `{"reply": …}` or `{"error": {"code": …, "text": …}}`."""
        if self.reply is not None:
            return json.dumps({"reply": self.reply}, separators=(",", ":"))
        code = RefusalCode.UNAVAILABLE if self.code is None else self.code
        content: dict[str, object] = {"error": {"code": code.value, "text": self.text}}
        if self.challenge is not None:
            content["challenge"] = self.challenge
        return json.dumps(content, separators=(",", ":"), ensure_ascii=False)


def error(status: int, code: RefusalCode, text: str, retry_after_s: int | None = None) -> Response:
    """An unsigned response: the server does not know yet, or cannot find out, who asks."""
    return Response(status, None, code, text, retry_after_s)


CLOCK_RETRY_S = 300
"""When agents should come again while the server's clock is not trusted, in seconds."""
DATABASE_RETRY_S = 30
DATABASE_DOWN = error(503, RefusalCode.UNAVAILABLE, "the server's database does not answer", DATABASE_RETRY_S)
"""The response while the database does not answer."""
