"""What a terminal shows has no character that drives it, breaks a line or turns the text around."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.text import forbidden_in, shown


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("Rue du Lac 7\n\u6771\u4eac\u3000\u65b0\u5bbf", "Rue du Lac 7\n\u6771\u4eac\u3000\u65b0\u5bbf"),
        ("\x1b]0;title\x07\x1b[2J", "<U+001B>]0;title<U+0007><U+001B>[2J"),
        ("\x9b31mred", "<U+009B>31mred"),
        ("a\rb\tc", "a<U+000D>b<U+0009>c"),
        ("abc\u202efdp.exe", "abc<U+202E>fdp.exe"),
        ("\ud800\U0010ffff", "<U+D800><U+10FFFF>"),
    ],
    ids=ascii,
)
def test_what_is_refused_is_shown_by_its_number(text: str, safe: str) -> None:
    assert shown(text) == safe


@given(st.text())
def test_what_is_shown_is_never_refused(text: str) -> None:
    assert forbidden_in(shown(text).replace("\n", "")) is None
