"""Texts of libraries in plain words: the table, and what hostile input makes every reader say."""

import json
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from agentd.secrets.pcr_policy import parse_pcr_values
from audittrail.anchor import decode as decode_anchors
from common.plain import json_text, msgspec_text
from contracts.jose import parse_json_object
from hwsec.pcr.policy import parse_policy
from ipc.messages import AdminRequest, RequestDecoder

INTERNALS = (
    "$", "`", "strict_map_key", "StackError", "FormatError", "Unpack", "unpack", "codec", "Expecting", "char ", "max_",
    "Object ", "Expected", "JSON is malformed", "None:", "Exceeds the limit",
)  # fmt: skip
"""What only somebody who knows the library understands."""


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Expected `str` of length >= 16 - at `$.claim`", "'claim' must have at least 16 characters"),
        ("Expected `array` of length <= 24 - at `$.pcrs`", "'pcrs' must have at most 24 entries"),
        ("Expected `bytes` of length == 16 - at `$.nonce`", "'nonce' must have exactly 16 bytes"),
        ("Expected `int` <= 1000 - at `$.limit`", "'limit' must be at most 1000"),
        ("Expected `int`, got `str` - at `$.id`", "'id' must be a whole number, not a text"),
        ("Expected `str | null`, got `int` - at `$.a.b`", "'a.b' must be a text or nothing, not a whole number"),
        ("Expected `object`, got `array`", "the message must be a map, not a list"),
        ("Object missing required field `claim`", "the field 'claim' is missing"),
        ("Object contains unknown field `x` - at `$.keys[...]`", "unknown field 'x' in 'keys'"),
        (r"Expected `str` matching regex '^[a-z]+\\Z' - at `$.target`", "'target' is a text of another form than it must have"),
        ("Invalid enum value 'x' - at `$.kind`", "'kind' has a value that is not allowed: 'x'"),
        ("something else - at `$.x`", "'x': something else"),
        ("the field 'op' is missing", "the field 'op' is missing"),
    ],
)
def test_what_msgspec_says(text: str, plain: str) -> None:
    assert msgspec_text(text) == plain


def test_what_is_wrong_with_json() -> None:
    for text in ("{", "[1,]", "\x00", '{"a" 1}'):
        with pytest.raises(json.JSONDecodeError) as caught:
            json.loads(text)
        assert "line 1, column" in json_text(caught.value)
    assert json_text(RecursionError("maximum recursion depth exceeded")) == "it is nested too deeply"


HOSTILE = [
    b"",
    b"\x00", b"{", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"a":' + b"9" * 5000 + b"}", b'{"a":1,"a":2}',
    b'{"a":NaN}',
    b'{"pcrs":1}', b'{"pcrs":{"x":"y"}}', b'[{"kind":1}]', b'{"format":1}',
    b"\xc1", b"\x81\x01\x02", b"\x80\x80", b"\x82\xa1a\x01\xa1a\x01", b"\x81\xa1a", b"\x91" * 2000,
    b"\x81\xa1a" + b"\x91" * 2000,
    b"\x81\xa1a\xc7\x01\x05a", b"\xdf\xff\xff\xff\xff", b"\x81\xa1a\xa1\xff", b"\x81\xa1a\xdd\x00\x00\xff\xff",
    b"\x81\x91\x01\x01",
    msgpack.packb({"v": 1, "id": 1, "op": "provision", "url": "u", "root": "r", "claim": "x"}),
    msgpack.packb({"v": 1, "id": 1, "op": "audit_tail", "after_seq": -2, "limit": 1}),
    msgpack.packb({"v": 1, "id": 1, "op": "policy_bind", "kind": "x", "pcrs": [1], "key": ""}),
    msgpack.packb({"v": 1, "id": 1, "op": "ping", "x": 1}),
    msgpack.packb({"v": True, "id": 1, "op": "ping"}),
]  # fmt: skip

READERS: dict[str, Callable[[bytes], Any]] = {
    "admin": RequestDecoder[AdminRequest](AdminRequest).decode,
    "json": lambda data: parse_json_object(data, "file"),
    "policy": parse_policy,
    "pcrs": parse_pcr_values,
    "anchors": decode_anchors,
}


@pytest.mark.parametrize("reader", READERS)
def test_no_reader_shows_a_library_to_its_user(reader: str) -> None:
    refused = 0
    for data in HOSTILE:
        try:
            READERS[reader](data)
        except Exception as error:
            refused += 1
            said = msgspec_text(str(error))
            assert said and not [word for word in INTERNALS if word in said], (data[:40], said)
    assert refused > len(HOSTILE) / 2
