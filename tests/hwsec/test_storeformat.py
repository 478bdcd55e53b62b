"""Stores and anchors come out as they went in, and a store with one changed byte does not come out at all."""

import hashlib
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsec.backend import ANCHOR_BYTES, Anchor
from hwsec.errors import StoreCorrupt
from hwsec.secretmem import SecretBuffer
from hwsec.storeformat import (
    MAGIC,
    TAG_BYTES,
    AnchorCase,
    Copies,
    SealedRecord,
    StoreBody,
    VersionMeta,
    choose_copy,
    decode_store,
    encode_store,
    judge_anchor,
    seal_record,
    unseal_record,
)

SECRET = b"Ex0mple-secret-0f-32-bytes-xyz!!"
META = VersionMeta(3, "active", 1_000, 2_000, 3_000, 1_001)
TIMES = st.integers(0, 2**53)
METAS = st.builds(
    VersionMeta,
    version=st.integers(1, 2**32 - 1),
    state=st.text(max_size=12),
    valid_from=TIMES,
    valid_until=TIMES,
    grace_until=TIMES,
    installed_at=TIMES,
    invalidated_at=st.none() | TIMES,
)
RECORDS = st.builds(SealedRecord, METAS, st.binary(max_size=12), st.binary(max_size=48))
BODIES = st.builds(
    StoreBody,
    agent_id=st.text(max_size=20),
    generation=st.integers(0, 2**64 - 1),
    backend=st.sampled_from(["tpm", "software", "memory"]),
    records=st.lists(RECORDS, max_size=4).map(tuple),
    sections=st.dictionaries(st.text(max_size=8), st.binary(max_size=40), max_size=3),
)
ANCHORS = st.builds(
    Anchor,
    generation=st.integers(0, 2**64 - 1),
    digest=st.binary(min_size=32, max_size=32),
    version=st.integers(0, 2**32 - 1),
    valid_from=st.integers(0, 2**64 - 1),
    valid_until=st.integers(0, 2**64 - 1),
    grace_until=st.integers(0, 2**64 - 1),
    state=st.integers(0, 255),
)
few = settings(max_examples=40, deadline=None, derandomize=True)


def key(fill: int) -> SecretBuffer:
    buffer = SecretBuffer(32)
    buffer.view[:] = bytes([fill]) * 32
    return buffer


@pytest.fixture(scope="module")
def kek() -> Iterator[SecretBuffer]:
    with key(1) as buffer:
        yield buffer


@pytest.fixture(scope="module")
def other_kek() -> Iterator[SecretBuffer]:
    with key(2) as buffer:
        yield buffer


# Store


@few
@given(body=BODIES)
def test_a_store_comes_out_as_it_went_in(kek: SecretBuffer, body: StoreBody) -> None:
    data = encode_store(kek, body)
    assert decode_store(kek, data) == body
    assert encode_store(kek, body) == data


@few
@given(body=BODIES, choice=st.data())
def test_a_store_with_a_changed_byte_is_refused(kek: SecretBuffer, body: StoreBody, choice: st.DataObject) -> None:
    data = bytearray(encode_store(kek, body))
    position = choice.draw(st.integers(0, len(data) - 1))
    data[position] ^= choice.draw(st.integers(1, 255))
    with pytest.raises(StoreCorrupt):
        decode_store(kek, bytes(data))


def test_every_flipped_bit_of_a_store_is_refused(kek: SecretBuffer) -> None:
    data = encode_store(kek, StoreBody("agent", 1, "tpm", (SealedRecord(META, bytes(12), bytes(48)),), {"a": b"b"}))
    assert decode_store(kek, data).records[0].meta == META
    for position in range(len(data)):
        for bit in range(8):
            damaged = data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]
            with pytest.raises(StoreCorrupt):
                decode_store(kek, damaged)


