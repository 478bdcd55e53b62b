"""A request is exactly what its operation says, or a typed error that names its id; nothing else comes out of the decoder."""

import itertools
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc import messages
from ipc.bounds import MAX_FRAME_BYTES, MAX_ID, MAX_TOKEN_CHARS
from ipc.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from ipc.frames import FrameDecoder
from ipc.messages import AdminRequest, PosRequest, RequestDecoder, encode_error, encode_reply

POS: dict[str, dict[str, Any]] = {
    "require": {"feature": "f", "product": None, "nonce": bytes(16)},
    "licenses": {"after": "", "metadata": False, "nonce": bytes(16)},
    "validate_license": {"token": "t", "nonce": bytes(16)},
    "refresh_license": {"token": "t"},
    "count_usage": {"meter": "sales", "amount": 3, "count_id": bytes(16)},
    "agent_info": {},
    "ping": {},
    "ota_consent": {"answer": "busy", "until": 5},
}
ADMIN: dict[str, dict[str, Any]] = {
    "status": {},
    "secrets": {},
    "secret_install": {"delivery": "d"},
    "secret_invalidate": {"version": 1},
    "license_check": {"token": "t"},
    "license_explain": {"by": "token", "subject": "t"},
    "license_import": {"token": "t"},
    "audit_tail": {"after_seq": -1, "limit": 1},
    "audit_export": {"after_seq": -1, "limit": 1},
    "audit_verify": {},
    "public_keys": {},
    "policy_show": {"pcrs": ()},
    "policy_install": {"policy": "p"},
    "policy_bind": {"kind": "none", "pcrs": (), "key": ""},
    "policy_revoke": {"number": 1},
    "clock_challenge": {},
    "clock_reset": {"statement": "s"},
    "clock_confirm": {},
    "provision": {"url": "https://server", "root": "sha256:0", "claim": "c" * 16},
    "rotate": {},
    "contact": {},
    "certificate_renew": {},
    "degraded_switch": {"on": True},
    "metrics": {},
    "config_show": {},
    "reload": {},
    "webhook_status": {},
    "webhook_key_new": {},
    "webhook_key_end": {"key": ""},
    "webhook_test": {},
    "webhook_retry": {},
    "ota_status": {},
    "ota_check": {},
    "ota_install": {"rehearse": False},
    "ota_hand_over": {},
    "ota_package": {"sha256": "ab" * 32},
    "ota_rollback": {"product": "pos"},
    "ota_unlock": {"why": "repaired"},
    "ota_pause": {"end": False},
    "ota_history": {"skip": 0, "count": 20},
    "ping": {},
    "health": {},
    "system_info": {},
    "certificate_check": {"digests": ("ab" * 32,)},
    "challenge": {},
    "signed": {"certificates": (b"c",), "signature": b"s", "request": b"r"},
    "session_begin": {},
    "admin_access": {},
    "admin_revoke": {"digests": ("ab" * 32,)},
    "admin_access_end": {},
    "break_glass_begin": {"why": "w"},
    "break_glass_end": {},
}
DECODERS = {
    "pos": RequestDecoder[PosRequest](PosRequest),
    "admin": RequestDecoder[AdminRequest](AdminRequest),
}
EVERY = [("pos", op, fields) for op, fields in POS.items()] + [("admin", op, fields) for op, fields in ADMIN.items()]
every_op = pytest.mark.parametrize(("socket", "op", "fields"), EVERY, ids=[f"{socket}-{op}" for socket, op, _ in EVERY])


def message(op: str, fields: dict[str, Any], /, **changes: Any) -> dict[str, Any]:
    return {"v": 1, "id": 7, "op": op, **fields, **changes}


def refused(socket: str, body: bytes) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        DECODERS[socket].decode(body)
    return caught.value


def packed_pairs(pairs: list[tuple[Any, Any]]) -> bytes:
    packer = msgpack.Packer()
    return packer.pack_map_pairs(pairs)


def test_the_two_sockets_take_these_operations_only() -> None:
    assert DECODERS["pos"]._ops == POS.keys()
    assert DECODERS["admin"]._ops == ADMIN.keys()


@every_op
def test_each_operation_is_decoded(socket: str, op: str, fields: dict[str, Any]) -> None:
    request = DECODERS[socket].decode(msgpack.packb(message(op, fields)))
    assert request.id == 7
    assert str(type(request).__struct_config__.tag) == op
    assert {name: getattr(request, name) for name in fields} == fields


@every_op
def test_the_order_of_fields_does_not_matter(socket: str, op: str, fields: dict[str, Any]) -> None:
    whole = message(op, fields)
    turned = dict(reversed(whole.items()))
    assert DECODERS[socket].decode(msgpack.packb(turned)) == DECODERS[socket].decode(msgpack.packb(whole))


@every_op
def test_a_missing_field_is_refused(socket: str, op: str, fields: dict[str, Any]) -> None:
    whole = message(op, fields)
    for name in whole:
        body = msgpack.packb({key: value for key, value in whole.items() if key != name})
        error = refused(socket, body)
        assert error.code is ErrorCode.BAD_REQUEST
        assert error.request_id == (None if name == "id" else 7)


