"""A frame is recognized by its bytes only where the strict decoder would make the same request of it."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.bounds import MAX_ID
from ipc.clientwire import encode_request
from ipc.errors import RemoteProtocolError
from ipc.frames import FrameDecoder, encode_frame
from ipc.knownframes import KnownFrame, key_of, known_from
from ipc.messages import PosRequest, RequestDecoder, ValidateLicense, decode_id, encode_id

DECODER = RequestDecoder[PosRequest](PosRequest)
NONCE = bytes(range(16))
IDS = [0, 1, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, MAX_ID]
TOKENS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=16, max_size=300)


def frame_of(token: str, request_id: int = 1, nonce: bytes = NONCE) -> bytes:
    return encode_request("validate_license", request_id, {"token": token, "nonce": nonce})


def decoded(frame: bytes) -> ValidateLicense:
    request = DECODER.decode(frame[4:])
    assert isinstance(request, ValidateLicense)
    return request


def known(token: str, request_id: int = 1) -> KnownFrame:
    frame = frame_of(token, request_id)
    found = known_from(frame[4:], decoded(frame))
    assert found is not None
    return found


@pytest.mark.parametrize("request_id", IDS)
def test_every_id_is_recognized_and_goes_round(request_id: int) -> None:
    number = known("t" * 700).id_in(frame_of("t" * 700, request_id, bytes(16)))
    assert number == encode_id(request_id) and decode_id(number) == request_id


@given(TOKENS, st.integers(0, MAX_ID), st.integers(0, MAX_ID), st.binary(min_size=16, max_size=16))
def test_a_token_is_recognized_whatever_id_and_nonce_came_first(token: str, first: int, then: int, nonce: bytes) -> None:
    frame = frame_of(token, then, nonce)
    assert known(token, first).id_in(frame) == encode_id(then)
    assert key_of(frame) == key_of(frame_of(token, first)) == key_of(frame[4:])


def test_another_token_of_the_same_end_is_not_recognized() -> None:
    assert key_of(frame_of("a" + "t" * 99)) == key_of(frame_of("b" + "t" * 99))
    assert known("a" + "t" * 99).id_in(frame_of("b" + "t" * 99)) is None
    assert known("t" * 99).id_in(frame_of("t" * 100)) is None


FORMS = {
    "longer than need be, 8 bits": b"\xcc\x05",
    "longer than need be, 16 bits": b"\xcd\x00\xff",
    "longer than need be, 32 bits": b"\xce\x00\x00\xff\xff",
    "longer than need be, 64 bits": b"\xcf\x00\x00\x00\x00\xff\xff\xff\xff",
    "signed": b"\xd0\x05",
    "negative": b"\xe0",
    "a boolean": b"\xc3",
    "nil": b"\xc0",
    "above the bound": b"\xcf" + (MAX_ID + 1).to_bytes(8, "big"),
    "a number with a point": b"\xca\x3f\x80\x00\x00",
}


@pytest.mark.parametrize("number", FORMS.values(), ids=FORMS)
def test_another_form_of_an_id_is_left_to_the_decoder(number: bytes) -> None:
    usual = frame_of("t" * 100)
    assert known("t" * 100).id_in(encode_frame(usual[4:11] + number + usual[12:])) is None


@pytest.mark.parametrize("order", [("id", "v", "op", "token", "nonce"), ("v", "id", "op", "nonce", "token")])
def test_what_another_client_encodes_in_another_order_is_not_remembered(order: tuple[str, ...]) -> None:
    fields = {"v": 1, "id": 7, "op": "validate_license", "token": "t" * 100, "nonce": NONCE}
    body = msgpack.packb({name: fields[name] for name in order})
    request = DECODER.decode(body)
    assert isinstance(request, ValidateLicense)
    assert known_from(body, request) is None


@given(st.integers(0, MAX_ID), st.data())
def test_what_is_recognized_is_what_the_decoder_makes_of_it(request_id: int, data: st.DataObject) -> None:
    """Whatever is done to the bytes."""
    token = "t" * 40
    frame = bytearray(frame_of(token, request_id))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(frame) - 1))
        match data.draw(st.sampled_from(("change", "drop", "add"))):
            case "change":
                frame[at] = data.draw(st.integers(0, 255))
            case "drop":
                del frame[at]
            case _:
                frame.insert(at, data.draw(st.integers(0, 255)))
    number = known(token).id_in(bytes(frame))
    if number is None:
        return
    (body,) = FrameDecoder().receive_data(bytes(frame))
    request = decoded(bytes(frame))
    assert (request.token, encode_id(request.id), request.nonce) == (token, number, bytes(frame[-16:])) and body == frame[4:]


def test_what_the_decoder_refuses_is_never_recognized() -> None:
    """One byte at a time, all of them."""
    frame, pattern, recognized = frame_of("t" * 40, 300), known("t" * 40), 0
    for at in range(len(frame)):
        for value in range(256):
            changed = frame[:at] + bytes((value,)) + frame[at + 1 :]
            number = pattern.id_in(changed)
            try:
                whole = FrameDecoder().receive_data(changed) == [changed[4:]]
                request = DECODER.decode(changed[4:]) if whole else None
            except RemoteProtocolError:
                request = None
            if number is not None:
                assert isinstance(request, ValidateLicense) and request.token == "t" * 40, (at, value)
                recognized += 1
    # Each byte of the nonce may be any; of the id, 16 bits from 256 on, the first may be any but 0, and the second any.
    assert recognized >= 16 * 256 + 255 + 256
