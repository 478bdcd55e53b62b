"""What the repository signs of a package: it is read whole, or refused with the place."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.updatetrust.facts import CUSTOM, target
from tests.vectors.make_directive import CONTENT
from updatetrust.target import Custom, Kind, MalformedTarget, Target, read_target

PATH, LENGTH, HASHES = CONTENT["target"], CONTENT["length"], {"sha256": CONTENT["sha256"]}


def test_a_target_is_read_and_said_in_the_same_members() -> None:
    found = target()
    assert (found.path, found.length, found.sha256) == (PATH, LENGTH, HASHES["sha256"])
    assert found.kind is Kind.SLOTS and found.hardware == tuple(CUSTOM["hardware"])
    assert found.address() == f"targets/pos/{found.sha256}.pos-3.2.1.tar.zst"
    assert json.loads(json.dumps(found.custom())) == CUSTOM
    assert read_target(PATH, LENGTH, HASHES, json.loads(json.dumps(found.custom()))) == found


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"product": "other"}, "product's folder"),
        ({"product": "POS"}, "'product'"),
        ({"version": "new"}, "'version'"),
        ({"version": "1\n"}, "'version'"),
        ({"build_id": ""}, "'build_id'"),
        ({"build_id": "a/b"}, "'build_id'"),
        ({"hardware": []}, "'hardware'"),
        ({"hardware": ["any"]}, "the hardware any is not allowed"),
        ({"hardware": ["till-x86", "all"]}, "the hardware all is not allowed"),
        ({"hardware": ["till-x86"] * 2}, "twice"),
        ({"hardware": [f"h{number}" for number in range(33)]}, "'hardware'"),
        ({"hardware": ["*"]}, r"'hardware\[0\]'"),
        ({"kind": "rpm"}, "'kind'"),
        ({"min_agent": None}, "'min_agent'"),
        ({"notes": "x" * 4001}, "'notes'"),
        ({"notes": "\x1b[31mred"}, "U\\+001B"),
        ({"notes": "a\u202eb"}, "U\\+202E"),
        ({"released_at": -1}, "'released_at'"),
        ({"released_at": True}, "'released_at'"),
        ({"more": 1}, "unknown members: 'more'"),
        ({"path": "pos/other"}, "unknown members: 'path'"),
        ({"sha256": "0" * 64}, "unknown members: 'sha256'"),
    ],
    ids=str,
)
def test_another_custom_is_refused_with_its_place(change: dict[str, Any], says: str) -> None:
    with pytest.raises(MalformedTarget, match=says):
        read_target(PATH, LENGTH, HASHES, {**CUSTOM, **change})


@pytest.mark.parametrize("name", Custom.__struct_fields__)
def test_each_member_must_be_there(name: str) -> None:
    with pytest.raises(MalformedTarget, match=f"'{name}' is missing"):
        read_target(PATH, LENGTH, HASHES, {key: value for key, value in CUSTOM.items() if key != name})


@pytest.mark.parametrize("custom", [None, [], "custom", 1])
def test_a_target_without_custom_is_refused(custom: object) -> None:
    with pytest.raises(MalformedTarget, match="must have `custom`"):
        read_target(PATH, LENGTH, HASHES, custom)


@pytest.mark.parametrize("hashes", [{}, {"sha512": "0" * 128}, {**HASHES, "sha512": "0" * 128}])
def test_exactly_the_hash_sha256_is_wanted(hashes: dict[str, str]) -> None:
    with pytest.raises(MalformedTarget, match="exactly the hash sha256"):
        read_target(PATH, LENGTH, hashes, CUSTOM)


@pytest.mark.parametrize(
    ("path", "length", "digest"),
    [
        ("pos", LENGTH, HASHES["sha256"]),
        ("pos/", LENGTH, HASHES["sha256"]),
        ("pos/a/b", LENGTH, HASHES["sha256"]),
        ("pos/..", LENGTH, HASHES["sha256"]),
        ("/pos/a", LENGTH, HASHES["sha256"]),
        (PATH, 0, HASHES["sha256"]),
        (PATH, 2**34 + 1, HASHES["sha256"]),
        (PATH, LENGTH, "AB" * 32),
        (PATH, LENGTH, "ab" * 31),
    ],
)
def test_path_length_and_digest_have_their_forms(path: str, length: int, digest: str) -> None:
    with pytest.raises(MalformedTarget):
        read_target(path, length, {"sha256": digest}, CUSTOM)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*Custom.__struct_fields__, "x"]), inner),
    max_leaves=8,
)


@given(st.text(max_size=20) | st.just(PATH), st.dictionaries(st.sampled_from([*CUSTOM, "more"]), json_values, max_size=4))
def test_whatever_is_there_is_a_target_or_one_typed_error(path: str, changes: dict[str, Any]) -> None:
    try:
        found = read_target(path, LENGTH, HASHES, {**CUSTOM, **changes})
    except MalformedTarget as error:
        assert len(str(error)) <= 400
    else:
        assert isinstance(found, Target) and found.product == found.path.split("/")[0] and "more" not in changes
