"""What docs/protocol.md says of updates is what the forms are."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from contracts.directive import DIRECTIVE_TYPE, MAX_DIRECTIVE_CHARS, Day, DeploymentWindow, Directive

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text("utf-8")
PART = PAGE.partition("\n## Updates\n")[2].partition("\n## ")[0]


def section(title: str) -> str:
    """The text under a heading of the third level."""
    found = PART.partition(f"\n### {title}\n")[2]
    assert found, title
    return found.partition("\n### ")[0]


def tables(text: str) -> list[list[str]]:
    """The first cells of every table."""
    return [
        [line.strip("| ").split(" | ")[0].strip("` ") for line in block.splitlines()[2:]]
        for block in re.findall(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE)
    ]


@pytest.mark.parametrize(("place", "form"), list(enumerate([Directive, DeploymentWindow])))
def test_every_member_is_in_its_table(place: int, form: type[Any]) -> None:
    assert tables(section("Directives"))[place] == list(form.__struct_fields__)


def test_the_header_and_the_bound_are_there() -> None:
    text = " ".join(section("Directives").split())
    assert f"`{DIRECTIVE_TYPE}`" in text and f"at most {MAX_DIRECTIVE_CHARS:,} characters" in text
    assert ", ".join(f"`{day}`" for day in Day) in text


def test_the_vectors_that_the_page_names_are_there() -> None:
    (name,) = re.findall(r"\]\(\.\./(tests/vectors/\w+\.json)\)", section("Directives"))
    assert json.loads((Path(__file__).parents[2] / name).read_text("utf-8"))["accepted"]
