"""The messages of the link's socket: what they may say, and what no request can smuggle into HTTP."""

import re
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from ipc.linkmessages import (
    CHUNK_BYTES,
    LINK_MAX_FRAME_BYTES,
    MAX_ANSWER_BYTES,
    MAX_CHAIN_CHARS,
    MAX_HEADER_VALUE_CHARS,
    MAX_REQUEST_BODY_BYTES,
    Chunk,
    Fetch,
    Provisioning,
    check_fetch,
    encode_link,
    from_link_decoder,
    to_link_decoder,
)

HELLO: dict[str, Any] = {"v": 1, "op": "hello", "id": 1, "time": 0, "certificates": None, "provisioning": None, "latest": 0}
FETCH: dict[str, Any] = {
    "v": 1,
    "op": "fetch",
    "id": 2,
    "upstream": "server",
    "method": "POST",
    "path": "/api/v1/rotate-secret",
    "headers": [["accept", "application/jose"], ["content-type", "a/b; c=d"]],
    "body": b"body",
    "max_body": 1,
    "timeout_ms": 1000,
}
READY = {"v": 1, "op": "ready", "id": 1}
HEAD = {"v": 1, "op": "head", "id": 2, "status": 200, "headers": [["etag", "x"]]}
CHUNK = {"v": 1, "op": "chunk", "id": 2, "data": b"x"}
END = {"v": 1, "op": "end", "id": 2, "size": 1}
FAILED = {"v": 1, "op": "failed", "id": 2, "code": "tls", "text": "why"}

ALL = [(to_link_decoder(), message) for message in (HELLO, FETCH)] + [
    (from_link_decoder(), message) for message in (READY, HEAD, CHUNK, END, FAILED)
]
every = pytest.mark.parametrize(("decoder", "message"), ALL, ids=lambda value: value["op"] if isinstance(value, dict) else "")


def fetch(**changes: Any) -> Fetch:
    """A decoded and checked fetch."""
    request: Fetch = to_link_decoder().decode(msgpack.packb({**FETCH, **changes}))
    check_fetch(request)
    return request


def refused(**changes: Any) -> bool:
    try:
        fetch(**changes)
    except (RemoteProtocolError, LocalProtocolError) as error:
        assert error.code in (ErrorCode.BAD_REQUEST, ErrorCode.BAD_MESSAGE)
        return True
    return False


@every
def test_each_message_is_decoded_and_encoded_again(decoder: Any, message: dict[str, Any]) -> None:
    decoded = decoder.decode(msgpack.packb(message))
    again = encode_link(decoded)
    assert int.from_bytes(again[:4], "big") == len(again) - 4
    assert decoder.decode(again[4:]) == decoded


@every
def test_missing_unknown_and_double_fields_are_refused(decoder: Any, message: dict[str, Any]) -> None:
    for name in message:
        with pytest.raises(RemoteProtocolError):
            decoder.decode(msgpack.packb({key: value for key, value in message.items() if key != name}))
        doubled = msgpack.Packer().pack_map_pairs([*message.items(), (name, message[name])])
        with pytest.raises(RemoteProtocolError):
            decoder.decode(doubled)
    with pytest.raises(RemoteProtocolError):
        decoder.decode(msgpack.packb({**message, "surplus": 1}))


@every
@pytest.mark.parametrize("value", [None, True, 1.5, -1, 2**60, "\n", b"\x00", [], {}, [["host", "x"]]], ids=repr)
def test_wrong_values_are_refused_or_mean_what_they_say(decoder: Any, message: dict[str, Any], value: Any) -> None:
    for name in set(message) - {"op"}:
        try:
            decoded = decoder.decode(msgpack.packb({**message, name: value}))
        except RemoteProtocolError:
            continue
        assert msgpack.unpackb(encode_link(decoded)[4:])[name] == value
        assert (name, value) in [
            ("certificates", None),
            ("certificates", "\n"),
            ("path", "\n"),  # refused by check_fetch
            ("provisioning", None),
            ("latest", None),
            ("headers", []),
            ("body", b"\x00"),
            ("data", b"\x00"),
            ("text", "\n"),
        ] or (name == "headers" and message["op"] == "head")


def test_the_other_side_s_messages_are_refused() -> None:
    for message in (READY, HEAD, CHUNK, END, FAILED):
        with pytest.raises(RemoteProtocolError, match="fetch, hello"):
            to_link_decoder().decode(msgpack.packb(message))
    for message in (HELLO, FETCH):
        with pytest.raises(RemoteProtocolError, match="chunk, end, failed, head, ready"):
            from_link_decoder().decode(msgpack.packb(message))


