"""The published texts are allowed or refused in a license, by a rule that no version of Unicode changes."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from common.text import FORBIDDEN, forbidden_in
from contracts.claims import check_claims
from contracts.jose import MalformedToken
from tests.contracts.world import CLAIMS

ROOT = Path(__file__).resolve().parents[2]
VECTORS = json.loads((ROOT / "tests" / "vectors" / "texts.json").read_text("ascii"))
WHOLE = CLAIMS.as_json()


def number(point: str) -> int:
    return int(point.removeprefix("U+"), 16)


def everywhere(text: str) -> list[dict[str, Any]]:
    """The claims with the text in each place that may have one."""
    return [
        *({**WHOLE, name: text} for name in ("iss", "sub", "aud", "jti")),
        {**WHOLE, "features": [text]},
        {**WHOLE, "metadata": {text: "x"}},
        {**WHOLE, "metadata": {"x": text}},
    ]


@pytest.mark.parametrize("vector", VECTORS["allowed"], ids=lambda vector: vector["name"])
def test_a_text_is_allowed(vector: dict[str, Any]) -> None:
    for claims in everywhere("".join(chr(number(point)) for point in vector["text"])):
        assert check_claims(claims).as_json() == claims


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: f"{vector['first']}-{vector['last']}")
def test_a_range_is_refused(vector: dict[str, str]) -> None:
    for point in {number(vector["first"]), number(vector["last"])}:
        for claims in everywhere(f"a{chr(point)}b"):
            with pytest.raises(MalformedToken, match=re.escape(f"U+{point:04X}")):
                check_claims(claims)


def test_no_other_character_is_refused() -> None:
    refused = {point for vector in VECTORS["refused"] for point in range(number(vector["first"]), number(vector["last"]) + 1)}
    assert refused == {point for point in range(sys.maxunicode + 1) if forbidden_in(chr(point)) is not None}
    # Control, separators, directional, deprecated, surrogates, noncharacters, byte order mark, annotation.
    assert len(refused) == 65 + 2 + 9 + 6 + 2048 + 66 + 1 + 3


def test_what_release_0_1_0_accepted_is_accepted() -> None:
    assert not [chr(point) for point in range(sys.maxunicode + 1) if chr(point).isprintable() and forbidden_in(chr(point))]


def test_the_protocol_lists_the_same_ranges() -> None:
    page = (ROOT / "docs" / "protocol.md").read_text("utf-8")
    rows = re.findall(r"^\| U\+([0-9A-F]{4})(?: to U\+([0-9A-F]{4}))? \|", page, re.MULTILINE)
    listed = {(int(first, 16), int(last or first, 16)) for first, last in rows}
    assert listed == {(first, last) for first, last, _what in FORBIDDEN if first & 0xFFFE != 0xFFFE}
    assert "U+FFFE and U+FFFF, and the last two of each further plane" in page


def test_the_script_makes_these_texts() -> None:
    from tests.vectors.make_vectors import files

    assert files()["texts.json"] == VECTORS
