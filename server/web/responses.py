"""What goes back over HTTP: a signed reply, or an error before the server knows who asks. Nothing here performs IO."""

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
"""Refusals that are not kept: the same request may succeed, or fail for another reason, when it comes again."""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer to one request.

    Attributes:
        status: HTTP status.
        reply: JWS by a rotation key; None for an error, which nobody signs.
        code: why not; None for a success.
        text: of an error, in words.
        retry_after_s: when it may be tried again; None if that is not known.
    """

    status: int
    reply: str | None = None
    code: RefusalCode | None = None
    text: str = ""
    retry_after_s: int | None = None

    def body(self) -> str:
        """The body as it is sent: `{"reply": …}` or `{"error": {"code": …, "text": …}}`."""
        if self.reply is not None:
            return json.dumps({"reply": self.reply}, separators=(",", ":"))
        code = RefusalCode.UNAVAILABLE if self.code is None else self.code
        return json.dumps({"error": {"code": code.value, "text": self.text}}, separators=(",", ":"), ensure_ascii=False)


def error(status: int, code: RefusalCode, text: str, retry_after_s: int | None = None) -> Response:
    """An answer that nobody signs: the server does not know yet, or cannot tell, whom it speaks to."""
    return Response(status, None, code, text, retry_after_s)


DATABASE_RETRY_S = 30
DATABASE_DOWN = error(503, RefusalCode.UNAVAILABLE, "the server's database does not answer", DATABASE_RETRY_S)
"""The response while the database does not answer."""