@few
@given(body=BODIES, choice=st.data())
def test_a_store_that_is_cut_or_longer_is_refused(kek: SecretBuffer, body: StoreBody, choice: st.DataObject) -> None:
    data = encode_store(kek, body)
    with pytest.raises(StoreCorrupt):
        decode_store(kek, data[: choice.draw(st.integers(0, len(data) - 1))])
    with pytest.raises(StoreCorrupt):
        decode_store(kek, data + choice.draw(st.binary(min_size=1, max_size=40)))


@few
@given(data=st.binary(max_size=200))
def test_bytes_that_are_no_store_are_refused(kek: SecretBuffer, data: bytes) -> None:
    for prefixed in (data, MAGIC + data, MAGIC + data + bytes(TAG_BYTES)):
        with pytest.raises(StoreCorrupt):
            decode_store(kek, prefixed)


def test_a_store_under_another_key_is_refused(kek: SecretBuffer, other_kek: SecretBuffer) -> None:
    with pytest.raises(StoreCorrupt, match="tag"):
        decode_store(kek, encode_store(other_kek, StoreBody("agent", 1, "tpm", (), {})))


@pytest.mark.parametrize("body", [b"", b"\xc0", msgspec.msgpack.encode({"agent_id": "a"}), msgspec.msgpack.encode([1, 2])])
def test_an_authentic_store_of_an_unknown_format_is_refused(
    kek: SecretBuffer, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hwsec.storeformat.msgspec.msgpack.encode", lambda _body: body)
    data = encode_store(kek, StoreBody("agent", 1, "tpm", (), {}))
    monkeypatch.undo()
    with pytest.raises(StoreCorrupt, match="format"):
        decode_store(kek, data)


# Records


@few
@given(meta=METAS, agent_id=st.text(max_size=20), secret=st.binary(min_size=32, max_size=32))
def test_a_record_gives_its_secret_back(kek: SecretBuffer, meta: VersionMeta, agent_id: str, secret: bytes) -> None:
    with SecretBuffer(32) as put, SecretBuffer(32) as got:
        put.view[:] = secret
        record = seal_record(kek, agent_id, meta, put)
        assert record.meta == meta
        assert secret not in msgspec.msgpack.encode(record)
        unseal_record(kek, agent_id, record, got)
        assert bytes(got.view) == secret


def sealed(kek: SecretBuffer, meta: VersionMeta = META, agent_id: str = "agent") -> SealedRecord:
    with SecretBuffer(32) as secret:
        secret.view[:] = SECRET
        return seal_record(kek, agent_id, meta, secret)


def refused(kek: SecretBuffer, agent_id: str, record: SealedRecord) -> bool:
    with SecretBuffer(32) as into:
        try:
            unseal_record(kek, agent_id, record, into)
        except StoreCorrupt:
            return True
        return False


@pytest.mark.parametrize(
    "change",
    [
        {"version": 4},
        {"state": "grace"},
        {"valid_from": 999},
        {"valid_until": 2_001},
        {"grace_until": 3_001},
        {"installed_at": 0},
        {"invalidated_at": 2_500},
    ],
)
def test_a_record_keeps_its_state_and_dates(kek: SecretBuffer, change: dict[str, object]) -> None:
    record = sealed(kek)
    assert not refused(kek, "agent", record)
    assert refused(kek, "agent", msgspec.structs.replace(record, meta=msgspec.structs.replace(META, **change)))


def test_a_record_belongs_to_one_agent_and_one_key(kek: SecretBuffer, other_kek: SecretBuffer) -> None:
    record = sealed(kek)
    assert refused(kek, "another agent", record)
    assert refused(other_kek, "agent", record)


def test_the_secret_of_one_version_does_not_pass_for_another(kek: SecretBuffer) -> None:
    newer = msgspec.structs.replace(META, version=4)
    first, second = sealed(kek), sealed(kek, newer)
    assert refused(kek, "agent", SealedRecord(first.meta, second.nonce, second.sealed))
    assert refused(kek, "agent", SealedRecord(second.meta, first.nonce, first.sealed))


@few
@given(nonce=st.binary(max_size=16), data=st.binary(min_size=1, max_size=64))
def test_a_record_that_is_none_is_refused(kek: SecretBuffer, nonce: bytes, data: bytes) -> None:
    assert refused(kek, "agent", SealedRecord(META, nonce, data))


def test_a_destroyed_secret_leaves_no_bytes(kek: SecretBuffer) -> None:
    assert seal_record(kek, "agent", META, None) == SealedRecord(META, b"", b"")


def test_each_sealing_has_its_own_nonce(kek: SecretBuffer) -> None:
    assert len({sealed(kek).nonce for _time in range(100)}) == 100


# Anchor


@few
@given(anchor=ANCHORS)
def test_an_anchor_comes_out_as_it_went_in(anchor: Anchor) -> None:
    data = anchor.encode()
    assert len(data) == ANCHOR_BYTES
    assert Anchor.decode(data) == anchor


@few
@given(anchor=ANCHORS, choice=st.data())
def test_a_changed_anchor_is_another_or_none(anchor: Anchor, choice: st.DataObject) -> None:
    data = bytearray(anchor.encode())
    data[choice.draw(st.integers(0, len(data) - 1))] ^= choice.draw(st.integers(1, 255))
    try:
        other = Anchor.decode(bytes(data))
    except ValueError:
        return
    assert other != anchor
    assert other.encode() == data


@few
@given(data=st.binary(max_size=2 * ANCHOR_BYTES))
def test_bytes_that_are_no_anchor_are_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        Anchor.decode(data)


@few
@given(anchor=ANCHORS, cut=st.integers(0, ANCHOR_BYTES - 1), more=st.binary(min_size=1, max_size=9))
def test_an_anchor_has_one_length(anchor: Anchor, cut: int, more: bytes) -> None:
    for data in (anchor.encode()[:cut], anchor.encode() + more):
        with pytest.raises(ValueError):
            Anchor.decode(data)


def at(generation: int) -> Anchor:
    return Anchor(generation, bytes(32))


@pytest.mark.parametrize(
    ("anchor", "counter", "case"),
    [
        (None, 0, AnchorCase.EMPTY),
        (None, 7, AnchorCase.EMPTY),
        (at(7), 7, AnchorCase.COMMITTED),
        (at(0), 0, AnchorCase.COMMITTED),
        (at(8), 7, AnchorCase.HALF),
        (at(1), 0, AnchorCase.HALF),
        (at(6), 7, AnchorCase.TORN),
        (at(9), 7, AnchorCase.TORN),
        (at(0), 1, AnchorCase.TORN),
        (at(2**64 - 1), 0, AnchorCase.TORN),
    ],
)
def test_how_anchor_and_counter_stand_to_each_other(anchor: Anchor | None, counter: int, case: AnchorCase) -> None:
    assert judge_anchor(anchor, counter) is case


@few
@given(generation=st.integers(0, 2**64 - 1), distance=st.integers(-5, 5))
def test_only_one_step_behind_can_be_finished(generation: int, distance: int) -> None:
    expected = {0: AnchorCase.COMMITTED, -1: AnchorCase.HALF}.get(distance, AnchorCase.TORN)
    assert judge_anchor(at(generation), generation + distance) is expected


# Choice

COPY = st.none() | st.sampled_from([b"old", b"new", b"other", b""])


@given(main=COPY, twin=COPY, pending=COPY)
@few
def test_the_copy_that_is_named_is_chosen_wherever_it_lies(
    main: bytes | None, twin: bytes | None, pending: bytes | None
) -> None:
    chosen = choose_copy(Copies(main, twin, pending), hashlib.sha256(b"new").digest())
    assert chosen == (b"new" if b"new" in (main, twin, pending) else None)
