"""Declares the bodies of the API, to parse them strictly and to document them. `contracts` has what is signed inside them."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from contracts.exchange import MAX_REPLY_CHARS, RefusalCode
from server.base.limits import MAX_BODY_BYTES
from server.exchange.challenges import CHALLENGE_LIFETIME_S

JWS_PATTERN = r"^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$"
_EXAMPLE_JWS = "eyJhbGciOiJFUzI1NiIsInR5cCI6Ii4uLiIsImtpZCI6Ii4uLiJ9.eyJ2IjoxfQ.c2lnbmF0dXJl"
_ID = "0123456789abcdef0123456789abcdef"

MIN_JWS_CHARS = 5

Jws = Annotated[str, Field(min_length=MIN_JWS_CHARS, max_length=MAX_BODY_BYTES, pattern=JWS_PATTERN)]
Opaque = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=8192)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Nothing(_Body):
    """An empty object."""


class SignedRequest(_Body):
    """An agent's request: JWS (ES256) by its identity key."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"request": _EXAMPLE_JWS}]})

    request: Jws


class BeginBody(_Body):
    """A device's request to be provisioned (`contracts.enrollment.enrollment.Begin`)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "v": 1,
                    "request_id": _ID,
                    "claim": "eyJhbGciOiJFQ0RILUVTIn0..bm9uY2U.Y2lwaGVy.dGFn",
                    "hw_id": "ab" * 32,
                    "backend": "software",
                    "attestation": "BAEC",
                }
            ]
        }
    )

    v: int
    request_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    claim: Annotated[str, Field(min_length=1, max_length=8192)]
    hw_id: Hash
    backend: Annotated[str, Field(pattern=r"^(tpm|software)$")]
    endorsement_public: Opaque | None = None
    endorsement_certificate: Opaque | None = None
    attestation: Opaque


class ChallengeReply(_Body):
    """A challenge, and for how many seconds it is valid."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"challenge": "AAAAAGs2RQ0" + "A" * 64, "expires_in": CHALLENGE_LIFETIME_S}]}
    )

    challenge: Annotated[str, Field(min_length=16, max_length=256, pattern=r"^[A-Za-z0-9_-]+$")]
    expires_in: Annotated[int, Field(ge=1)]


class SignedReply(_Body):
    """A reply: JWS (ES256) by a rotation key of the server. With another status than 200, it is a refusal."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reply": _EXAMPLE_JWS}]})

    reply: Annotated[str, Field(min_length=5, max_length=MAX_REPLY_CHARS, pattern=JWS_PATTERN)]


class ErrorContent(_Body):
    """Why the request failed before the server knew who asks."""

    code: RefusalCode
    text: Annotated[str, Field(max_length=500)]


class ErrorReply(_Body):
    """An unsigned error. `challenge` is there if the client certificate is not valid yet: it can be renewed with it."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"error": {"code": "bad_request", "text": "the body must be JSON"}}]}
    )

    error: ErrorContent
    challenge: Annotated[str | None, Field(min_length=16, max_length=256, pattern=r"^[A-Za-z0-9_-]+$")] = None
