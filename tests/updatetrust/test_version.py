"""Versions: which texts are one, and their order."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updatetrust.version import MalformedVersion, Version

FORM = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){0,3}(-[0-9A-Za-z.]{1,32})?")
versions = st.from_regex(FORM, fullmatch=True).filter(str.isascii).map(Version.parse)

ASCENDING = [
    "0", "0.0.0.1", "0.9", "1-0", "1-1", "1-2", "1-10", "1-10.1", "1-a", "1-a.1", "1-alpha", "1-b", "1-rc", "1-rc.1", "1-rc.2",
    "1-rc.10", "1-rc.x", "1", "1.0.0.1", "1.2.9", "1.2.10", "1.10", "2-rc.1", "2", "10", "999999.999999.999999.999999",
]  # fmt: skip


def test_the_order_is_this() -> None:
    parsed = [Version.parse(text) for text in ASCENDING]
    for place, lower in enumerate(parsed):
        for higher in parsed[place + 1 :]:
            assert lower < higher and higher > lower and lower != higher


@pytest.mark.parametrize(("one", "other"), [("3.2", "3.2.0"), ("3", "3.0.0.0"), ("03.002", "3.2"), ("1-rc.01", "1-rc.1")])
def test_two_texts_may_be_the_same_version(one: str, other: str) -> None:
    first, second = Version.parse(one), Version.parse(other)
    assert first == second and first <= second and first >= second and not first < second
    assert hash(first) == hash(second) and str(first) == one


@pytest.mark.parametrize(
    "text",
    ["", "v1", "1.", ".1", "1..2", "1.2.3.4.5", "1234567", "1-", "1-rc_1", "1-" + "x" * 33, "1 ", " 1", "1\n", "1-rc\n", "-1",
     "1+2", "٣", "1-é", "latest", "1,2"],
)  # fmt: skip
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(MalformedVersion, match="is not a version"):
        Version.parse(text)


def test_a_version_is_not_compared_with_anything_else() -> None:
    assert Version.parse("1") != "1"
    with pytest.raises(TypeError):
        assert Version.parse("1") < 2


@given(st.text(max_size=48))
def test_a_text_is_a_version_of_its_form_or_refused(text: str) -> None:
    try:
        assert Version.parse(text).text == text and FORM.fullmatch(text)
    except MalformedVersion:
        assert not FORM.fullmatch(text) or not text.isascii()


@given(versions, versions, versions)
def test_the_order_is_total(first: Version, second: Version, third: Version) -> None:
    assert (first < second) + (first == second) + (first > second) == 1
    assert (first <= second) == (first < second or first == second)
    if first <= second and second <= third:
        assert first <= third
    if first == second:
        assert hash(first) == hash(second)


@given(versions)
def test_a_release_is_above_its_pre_releases_and_more_numbers_are_not_below(version: Version) -> None:
    numbers = version.text.partition("-")[0]
    assert version <= Version.parse(numbers)
    assert Version.parse(f"{numbers}-rc.1") < Version.parse(numbers)
    if numbers.count(".") < 3:
        assert Version.parse(numbers) == Version.parse(f"{numbers}.0") < Version.parse(f"{numbers}.1")
