"""Reads requests as strictly as the agent does, without its compiled decoder. Pure.

The client wheel has no msgspec (ADR 24). `tests/ipc/testing/test_requests.py` compares this reader with the agent's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..bounds import (
    COUNT_ID_BYTES,
    MAX_AMOUNT,
    MAX_BUSY_UNTIL,
    MAX_FEATURE_CHARS,
    MAX_ID,
    MAX_LICENSE_ID_CHARS,
    MAX_PRODUCT_CHARS,
    MAX_TOKEN_CHARS,
    NONCE_BYTES,
    PROTOCOL_VERSION,
)
from ..clientwire import decode_map, is_meter
from ..errors import ErrorCode, RemoteProtocolError

OPERATIONS: dict[str, tuple[str, ...]] = {
    "agent_info": (),
    "count_usage": ("amount", "count_id", "meter"),
    "licenses": ("after", "metadata", "nonce"),
    "ota_consent": ("answer", "until"),
    "ping": (),
    "refresh_license": ("token",),
    "require": ("feature", "nonce", "product"),
    "validate_license": ("nonce", "token"),
}
"""The operations of the POS socket with the fields that each has besides `v`, `id` and `op`."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request that keeps every rule of the protocol.

    Attributes:
        request_id: echoed by its reply.
        op: one of `OPERATIONS`.
        fields: what the operation takes.
    """

    request_id: int
    op: str
    fields: dict[str, Any]


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_ID


def read_request(body: bytes) -> Request:
    """The request in a frame's body.

    Raises:
        RemoteProtocolError: BAD_MESSAGE, UNSUPPORTED_VERSION, UNKNOWN_OP or BAD_REQUEST, with the request's id where it
            could be read.
    """
    message = decode_map(body)
    request_id = message["id"] if _is_id(message.get("id")) else None
    version, op = message.get("v"), message.get("op")
    if type(version) is int and version != PROTOCOL_VERSION:
        text = f"this agent speaks version {PROTOCOL_VERSION} of the protocol"
        raise RemoteProtocolError(ErrorCode.UNSUPPORTED_VERSION, text, request_id)
    if isinstance(op, str) and op not in OPERATIONS:
        text = f"this socket knows the operations {', '.join(sorted(OPERATIONS))}"
        raise RemoteProtocolError(ErrorCode.UNKNOWN_OP, text, request_id)
    problem = _problem(message)
    if problem is not None or request_id is None:
        raise RemoteProtocolError(ErrorCode.BAD_REQUEST, problem or "'id' is out of its bounds", request_id)
    return Request(request_id, str(op), {name: message[name] for name in OPERATIONS[str(op)]})


def _problem(message: dict[str, Any]) -> str | None:
    op = message.get("op")
    known = ("v", "id", "op", *(OPERATIONS[op] if isinstance(op, str) else ()))
    for name in known:
        if name not in message:
            return f"the field '{name}' is missing"
    for name in message:
        if name not in known:
            return f"unknown field '{name}'"
    if not isinstance(op, str):
        return "'op' must be a text"
    if type(message["v"]) is not int:
        return "'v' must be a whole number"
    if not _is_id(message["id"]):
        return f"'id' must be a whole number from 0 to {MAX_ID}"
    for name in OPERATIONS[op]:
        right, text = _FIELDS[name]
        if not right(message[name]):
            return f"'{name}' must be {text}"
    return None


def _text(least: int, most: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: isinstance(value, str) and least <= len(value) <= most, f"a text of {least} to {most} characters"


_is_product, _product_text = _text(1, MAX_PRODUCT_CHARS)
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "token": _text(1, MAX_TOKEN_CHARS),
    "nonce": (lambda value: isinstance(value, bytes) and len(value) == NONCE_BYTES, f"{NONCE_BYTES} bytes"),
    "feature": _text(1, MAX_FEATURE_CHARS),
    "product": (lambda value: value is None or _is_product(value), f"{_product_text}, or nil"),
    "after": _text(0, MAX_LICENSE_ID_CHARS),
    "metadata": (lambda value: isinstance(value, bool), "true or false"),
    "meter": (is_meter, "the name of a meter"),
    "amount": (lambda value: type(value) is int and 1 <= value <= MAX_AMOUNT, f"an integer from 1 to {MAX_AMOUNT}"),
    "answer": (lambda value: value in ("", "ready", "busy", "after_shift"), "'', 'ready', 'busy' or 'after_shift'"),
    "until": (lambda value: type(value) is int and 0 <= value <= MAX_BUSY_UNTIL, f"an integer from 0 to {MAX_BUSY_UNTIL}"),
    "count_id": (lambda value: isinstance(value, bytes) and len(value) == COUNT_ID_BYTES, f"{COUNT_ID_BYTES} bytes"),
}
"""What each field may hold, and how an error says it."""