def test_the_largest_messages_fit_a_frame() -> None:
    names = ("accept", "agent-request", "content-type", "if-none-match", "license-agent-signature", "idempotency-key")
    # No request has every header at its longest; one signed request and five usual ones do fit.
    values = dict.fromkeys(names, "x" * 1024) | {"agent-request": "x" * MAX_HEADER_VALUE_CHARS}
    path = "/" + "a" * 2047
    request = fetch(body=bytes(MAX_REQUEST_BODY_BYTES), headers=[list(pair) for pair in values.items()], path=path)
    assert len(encode_link(request)) < LINK_MAX_FRAME_BYTES
    whole = {**HELLO, "certificates": "x" * MAX_CHAIN_CHARS}
    whole["provisioning"] = ["server", "https://" + "x" * 2000, ["sha256:" + "x" * 64] * 8]
    hello = to_link_decoder().decode(msgpack.packb(whole))
    assert isinstance(hello.provisioning, Provisioning) and len(encode_link(hello)) < LINK_MAX_FRAME_BYTES
    with pytest.raises(LocalProtocolError):
        encode_link(Chunk(v=1, id=1, data=bytes(LINK_MAX_FRAME_BYTES)))


@pytest.mark.parametrize(
    "change",
    [
        {"body": bytes(MAX_REQUEST_BODY_BYTES + 1)},
        {"max_body": MAX_ANSWER_BYTES + 1},
        {"max_body": -1},
        {"timeout_ms": 99},
        {"timeout_ms": 3_600_001},
        {"method": "PUT"},
        {"method": "get"},
        {"upstream": "https://127.0.0.1"},
        {"method": "GET"},  # it has a body
        {"headers": [["accept", "x"], ["accept", "y"]]},
        {"headers": [["Accept", "x"]]},
        {"headers": [["accept"]]},
        {"headers": [["range", "bytes=0-1"]]},  # not from ota
        {"headers": [["if-range", '"a"']]},
        {"headers": [["accept", "x" * (MAX_HEADER_VALUE_CHARS + 1)]]},
    ],
)
def test_what_is_out_of_bounds_is_refused(change: dict[str, Any]) -> None:
    assert refused(**change)


@pytest.mark.parametrize(
    ("headers", "right"),
    [
        ([["range", "bytes=0-1"]], True),
        ([["range", "bytes=5-99"], ["if-range", '"a"']], True),
        ([["if-range", '"a"']], False),
        ([["range", "bytes=5-99"], ["if-range", 'W/"a"']], False),
        ([["range", "bytes=5-99"], ["if-range", "Mon, 30 Nov 2026 10:00:00 GMT"]], False),
        ([["range", "bytes=5-"]], False),
        ([["range", "bytes=0-1,5-9"]], False),
        ([["range", "bytes=9-5"]], False),
    ],
)
def test_a_part_is_asked_for_of_a_file_of_the_repository(headers: list[list[str]], right: bool) -> None:
    assert refused(upstream="ota", method="GET", body=b"", headers=headers) is not right
    assert refused(upstream="ota", method="POST", body=b"", headers=headers)


def test_bounds_of_what_comes_back() -> None:
    for change in (
        {**CHUNK, "data": bytes(CHUNK_BYTES + 1)},
        {**CHUNK, "data": b""},
        {**HEAD, "status": 199},
        {**HEAD, "status": 600},
        {**HEAD, "headers": [["etag", "x" * 1025]]},
        {**HEAD, "headers": [["etag", "x"]] * 7},
        {**END, "size": MAX_ANSWER_BYTES + 1},
        {**FAILED, "code": "unknown"},
        {**FAILED, "text": "x" * 501},
    ):
        with pytest.raises(RemoteProtocolError):
            from_link_decoder().decode(msgpack.packb(change))


@pytest.mark.parametrize(
    "path",
    ["/", "/a", "/a/b/", "/a?b=c&d=/../e", "/a%20b", "/a:b@c", "/1.root.json", "/a/...", "/~x/$y,z;(1)!*'"],
)
def test_these_paths_are_taken(path: str) -> None:
    assert fetch(path=path).path == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "a",
        "//a",
        "/a//b",
        "//",
        "/..",
        "/a/../b",
        "/a/./b",
        "/a/..?x",
        "/%2e%2e/a",
        "/a/.%2E/b",
        "/a%2fb",
        "/a%2Fb",
        "/a%5cb",
        "/a%00b",
        "/a%",
        "/a%2",
        "/a%zz",
        "/a\\b",
        "/a b",
        "/a\tb",
        "/a\r\nHost: b",
        "/a\n",
        "/a#b",
        "/a?b#c",
        "/a\u00e9",
        "/a\x00",
        "https://127.0.0.1/a",
        "@127.0.0.1/a",
        "?a",
        "*",
        "/" + "a" * 2048,
    ],
)
def test_these_paths_are_refused(path: str) -> None:
    assert refused(path=path)


@given(st.text(max_size=40).map(lambda text: "/" + text))
def test_no_path_leaves_its_base_or_its_line(path: str) -> None:
    if not refused(path=path):
        assert re.fullmatch(r"[!-~]+", path) and path.startswith("/") and not path.startswith("//")
        assert ".." not in path.split("?")[0].split("/") and "#" not in path and "\\" not in path


@given(st.text(max_size=40))
def test_no_header_leaves_its_line(value: str) -> None:
    if not refused(headers=[["accept", value]]):
        assert re.fullmatch(r"[!-~]([ -~]*[!-~])?", value)


@pytest.mark.parametrize("value", ["", " a", "a ", "a\n", "a\r\nb: c", "a\tb", "\u00e9", "a\x7f"])
def test_these_header_values_are_refused(value: str) -> None:
    assert refused(headers=[["accept", value]])
