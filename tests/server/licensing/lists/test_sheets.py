"""Tables of licenses as CSV and JSON: nothing runs as a formula, what is exported is read again, bad lines are named."""

import contextlib
import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.text import forbidden_in
from server.base.errors import Invalid
from server.licensing.lists.license_list import LicenseRow
from server.licensing.lists.sheets import COLUMNS, TOLD, Wanted, as_cells, cells_of, csv_lines, defused, plain, wanted_in

TEXTS = st.text(max_size=20).filter(lambda text: forbidden_in(text) is None)
NAMES = st.text(min_size=1, max_size=12).filter(lambda text: forbidden_in(text) is None)


def time(text: str, ends: bool) -> int:
    if not text.isdigit() or not text.isascii():
        raise ValueError(f"{text!r} is not a time")
    return int(text) + ends


def read(text: str | bytes) -> list[Wanted]:
    return wanted_in(text.encode() if isinstance(text, str) else text, time)


@given(TEXTS)
def test_a_cell_is_never_a_formula_and_reads_as_it_was(text: str) -> None:
    cell = str(defused(text))
    assert cell.strip()[:1] not in tuple("=+-@\uff1d\uff0b\uff0d\uff20")
    assert plain(cell) == text


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "  =cmd|'/C calc'!A1", "\uff1d1", "'=1"])
def test_formulas_get_an_apostrophe(text: str) -> None:
    assert next(csv.reader(io.StringIO(csv_lines([[text, 5, None]])))) == ["'" + text, "5", ""]


def row(**changes: object) -> LicenseRow:
    content = {"features": (), "metadata": {}, "subject": "x", "customer": None, "site": None}
    given = {**content, **changes}
    return LicenseRow("l", "a", "active", str(given["subject"]), given["features"], given["metadata"], 5, 9, 1, None)  # type: ignore[arg-type]


@given(st.lists(NAMES, max_size=5, unique=True), st.dictionaries(NAMES, TEXTS, max_size=4), NAMES)
def test_what_is_exported_is_read_as_it_was(features: list[str], metadata: dict[str, str], subject: str) -> None:
    content = cells_of(
        row(features=tuple(features), metadata=metadata, subject=subject), lambda at: "" if at is None else str(at)
    )
    for text in (csv_lines([(*COLUMNS, *TOLD), as_cells(content)]), json.dumps([content])):
        (found,) = read(text)
        assert found.problem is None
        assert (found.wish.features, dict(found.wish.metadata)) == (tuple(features), metadata)
        assert (found.wish.subject or "").strip() == subject.strip()
        assert (found.wish.license_id, found.agent, found.wish.not_before, found.wish.expires) == ("l", "a", 5, 10)


@pytest.mark.parametrize("between", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_files_of_spreadsheets_are_read(between: str, mark: str, end: str) -> None:
    lines = (("license_id", "agent", "features"), ("l1", "", "a | b"), ("", "", ""), ("l2", "pos-1", ""))
    found = read(mark + "".join(between.join(line) + end for line in lines))
    assert [(each.line, each.wish.license_id, each.agent, each.wish.features) for each in found] == [
        (2, "l1", None, ("a", "b")),
        (4, "l2", "pos-1", ()),
    ]


def test_bad_lines_are_named_and_the_others_are_read() -> None:
    found = read(
        'license_id,expires,features,metadata,state\na,5,,,\nb,soon,,,\nc,5,[x,,\nd,5,,"[1]",\ne,5,,,revoked\nf,,,,,,\n'
    )
    assert [(each.line, each.problem) for each in found] == [
        (2, None),
        (3, "expires: 'soon' is not a time"),
        (4, "features is not JSON"),
        (5, 'metadata must be a JSON object of texts, as {"shop": "7"}'),
        (6, "it is revoked where it was exported, and would be active here: leave it out"),
        (7, "it has 7 cells, the first line has 5"),
    ]
    found = read('[{"license_id": "a"}, 5, {"x": 1}, {"subject": 7}, {"expires": true}, {"license_id": "a\\u0000"}]')
    assert [each.problem for each in found] == [
        None,
        "it is not an object",
        "unknown member 'x'",
        "subject must be a text",
        "expires must be a time",
        "license_id must be one line of at most 128 characters",
    ]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "the file is empty: its first line names columns"),
        (b"license_id,salary\n", r"unknown column 'salary'; use license_id, agent"),
        (b"agent,agent\n", "has the column 'agent' twice"),
        (b"license_id\nab\xff\n", "line 2 of the file is not UTF-8: save it as 'CSV UTF-8'"),
        (b'license_id\n"a\n', "line 2 of the file is not CSV"),
        (b"[1", "the file is not JSON"),
        (b"{}", "must be a JSON array"),
        (b"[" * 100_000, "the file is not JSON"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(data: bytes, text: str) -> None:
    with pytest.raises(Invalid, match=text):
        read(data)


def test_what_is_wrong_with_a_line_quotes_little_of_it() -> None:
    lines = read(json.dumps([{"x" * 100_000: 1}, {"license_id": "l", "expires": "x" * 4000}]))
    assert [0 < len(each.problem or "") < 300 for each in lines] == [True, True]


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(Invalid):
        wanted_in(data, time)