@every_op
def test_an_unknown_field_is_refused(socket: str, op: str, fields: dict[str, Any]) -> None:
    error = refused(socket, msgpack.packb(message(op, fields, surplus=1)))
    assert (error.code, error.request_id) == (ErrorCode.BAD_REQUEST, 7)
    assert "surplus" in error.text


@every_op
def test_a_duplicate_key_is_refused(socket: str, op: str, fields: dict[str, Any]) -> None:
    pairs = list(message(op, fields).items())
    for pair in pairs:
        assert refused(socket, packed_pairs([*pairs, pair])).code is ErrorCode.BAD_MESSAGE
        assert refused(socket, packed_pairs([pair, *pairs])).code is ErrorCode.BAD_MESSAGE
        doubled = [other for other in pairs if other[0] != "id"] + [pair]
        if pair[0] != "id":
            assert refused(socket, packed_pairs(doubled)).code in (ErrorCode.BAD_MESSAGE, ErrorCode.BAD_REQUEST)


@every_op
def test_a_longer_map_header_than_needed_changes_nothing(socket: str, op: str, fields: dict[str, Any]) -> None:
    body = msgpack.packb(message(op, fields))
    wide = b"\xde" + (body[0] & 0x0F).to_bytes(2, "big") + body[1:]
    assert DECODERS[socket].decode(wide) == DECODERS[socket].decode(body)


@every_op
def test_a_wrong_type_is_refused(socket: str, op: str, fields: dict[str, Any]) -> None:
    values: tuple[Any, ...] = (None, True, 1.5, "x", b"x" * 16, [], {}, -5, 2**60)
    for value, (name, right) in itertools.product(values, message(op, fields).items()):
        same = type(value) is type(right) or (isinstance(value, list) and isinstance(right, tuple))
        if (same and name != "v") or (name == "product" and (value is None or isinstance(value, str))):
            continue
        error = refused(socket, msgpack.packb(message(op, fields, **{name: value})))
        expected = {ErrorCode.BAD_REQUEST}
        if name == "op" and isinstance(value, str):
            expected = {ErrorCode.UNKNOWN_OP}
        if name == "v" and type(value) is int:
            expected = {ErrorCode.UNSUPPORTED_VERSION}
        assert error.code in expected, (name, value)


BOUNDS = [
    ("pos", "ping", "id", [0, MAX_ID], [-1, MAX_ID + 1]),
    ("pos", "validate_license", "token", ["t", "t" * MAX_TOKEN_CHARS], ["", "t" * (MAX_TOKEN_CHARS + 1)]),
    ("pos", "validate_license", "nonce", [bytes(16)], [b"", bytes(15), bytes(17)]),
    ("pos", "refresh_license", "token", ["t", "t" * MAX_TOKEN_CHARS], ["", "t" * (MAX_TOKEN_CHARS + 1)]),
    ("admin", "secret_install", "delivery", ["d", "d" * MAX_TOKEN_CHARS], ["", "d" * (MAX_TOKEN_CHARS + 1)]),
    ("admin", "secret_invalidate", "version", [1, 2**32 - 1], [0, -1, 2**32]),
    ("admin", "audit_tail", "after_seq", [-1, 0, MAX_ID], [-2, MAX_ID + 1]),
    ("admin", "audit_export", "after_seq", [-1, 0, MAX_ID], [-2, MAX_ID + 1]),
    ("admin", "audit_tail", "limit", [1, 1000], [0, 1001]),
    ("admin", "audit_export", "limit", [1, 1000], [0, 1001]),
    ("admin", "license_check", "token", ["t"], [""]),
    ("admin", "license_explain", "subject", ["t", "t" * MAX_TOKEN_CHARS], ["", "t" * (MAX_TOKEN_CHARS + 1)]),
    ("admin", "license_explain", "by", ["token", "license"], ["", "id"]),
    ("admin", "license_import", "token", ["t"], [""]),
]


@pytest.mark.parametrize(("socket", "op", "name", "inside", "outside"), BOUNDS, ids=[f"{b[1]}-{b[2]}" for b in BOUNDS])
def test_bounds_are_kept(socket: str, op: str, name: str, inside: list[Any], outside: list[Any]) -> None:
    fields = {**POS, **ADMIN}[op]
    for value in inside:
        request = DECODERS[socket].decode(msgpack.packb(message(op, fields, **{name: value})))
        assert getattr(request, name) == value
    for value in outside:
        assert refused(socket, msgpack.packb(message(op, fields, **{name: value}))).code is ErrorCode.BAD_REQUEST


@pytest.mark.parametrize("version", [0, 2, 2**40, -1])
def test_another_version_is_told_the_right_one(version: int) -> None:
    error = refused("pos", msgpack.packb(message("ping", {}, v=version)))
    assert (error.code, error.request_id) == (ErrorCode.UNSUPPORTED_VERSION, 7)
    assert "version 1" in error.text


