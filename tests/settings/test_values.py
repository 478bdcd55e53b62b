"""Each reader takes what it is for, refuses everything else, and says what the value must be."""

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc import peer
from settings import values
from settings.values import (
    BadValue,
    absolute_path,
    boolean,
    https_url,
    ids,
    integer,
    matching,
    one_id,
    one_of,
    pin_digest,
    pins,
    text,
)

DIGEST = bytes(range(32))
PIN = "sha256:" + DIGEST.hex()
NAMES = {"till": 1000, "nobody": 65534}
user, users = one_id("user", NAMES.__getitem__), ids("group", NAMES.__getitem__)
small, word = integer(1, 9), one_of("accept", "refuse")
code = matching(re.compile("[a-z]+"), "must be small letters")


@pytest.mark.parametrize(
    ("read", "value", "result"),
    [
        (text, "a", "a"),
        (boolean, False, False),
        (absolute_path, "/etc/x", Path("/etc/x")),
        (small, 1, 1),
        (small, 9, 9),
        (word, "refuse", "refuse"),
        (code, "abc", "abc"),
        (https_url, "https://a.example:8443/base", "https://a.example:8443/base"),
        (pins(), PIN, (PIN,)),
        (pins(2), [PIN, PIN], (PIN, PIN)),
        (user, "till", 1000),
        (user, 0, 0),
        (user, 2**32 - 2, 2**32 - 2),
        (users, [], frozenset()),
        (users, ["till", 5], {1000, 5}),
    ],
)
def test_what_is_taken(read: Callable[[Any], object], value: object, result: object) -> None:
    assert read(value) == result


@pytest.mark.parametrize(
    ("read", "value", "said"),
    [
        (text, "", "must be a text in quotes"),
        (text, 5, "must be a text in quotes"),
        (boolean, 1, "must be true or false, without quotes"),
        (absolute_path, "x", "must be an absolute path"),
        (absolute_path, "/a/../b", "without '..'"),
        (absolute_path, "/a\0", "NUL"),
        (small, 0, "must be a whole number from 1 to 9"),
        (small, 10, "must be a whole number from 1 to 9"),
        (small, True, "must be a whole number"),
        (small, "5", "must be a whole number"),
        (word, "maybe", "must be one of accept, refuse"),
        (word, ["accept"], "must be one of accept, refuse"),
        (code, "A", "must be small letters"),
        (https_url, "http://a", "must be an https:// address"),
        (https_url, "https://a b", "must be an https:// address"),
        (pins(), [], "a list of at least one such"),
        (pins(1), [PIN, PIN], "a list of 1 to 1 such"),
        (pins(), [PIN, 5], "SHA-256 of the public key"),
        (user, "ghost", "names the user 'ghost', which does not exist on this machine; create it or remove it"),
        (user, "", "must be the name or the number of a user"),
        (user, True, "True is neither"),
        (user, -1, "-1 is neither"),
        (user, 2**32 - 1, "is neither"),
        (user, "nobody", "must not be 65534"),
        (users, 5, "must be a list of group names or numbers"),
        (users, [5, None], "None is neither"),
        (users, ["ghost"], "the group 'ghost'"),
    ],
)
def test_what_is_refused_and_what_is_said(read: Callable[[Any], object], value: object, said: str) -> None:
    with pytest.raises(BadValue, match=re.escape(said)):
        read(value)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(anything, st.sampled_from([text, boolean, absolute_path, small, word, code, https_url, pins(), user, users]))
def test_any_value_is_read_or_refused(value: object, read: Callable[[Any], object]) -> None:
    try:
        read(value)
    except BadValue as bad:
        assert str(bad)


def test_the_overflow_id_is_the_one_of_the_sockets() -> None:
    assert values.OVERFLOW_ID == peer.OVERFLOW_ID


def test_a_user_of_this_machine_is_found() -> None:
    assert one_id("user", values.user_id)("root") == 0
    assert ids("group", values.group_id)(["root"]) == {0}


def test_a_pin_is_32_bytes_in_hex_or_base64() -> None:
    for form in (DIGEST.hex(), DIGEST.hex().upper(), base64.b64encode(DIGEST).decode()):
        assert pin_digest(f"sha256:{form}") == DIGEST


@pytest.mark.parametrize(
    "pin", ["", "sha256:", "sha1:" + "00" * 32, "sha256:" + "00" * 31, "sha256:" + "AA" * 22, 1, None, b"x"]
)
def test_what_is_no_pin_is_refused(pin: object) -> None:
    with pytest.raises(ValueError, match="a pin is 'sha256:'"):
        pin_digest(pin)
