"""Byte ranges: which are understood, and which answers are the part that was asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.byteranges import ByteRange, is_strong, parse_range, range_problem

WANTED = ByteRange(100, 199)


@given(st.integers(0, 10**15 - 1), st.integers(0, 10**15 - 1))
def test_a_range_is_read_as_it_was_written(first: int, more: int) -> None:
    part = ByteRange(first, min(first + more, 10**15 - 1))
    assert parse_range(part.header) == part and part.size == part.last - part.first + 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bytes=0-",
        "bytes=-5",
        "bytes=5-4",
        "bytes=0-1,3-4",
        "bytes=00-1",
        "bytes= 0-1",
        "Bytes=0-1",
        "items=0-1",
        "bytes=0-1 ",
        "bytes=0-1000000000000000",
        "bytes=0-\u0661",
    ],
)
def test_what_is_no_range_with_both_ends(text: str) -> None:
    assert parse_range(text) is None


def test_strong_entity_tags() -> None:
    assert is_strong('"66f0-1a"') and is_strong('"' + "x" * 200 + '"')
    assert not any(is_strong(text) for text in ("", '""', 'W/"a"', "a", '"a', '"a"b"', '"a b"', '"é"', '"' + "x" * 201 + '"'))


@pytest.mark.parametrize(
    ("content_range", "length"),
    [("bytes 100-199/200", 100), ("bytes 100-199/4294967296", None), ("bytes 100-149/150", 50), ("bytes 100-100/101", 1)],
)
def test_the_part_that_was_asked_for(content_range: str, length: int | None) -> None:
    assert range_problem(WANTED, 206, content_range, length) is None


@pytest.mark.parametrize(
    ("status", "content_range", "length", "said"),
    [
        (200, None, 100, "the whole file"),
        (200, "bytes 100-199/200", 100, "the whole file"),
        (206, None, 100, "does not say which"),
        (206, "bytes 100-199/*", 100, "does not say which"),
        (206, "bytes 0-99/200", 100, "bytes 0 to 99"),
        (206, "bytes 101-199/200", 99, "bytes 101 to 199"),
        (206, "bytes 100-198/200", 99, "bytes 100 to 198"),
        (206, "bytes 100-200/300", 101, "bytes 100 to 200"),
        (206, "bytes 100-199/150", 100, "bytes 100 to 199 of 150"),
        (206, "bytes 100-99/100", 0, "bytes 100 to 99"),
        (206, "bytes 100-199/200", 99, "are 99 bytes"),
    ],
)
def test_another_answer(status: int, content_range: str | None, length: int | None, said: str) -> None:
    assert said in (range_problem(WANTED, status, content_range, length) or "")


@given(st.text(max_size=40))
def test_any_header_is_judged(text: str) -> None:
    problem = range_problem(WANTED, 206, text)
    assert problem is None or isinstance(problem, str)