def test_an_unknown_operation_is_told_the_known_ones() -> None:
    error = refused("pos", msgpack.packb(message("status", {})))
    assert (error.code, error.request_id) == (ErrorCode.UNKNOWN_OP, 7)
    assert all(op in error.text for op in POS)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x80\x80",
        b"\x81",
        b"\x81\x01\x01",
        b"\x81\xc4\x01a\x01",
        b"\x90",
        b"\xc0",
        b"\x81\xa1\xff\x01",
        msgpack.packb({"a": msgpack.ExtType(5, b"x")}),
        msgpack.packb({"a": msgpack.Timestamp(1)}),
        b"\x81\xa1a" + b"\x91" * 2000 + b"\xc0",
        b"\x81\xa1a" + b"\x81\xa1a" * 3000 + b"\xc0",
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa1a\xdd\xff\xff\xff\xff",
        b"\x81\xa1a\xdb\xff\xff\xff\xff",
    ],
    ids=lambda body: body[:8].hex() or "empty",
)
@pytest.mark.parametrize("socket", list(DECODERS))
def test_what_is_no_map_with_text_keys_is_a_bad_message(socket: str, body: bytes) -> None:
    assert refused(socket, body).code is ErrorCode.BAD_MESSAGE


@pytest.mark.parametrize("depth", [10, 400, 600, 1000, 1030, 5000, 60_000])
def test_deep_nesting_is_a_typed_error(depth: int) -> None:
    for filling in (b"\x91", b"\x81\xa1a"):
        body = b"\x84\xa1v\x01\xa2id\x07\xa2op\xa4ping\xa1x" + filling * depth + b"\xc0"
        assert refused("pos", body).code in (ErrorCode.BAD_MESSAGE, ErrorCode.BAD_REQUEST)


@given(st.binary(max_size=300))
def test_random_bytes_are_a_request_or_a_typed_error(body: bytes) -> None:
    for decoder in DECODERS.values():
        try:
            decoder.decode(body)
        except RemoteProtocolError as error:
            assert error.code in ErrorCode
            encode_error(error.code, error.text, error.request_id)


values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(EVERY), st.dictionaries(st.sampled_from(["v", "id", "op", "token", "nonce", "limit", "zz"]), values))
def test_random_fields_are_a_request_or_a_typed_error(case: tuple[str, str, dict[str, Any]], changes: dict[str, Any]) -> None:
    socket, op, fields = case
    try:
        request = DECODERS[socket].decode(msgpack.packb({**message(op, fields), **changes}))
    except RemoteProtocolError as error:
        assert error.request_id is None or 0 <= error.request_id <= MAX_ID
        encode_error(error.code, error.text, error.request_id)
    else:
        assert request.v == 1


@given(st.data())
def test_a_changed_byte_is_a_request_or_a_typed_error(data: st.DataObject) -> None:
    socket, op, fields = data.draw(st.sampled_from(EVERY))
    body = bytearray(msgpack.packb(message(op, fields)))
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        DECODERS[socket].decode(bytes(body))
    except RemoteProtocolError as error:
        encode_error(error.code, error.text, error.request_id)


def test_a_reply_up_to_the_ceiling_is_framed() -> None:
    room = MAX_FRAME_BYTES - len(msgpack.packb({"text": "x" * 40_000})) + 40_000
    frame = encode_reply({"text": "x" * room})
    assert len(frame) == MAX_FRAME_BYTES + 4
    assert FrameDecoder().receive_data(frame) == [frame[4:]]
    with pytest.raises(LocalProtocolError) as caught:
        encode_reply({"text": "x" * (room + 1)})
    assert caught.value.code is ErrorCode.FRAME_TOO_LARGE


def test_an_error_reply_keeps_its_text_short() -> None:
    frame = encode_error(ErrorCode.BAD_REQUEST, "x" * 100_000, MAX_ID)
    assert msgpack.unpackb(frame[4:]) == {"v": 1, "id": MAX_ID, "error": {"code": 6, "text": "x" * 500}}


def test_error_codes_keep_their_numbers() -> None:
    assert {code.name: int(code) for code in ErrorCode} == {
        "INTERNAL": 1,
        "FRAME_TOO_LARGE": 2,
        "BAD_MESSAGE": 3,
        "UNSUPPORTED_VERSION": 4,
        "UNKNOWN_OP": 5,
        "BAD_REQUEST": 6,
        "FORBIDDEN": 7,
        "RATE_LIMITED": 8,
        "NONCE_REPLAYED": 9,
        "AGENT_MISCONFIGURED": 10,
        "SHUTTING_DOWN": 11,
        "TIMED_OUT": 12,
        "NOT_FOUND": 13,
        "REFUSED": 14,
        "UNAVAILABLE": 15,
        "UNAUTHENTICATED": 16,
    }


def test_no_request_has_more_fields_than_a_short_map_header_counts() -> None:
    # The duplicate check compares one byte, which counts 15 entries at the most.
    for union in (PosRequest, AdminRequest):
        for member in union.__args__:
            assert len(member.__struct_fields__) + 1 <= 15
    assert messages.Request.__struct_fields__ == ("v", "id")
