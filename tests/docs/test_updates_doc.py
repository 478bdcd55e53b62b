"""What docs/protocol.md says of updates is what the forms are."""

import ipaddress
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

from contracts.directive import DIRECTIVE_TYPE, MAX_DIRECTIVE_CHARS, Day, DeploymentWindow, Directive
from installer.config import parse_config as products_of
from link.config import parse_config as link_of
from updatetrust import metadatafiles as files
from updatetrust.judgement import Code
from updatetrust.metadata import FLOORS, MAX_METADATA_VERSION, Fault
from updatetrust.target import MAX_NOTES_CHARS, MAX_TARGETS_PER_ROLE, RESERVED_HARDWARE, Custom, Kind

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "protocol.md").read_text("utf-8")
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


def test_every_member_of_custom_is_in_its_table() -> None:
    text = section("Targets")
    assert tables(text)[0] == list(Custom.__struct_fields__)
    assert ", ".join(f"`{kind}`" for kind in Kind) in text and f"at most {MAX_NOTES_CHARS:,} characters" in text
    assert all(f"`{word}`" in text for word in RESERVED_HARDWARE)


def test_every_reason_is_in_its_table_in_the_order_of_the_checks() -> None:
    cells = tables(section("Reasons for which a package is not installed"))[0]
    assert [name for cell in cells for name in re.findall(r"[a-z]+(?:-[a-z]+)+", cell)] == [code.value for code in Code]


def test_the_bounds_and_codes_of_metadata_are_in_their_tables() -> None:
    text = section("The update repository")
    _, bounds, codes = re.findall(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE)
    values = [line.strip("| ").split(" | ")[1].removesuffix(" |").removesuffix(" bytes") for line in bounds.splitlines()[2:]]
    sizes = [files.MAX_ROOT_BYTES, files.MAX_TIMESTAMP_BYTES, files.MAX_SNAPSHOT_BYTES, files.MAX_ROLE_BYTES]
    sizes += [files.MAX_TOTAL_BYTES, MAX_TARGETS_PER_ROLE]
    assert values == [str(files.MAX_ROOTS), str(MAX_METADATA_VERSION), *(f"{size:,}" for size in sizes)]
    assert tables(codes)[0] == [fault.value for fault in Fault]
    assert f"a member `{FLOORS}`" in text and f"at most {files.MAX_ROLES} roles" in text


def test_the_files_of_the_guide_are_accepted() -> None:
    guide = (ROOT / "docs/guides/updates.md").read_text("utf-8")
    blocks = [textwrap.dedent(block) for block in re.findall(r"(?m)(?:^ {7}\S.*\n)+", guide)]
    (products,) = (block for block in blocks if block.startswith("[product.pos]"))
    pos = products_of(products, user=lambda _name: 1001).products["pos"]
    unit = next(block for block in blocks if "ExecStart=" in block)
    assert f"WorkingDirectory={pos.directory}/current\n" in unit and any(f"{pos.directory}/slots/a" in each for each in blocks)
    (ota,) = (block for block in blocks if block.startswith("[upstream.ota]"))
    link = (ROOT / "packaging/etc/link.toml").read_text("utf-8")
    found = link_of(f"{link}\n[updater]\nuser = 1\n{ota}", "link.toml", user=lambda _name: 1001)
    assert found.upstreams["ota"].ca_file is not None
    address = re.findall(r"(?m)^IPAddressAllow=(.*)$", "\n".join(blocks))
    assert address and all(ipaddress.ip_address(each) for each in address)
