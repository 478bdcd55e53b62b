"""Encodes requests and decodes replies for the client side. Nothing here performs IO.

Unlike the daemon, a client passes over fields that it does not know: a newer daemon may add some. A known field of the
wrong type, or a key that comes twice, makes the reply invalid.
"""

import re
from collections.abc import Iterable
from typing import Any

import msgpack

from .answers import ConsentAnswer
from .bounds import (
    COUNT_ID_BYTES,
    MAX_AMOUNT,
    MAX_BUSY_UNTIL,
    MAX_FEATURE_CHARS,
    MAX_FRAME_BYTES,
    MAX_METER_CHARS,
    MAX_PRODUCT_CHARS,
    MAX_TOKEN_CHARS,
    PROTOCOL_VERSION,
)
from .errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from .frames import encode_frame

# Not `$`, which in Python's expressions also matches before a line feed at the end.
METER = rf"^[a-z0-9][a-z0-9._-]{{0,{MAX_METER_CHARS - 1}}}\Z"
"""What the name of a meter looks like."""


METER_FEATURE = "meter:"
"""A license allows the meter NAME by the feature `meter:NAME`."""


FAKE_FIELD = "fake"
"""A field that every reply of a fake for tests carries (`ipc/testing`), and no reply of an agent."""


def encode_request(op: str, request_id: int, fields: dict[str, Any]) -> bytes:
    """The frame of a request.

    Raises:
        LocalProtocolError: the message would be larger than a frame may be.
    """
    message = {"v": PROTOCOL_VERSION, "id": request_id, "op": op, **fields}
    body: bytes = msgpack.packb(message, use_bin_type=True)
    return encode_frame(body)


def may_be_sent(token: object) -> bool:
    """Whether a token has a form that the protocol carries: ASCII text that is neither empty nor too long."""
    return isinstance(token, str) and token.isascii() and 0 < len(token) <= MAX_TOKEN_CHARS


def check_token(token: str) -> str:
    """The token, if it is one that may be sent.

    Raises:
        LocalProtocolError: not a text, not ASCII, empty, or too long.
    """
    if not may_be_sent(token):
        raise LocalProtocolError(
            ErrorCode.BAD_REQUEST, f"a license token is an ASCII text of 1 to {MAX_TOKEN_CHARS} characters"
        )
    return token


def check_requirement(feature: str, product: str | None) -> None:
    """Checks that a feature and a product may be asked for.

    Raises:
        LocalProtocolError: one is not a text, empty, or too long.
    """
    for name, text, most in (("feature", feature, MAX_FEATURE_CHARS), ("product", product, MAX_PRODUCT_CHARS)):
        if text is None and name == "product":
            continue
        if not isinstance(text, str) or not 0 < len(text) <= most or any("\ud800" <= char <= "\udfff" for char in text):
            raise LocalProtocolError(ErrorCode.BAD_REQUEST, f"a {name} is a text of 1 to {most} characters")


def is_meter(name: object) -> bool:
    """Whether a value is the name of a meter."""
    return isinstance(name, str) and re.match(METER, name) is not None


def check_count(meter: str, amount: int, count_id: bytes) -> None:
    """Checks that a usage may be counted.

    Raises:
        LocalProtocolError: meter, amount or id is not one.
    """
    if not is_meter(meter):
        text = f"a meter is a text of 1 to {MAX_METER_CHARS} characters a-z, 0-9, '.', '_' and '-', and begins with a-z or 0-9"
        raise LocalProtocolError(ErrorCode.BAD_REQUEST, text)
    if type(amount) is not int or not 1 <= amount <= MAX_AMOUNT:
        raise LocalProtocolError(ErrorCode.BAD_REQUEST, f"an amount is an integer from 1 to {MAX_AMOUNT}")
    if not isinstance(count_id, bytes) or len(count_id) != COUNT_ID_BYTES:
        raise LocalProtocolError(ErrorCode.BAD_REQUEST, f"the id of a count has {COUNT_ID_BYTES} bytes")


