"""The fake reads requests as the agent does: the same bodies are taken, and the others get the same code and id."""

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.bounds import MAX_ID, MAX_TOKEN_CHARS
from ipc.errors import ErrorCode, RemoteProtocolError
from ipc.messages import PosRequest, RequestDecoder
from ipc.testing.requests import OPERATIONS, read_request

decode = RequestDecoder[PosRequest](PosRequest).decode
RIGHT: dict[str, Any] = {"token": "t", "nonce": bytes(16), "feature": "f", "product": None, "after": "", "metadata": False}
RIGHT |= {"meter": "sales", "amount": 3, "count_id": bytes(range(16)), "answer": "busy", "until": 5}
WRONG = [None, True, 1.5, "", "x", b"x", b"x" * 16, [], {}, -5, 2**60, MAX_ID, MAX_ID + 1, 0, 1, 2, "t" * (MAX_TOKEN_CHARS + 1)]
WRONG += ["t" * length for length in (64, 65, 128, 129, 256, 257)]
MALFORMED = [
    b"",
    b"\xc1",
    b"\x80\x80",
    b"\x81",
    b"\x90",
    b"\xc0",
    b"\x81\xa1\xff\x01",
    b"\x81\x01\x01",
    b"\x81\xa1a" + b"\x91" * 2000,
]


def right(op: str, /, **changes: Any) -> dict[str, Any]:
    return {"v": 1, "id": 7, "op": op, **{name: RIGHT[name] for name in OPERATIONS[op]}, **changes}


def outcome(read: Any, body: bytes) -> tuple[Any, ...]:
    try:
        request = read(body)
    except RemoteProtocolError as error:
        return error.code, error.request_id
    if read is read_request:
        return request.request_id, request.op, request.fields
    op = str(type(request).__struct_config__.tag)
    return request.id, op, {name: getattr(request, name) for name in OPERATIONS[op]}


def same(body: bytes) -> tuple[Any, ...]:
    ours, agents = outcome(read_request, body), outcome(decode, body)
    assert ours == agents, body
    return ours


def test_the_fake_knows_the_operations_of_the_agent() -> None:
    assert set(OPERATIONS) == RequestDecoder[PosRequest](PosRequest)._ops


@pytest.mark.parametrize("op", OPERATIONS)
def test_each_request_is_read_and_each_change_refused_alike(op: str) -> None:
    assert same(msgpack.packb(right(op)))[1] == op
    for name in right(op):
        whole = right(op)
        del whole[name]
        assert same(msgpack.packb(whole))[0] is ErrorCode.BAD_REQUEST
        for value in WRONG:
            same(msgpack.packb(right(op, **{name: value})))
        doubled = msgpack.Packer().pack_map_pairs([*right(op).items(), (name, right(op)[name])])
        assert same(doubled)[0] is ErrorCode.BAD_MESSAGE
    assert same(msgpack.packb(right(op, surplus=1))) == (ErrorCode.BAD_REQUEST, 7)
    assert same(msgpack.packb(right(op, v=2))) == (ErrorCode.UNSUPPORTED_VERSION, 7)
    assert same(msgpack.packb(right(op) | {"op": "status"})) == (ErrorCode.UNKNOWN_OP, 7)


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
def test_what_is_no_map_ends_the_stream_alike(body: bytes) -> None:
    assert same(body)[0] is ErrorCode.BAD_MESSAGE


values = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20) | st.binary(max_size=20)


@given(st.sampled_from(sorted(OPERATIONS)), st.dictionaries(st.sampled_from(["v", "id", "op", *RIGHT, "x"]), values))
def test_any_mixture_is_read_alike(op: str, changes: dict[str, Any]) -> None:
    same(msgpack.packb(right(op) | changes))
