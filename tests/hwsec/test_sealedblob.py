"""Blobs under the KEK: only the same KEK and the same name open them, and nothing that was changed opens at all."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsec.backend import Backend
from hwsec.errors import BlobCorrupt
from hwsec.sealedblob import CONTENT_MAX, MAGIC, open_blob, seal_blob
from hwsec.secretmem import SecretBuffer

KEY = bytes(range(32))


def sealed(data: bytes, name: str = "tls key", key: bytes = KEY) -> bytes:
    with SecretBuffer(32) as kek:
        kek.view[:] = key
        return seal_blob(kek, name, data)


def opened(blob: bytes, name: str = "tls key", key: bytes = KEY) -> bytes:
    with SecretBuffer(32) as kek:
        kek.view[:] = key
        with open_blob(kek, name, blob) as content:
            return bytes(content.view)


@pytest.mark.parametrize("size", [1, 32, 121, 4096, CONTENT_MAX])
def test_what_was_sealed_is_opened(size: int) -> None:
    data = os.urandom(size)
    blob = sealed(data)
    assert opened(blob) == data
    assert len(blob) == 8 + 12 + size + 16
    assert size < 8 or data not in blob


def test_two_blobs_of_the_same_content_differ() -> None:
    assert len({sealed(b"same") for _time in range(20)}) == 20


def test_another_name_or_key_does_not_open_it() -> None:
    blob = sealed(b"secret")
    for name, key in (("tls key 2", KEY), ("", KEY), ("tls key", bytes(32)), ("TLS key", KEY)):
        with pytest.raises(BlobCorrupt, match="sealed blob"):
            opened(blob, name, key)


def test_every_bit_counts() -> None:
    blob = sealed(b"secret")
    for place in range(len(blob)):
        for bit in (1, 0x80):
            changed = bytearray(blob)
            changed[place] ^= bit
            with pytest.raises(BlobCorrupt):
                opened(bytes(changed))
    for size in range(len(blob)):
        with pytest.raises(BlobCorrupt):
            opened(blob[:size])
    with pytest.raises(BlobCorrupt):
        opened(blob + b"\0")


@given(st.binary(max_size=200))
def test_garbage_is_a_typed_error(data: bytes) -> None:
    for blob in (data, MAGIC + data):
        with pytest.raises(BlobCorrupt):
            opened(blob)


@pytest.mark.parametrize("data", [b"", bytes(CONTENT_MAX + 1)], ids=len)
def test_content_has_bounds(data: bytes) -> None:
    with pytest.raises(ValueError, match="sealed blob"):
        sealed(data)
    with pytest.raises(BlobCorrupt):
        opened(MAGIC + bytes(12 + 16) + data)


def test_the_error_names_no_content() -> None:
    with pytest.raises(BlobCorrupt) as caught:
        opened(sealed(b"very-secret"), "other")
    assert "very-secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_any_backend_opens_it_after_a_start(backend: Backend) -> None:
    with backend.kek() as kek:
        blob = seal_blob(kek, "tls key", memoryview(b"secret"))
    backend.close()
    backend.open()
    with backend.kek() as kek, open_blob(kek, "tls key", blob) as content:
        assert content.view == b"secret"