def check_consent(answer: str, until: int) -> None:
    """Checks that an answer to a waiting update may be sent.

    Raises:
        LocalProtocolError: it is neither in `ConsentAnswer` nor empty, or `until` does not belong to it.
    """
    if answer != "" and answer not in ConsentAnswer._value2member_map_:
        text = "an answer to an update is 'ready', 'busy' or 'after_shift', or none at all"
        raise LocalProtocolError(ErrorCode.BAD_REQUEST, text)
    if type(until) is not int or not 0 <= until <= MAX_BUSY_UNTIL:
        raise LocalProtocolError(ErrorCode.BAD_REQUEST, f"until is an integer from 0 to {MAX_BUSY_UNTIL}: seconds since 1970")
    if (answer == ConsentAnswer.BUSY) != (until > 0):
        raise LocalProtocolError(ErrorCode.BAD_REQUEST, "until is the end of 'busy', and belongs to no other answer")


def decode_map(body: bytes) -> dict[str, Any]:
    """One MessagePack map with text keys, each at most once, and no extension types.

    Raises:
        RemoteProtocolError: `body` is anything else (BAD_MESSAGE).
    """
    try:
        message = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_unique,
            ext_hook=_no_extension,
            max_str_len=MAX_FRAME_BYTES,
            max_bin_len=MAX_FRAME_BYTES,
            max_array_len=1024,
            max_map_len=1024,
            max_ext_len=MAX_FRAME_BYTES,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(ErrorCode.BAD_MESSAGE, f"not one MessagePack map: {_why(error)}") from None
    if _holds_timestamp(message):
        raise RemoteProtocolError(ErrorCode.BAD_MESSAGE, "not one MessagePack map: extension types are not used here")
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise RemoteProtocolError(ErrorCode.BAD_MESSAGE, "not one MessagePack map with text keys")
    return message


class _BadMap(ValueError):
    """A rule of ours for maps is broken; the text is ours too."""


def _why(error: Exception) -> str:
    """What the library's exception means; its own texts name its options and functions."""
    text = str(error)
    if isinstance(error, _BadMap):
        return text
    if isinstance(error, UnicodeDecodeError):
        return "a text in it is not UTF-8"
    if isinstance(error, msgpack.ExtraData):
        return "bytes follow the map"
    if isinstance(error, RecursionError | msgpack.StackError):
        return "it is nested too deeply"
    if "map key" in text:
        return "a key in it is not a text"
    if "exceeds" in text:
        return "a map, a list or a text in it is too long"
    return "it is cut off" if "incomplete" in text or isinstance(error, msgpack.OutOfData) else "it is not MessagePack"


def _unique(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for key, value in pairs:
        if key in result:
            raise _BadMap(f"the key {key!r} comes twice")
        result[key] = value
    return result


def _holds_timestamp(message: Any) -> bool:
    """The library decodes one extension type by itself, before its hook is asked."""
    waiting = [message]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend(value)
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, msgpack.Timestamp):
            return True
    return False


def _no_extension(code: int, _data: bytes) -> Any:
    raise _BadMap(f"extension type {code} is not used here")


def decode_reply(body: bytes, request_id: int) -> dict[str, Any]:
    """The fields of a successful reply to the request `request_id`.

    Raises:
        RemoteProtocolError: the body breaks the protocol, answers another request, or is an error reply; then `code` is
            the code that the daemon sent (INTERNAL where we do not know it).
    """
    reply = decode_map(body)
    if "error" in reply:
        error = reply["error"]
        if not isinstance(error, dict):
            raise invalid("its error is not a map")
        code, text = error.get("code"), error.get("text")
        known = ErrorCode._value2member_map_.get(code) if isinstance(code, int) else None
        raise RemoteProtocolError(
            known if isinstance(known, ErrorCode) else ErrorCode.INTERNAL,
            text if isinstance(text, str) else f"error {code}",
            reply.get("id") if isinstance(reply.get("id"), int) else None,
        )
    if reply.get("v") != PROTOCOL_VERSION or reply.get("id") != request_id:
        raise invalid("it answers another request")
    return reply


def invalid(why: str) -> RemoteProtocolError:
    """The error for a reply that breaks the protocol."""
    return RemoteProtocolError(ErrorCode.BAD_MESSAGE, f"the agent's reply is invalid: {why}")
