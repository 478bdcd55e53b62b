"""Holds the forms of what callers send and get. They decode the requests, and the OpenAPI document is made of them."""

import base64
import binascii
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ipc.bounds import MAX_ADMIN_CERTIFICATE_BYTES, MAX_ADMIN_CERTIFICATES, MAX_ADMIN_SIGNATURE_BYTES

Id = Annotated[str, Meta(pattern="^[0-9a-f]{32}$", description="32 hex digits")]
_BASE64 = "^[A-Za-z0-9+/]+={0,2}$"
Signature = Annotated[
    str,
    Meta(
        pattern=_BASE64,
        max_length=4 * (MAX_ADMIN_SIGNATURE_BYTES + 2) // 3,
        description="ES256 in DER, base64: what `openssl dgst -sha256 -sign KEY -binary | openssl base64 -A` writes",
    ),
]
Certificate = Annotated[
    str, Meta(pattern=_BASE64, max_length=4 * (MAX_ADMIN_CERTIFICATE_BYTES + 2) // 3, description="DER, base64")
]
Certificates = Annotated[
    list[Certificate],
    Meta(
        min_length=1,
        max_length=MAX_ADMIN_CERTIFICATES,
        description="the signer's certificate, then the one between it and the admin CA, if there is one; without this member, "
        "the certificate of the TLS connection",
    ),
]


class Form(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What a caller sends."""


class Empty(Form, frozen=True):
    """Nothing."""


class Act(Form, frozen=True):
    """One act, signed. The signature covers op and params as the agent reads them."""

    challenge: Id
    signature: Signature
    op: Annotated[str, Meta(pattern="^[a-z_]{1,64}$", description="an operation of the admin socket")]
    params: Annotated[dict[str, Any], Meta(description="the members of the request besides `v`, `id` and `op`")] = {}
    certificates: Certificates | UnsetType = UNSET


class SessionOrder(Form, frozen=True):
    """A session, signed: the act `{"op":"session_begin","params":{}}`."""

    challenge: Id
    signature: Signature
    certificates: Certificates | UnsetType = UNSET


class Challenge(msgspec.Struct, frozen=True):
    """What the next signature must cover, besides the act."""

    id: Id
    agent_id: Annotated[str, Meta(description="empty for a device that is not an agent yet")]
    boot_id: Annotated[str, Meta(pattern="^[0-9a-f]{32}$", description="16 bytes, hex")]
    challenge: Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description="32 bytes, hex")]
    expires_in: Annotated[int, Meta(description="seconds")]


class Performed(msgspec.Struct, frozen=True):
    """An act that was performed."""

    result: Annotated[dict[str, Any], Meta(description="the reply of the admin socket")]
    challenge: Challenge


class Session(msgspec.Struct, frozen=True):
    """A session: it reads without further signatures, from this TLS certificate only."""

    session: Id
    role: str
    name: Annotated[str, Meta(description="of the signer's certificate")]
    expires_in: Annotated[int, Meta(description="seconds")]
    challenge: Challenge


class SystemInfo(msgspec.Struct, frozen=True):
    """The program that runs."""

    version: str
    build: Annotated[str | None, Meta(description="version of the package that the process was started from")]
    uptime_s: int
    boot_id: Annotated[str, Meta(pattern="^[0-9a-f]{32}$", description="of the machine's kernel, hex")]


class Health(msgspec.Struct, frozen=True):
    """Whether the agent works."""

    verdict: Annotated[str, Meta(description="`fine`, `needs_attention` or `not_working`")]
    exit_status: int


class ProblemForm(msgspec.Struct, frozen=True, omit_defaults=True, rename={"kind": "type"}):
    """A problem (RFC 9457)."""

    kind: str
    title: str
    status: int
    detail: str
    next: Annotated[str, Meta(description="what the caller can do")]
    code: Annotated[int, Meta(description="the agent's error code")] | UnsetType = UNSET
    challenge: Challenge | UnsetType = UNSET


def decode_base64(text: str) -> bytes:
    """The bytes that a text of a request stands for.

    Raises:
        ValueError: it is no base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("no base64") from None
