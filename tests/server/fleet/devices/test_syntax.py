"""The selection language: what is read how, and what a malformed text is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.base.errors import Invalid
from server.fleet.devices.syntax import All, Field, Not, Some, Term, parse

TAG_A, TAG_B, TAG_C = (Term(Field.TAG, "=", each) for each in "abc")

READ = {
    "tag=a": TAG_A,
    '  tag = "a" ': TAG_A,
    "tag=a and tag=b or tag=c": Some((All((TAG_A, TAG_B)), TAG_C)),
    "tag=a and (tag=b or tag=c)": All((TAG_A, Some((TAG_B, TAG_C)))),
    "not tag=a and tag=b": All((Not(TAG_A), TAG_B)),
    "not(tag=a or tag=b)": Not(Some((TAG_A, TAG_B))),
    "not not tag=a": Not(Not(TAG_A)),
    "id=POS*": Term(Field.ID, "=", "POS", prefix=True),
    'id="POS*"': Term(Field.ID, "=", "POS*"),
    "zone=Europe/Berlin": Term(Field.ZONE, "=", "Europe/Berlin"),
    'attr.lane="two words"': Term(Field.ATTRIBUTE, "=", "two words", "lane"),
    r'attr.a.b="q\"\\"': Term(Field.ATTRIBUTE, "=", 'q"\\', "a.b"),
    "attr.version=2": Term(Field.ATTRIBUTE, "=", "2", "version"),
    "pos.version<2.1": Term(Field.VERSION, "<", "2.1", "pos"),
    "pos-core.version >= 2.1-rc.1": Term(Field.VERSION, ">=", "2.1-rc.1", "pos-core"),
    "tag=and-more": Term(Field.TAG, "=", "and-more"),
}

REFUSED = {
    "": (1, "a term that begins with tag, hardware"),
    "tag": (4, "an operator: ="),
    "tag=": (5, "a value"),
    "tag=a tag=b": (7, "'and', 'or' or the end, not 'tag'"),
    "tag=a and": (10, "a term that begins with"),
    "(tag=a": (7, "')' for the '(' at column 1"),
    "tag=a)": (6, "'and', 'or' or the end"),
    "color=red": (1, "attr.NAME or PRODUCT.version, not 'color'"),
    "tag!=a": (4, "write 'not' before the term"),
    "id<POS": (3, "write 'not' before the term"),
    "id=*S": (4, "a * only at the end of an id"),
    "tag=a*": (5, "a * only at the end of an id"),
    'tag="a': (5, "a quote that ends the value"),
    "pos.version<new": (13, "'new' is not a version: one to four numbers"),
    "POS.version<1": (1, "PRODUCT.version, not 'POS.version'"),
    "tag=or": (5, "in quotes if it"),
    "tag=\x00": (5, "printable characters"),
    "tag=a and !": (11, "quote a value that has special characters"),
    "(" * 9 + "tag=a" + ")" * 9: (10, "at most 8 parentheses"),
    "not " * 9 + "tag=a": (37, "at most 8 parentheses"),
    " or ".join(["tag=a"] * 33): (292, "at most 32 terms"),
}


@pytest.mark.parametrize("text", READ)
def test_a_selection_is_read(text: str) -> None:
    assert parse(text).root == READ[text]
    assert parse(text).text == text


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_malformed_is_refused_with_column_and_expectation(text: str) -> None:
    column, expected = REFUSED[text]
    with pytest.raises(Invalid) as caught:
        parse(text)
    assert f"at column {column}: expected" in str(caught.value) and expected in str(caught.value)


def test_a_selection_is_bounded() -> None:
    parse(" or ".join(["tag=a"] * 32))
    parse("(" * 8 + "tag=a" + ")" * 8)
    parse("tag=" + "a" * 996)
    with pytest.raises(Invalid, match="has 1001 characters; at most 1000"):
        parse("tag=" + "a" * 997)


@given(st.text(st.sampled_from('tag=id.version<>!()"\\* andornot1\x00é'), max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        assert 1 <= len(list(parse(text).terms())) <= 32
    except Invalid as problem:
        assert "at column " in str(problem)
