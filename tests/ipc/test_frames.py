"""The same bytes give the same frames and the same error, however they are cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.bounds import MAX_FRAME_BYTES
from ipc.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from ipc.frames import FrameDecoder, encode_frame

CEILING = 40


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def decode(pieces: list[bytes], ceiling: int = CEILING) -> tuple[list[bytes], str | None, bool]:
    """All bodies, the error's text if there was one, and whether a frame is left unfinished."""
    decoder = FrameDecoder(ceiling)
    bodies: list[bytes] = []
    try:
        for piece in pieces:
            bodies += decoder.receive_data(piece)
        if decoder.error is not None:
            raise decoder.error
    except RemoteProtocolError as error:
        assert error.code is ErrorCode.FRAME_TOO_LARGE
        return bodies, error.text, decoder.partial
    return bodies, None, decoder.partial


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


good = st.binary(min_size=1, max_size=CEILING).map(frame)
empty = st.just(bytes(4))
oversized = st.integers(CEILING + 1, 2**32 - 1).map(lambda size: size.to_bytes(4, "big") + b"x" * 9)
streams = st.tuples(
    st.lists(st.one_of(good, good, good, empty, oversized), max_size=6).map(b"".join), st.binary(max_size=6)
).map(b"".join)


@given(streams, st.lists(st.integers(0, 10_000), max_size=8))
def test_any_cut_gives_what_the_whole_gives(data: bytes, places: list[int]) -> None:
    assert decode(cut(data, places)) == decode([data])


@given(streams)
def test_a_cut_at_every_byte_gives_what_the_whole_gives(data: bytes) -> None:
    whole = decode([data])
    assert decode([data[index : index + 1] for index in range(len(data))]) == whole
    for place in range(len(data) + 1):
        assert decode([data[:place], data[place:]]) == whole


@given(st.lists(st.binary(min_size=1, max_size=CEILING), max_size=8))
def test_what_is_encoded_is_decoded(bodies: list[bytes]) -> None:
    assert decode([b"".join(encode_frame(body, CEILING) for body in bodies)]) == (bodies, None, False)


@pytest.mark.parametrize("size", [1, CEILING - 1, CEILING])
def test_bodies_up_to_the_ceiling_pass(size: int) -> None:
    assert decode([frame(bytes(size))]) == ([bytes(size)], None, False)


@pytest.mark.parametrize("header", [bytes(4), (CEILING + 1).to_bytes(4, "big"), b"\xff\xff\xff\xff"])
def test_a_bad_length_is_an_error_before_its_body_comes(header: bytes) -> None:
    decoder = FrameDecoder(CEILING)
    with pytest.raises(RemoteProtocolError) as caught:
        decoder.receive_data(header)
    assert caught.value.code is ErrorCode.FRAME_TOO_LARGE
    assert not decoder.partial


def test_frames_before_a_bad_length_are_still_given() -> None:
    decoder = FrameDecoder(CEILING)
    assert decoder.receive_data(frame(b"one") + bytes(4) + frame(b"two")) == [b"one"]
    assert decoder.error is not None


def test_after_an_error_every_call_raises_the_same_error() -> None:
    decoder = FrameDecoder(CEILING)
    with pytest.raises(RemoteProtocolError) as first:
        decoder.receive_data(bytes(4))
    for data in (frame(b"one"), b"", bytes(4)):
        with pytest.raises(RemoteProtocolError) as again:
            decoder.receive_data(data)
        assert again.value is first.value


def test_partial_tells_whether_a_frame_is_unfinished() -> None:
    decoder = FrameDecoder()
    seen = []
    for byte in frame(b"ab"):
        decoder.receive_data(bytes([byte]))
        seen.append(decoder.partial)
    assert seen == [True] * 5 + [False]


@pytest.mark.parametrize("size", [0, MAX_FRAME_BYTES + 1])
def test_a_body_that_no_frame_holds_is_not_sent(size: int) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        encode_frame(bytes(size))
    assert caught.value.code is ErrorCode.FRAME_TOO_LARGE


def test_the_largest_body_is_sent() -> None:
    assert encode_frame(bytes(MAX_FRAME_BYTES))[:4] == MAX_FRAME_BYTES.to_bytes(4, "big")
