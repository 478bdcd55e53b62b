"""The documents against the tree: what they name exists, and what exists is named."""

import re
import tomllib
from pathlib import Path

import pytest

from agentd.base.config.config import known_keys

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
# A copy of the ids, so that none can be dropped from the page unnoticed.
IDS = [
    f"{kind}-{number:02d}"
    for kind, count in (("LA", 24), ("OT", 12), ("PV", 5), ("FL", 9), ("OP", 9), ("LS", 12), ("UX", 7))
    for number in range(1, count + 1)
]
STATES = ("works", "partly", "not built yet")


def _text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def _rows(text: str) -> list[list[str]]:
    """The cells of all table rows."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")]


def _requirements() -> dict[str, list[str]]:
    return {row[0]: row for row in _rows(_text("docs/project/requirements.md")) if re.fullmatch(r"[A-Z]{2}-\d\d", row[0])}


def _project() -> dict:
    return tomllib.loads(_text("pyproject.toml"))["project"]


def test_every_requirement_has_its_row_and_no_other_has() -> None:
    assert list(_requirements()) == IDS


@pytest.mark.parametrize("requirement", IDS)
def test_a_row_has_all_cells_and_a_known_state(requirement: str) -> None:
    row = _requirements()[requirement]
    assert len(row) == 5 and all(row)
    state, tests = row[4].rstrip(" |"), row[3]
    assert state.startswith(STATES)
    if not state.startswith("not built yet"):
        assert tests != "-"


@pytest.mark.parametrize("requirement", IDS)
def test_the_files_that_a_row_names_exist(requirement: str) -> None:
    _, _, where, tests, _ = _requirements()[requirement]
    for path in [path for cell in (where, tests) for path in cell.split(", ") if path != "-"]:
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_tests_that_a_page_names_exist(page: Path) -> None:
    for path in re.findall(r"\btests/[\w/]+\.py\b", page.read_text("utf-8")):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def _anchors(page: Path) -> set[str]:
    """The fragments that the headings of a page get on GitHub."""
    text = re.sub(r"^(```).*?^\1", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", head)).lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_a_heading(page: Path) -> None:
    for target, fragment in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text("utf-8")):
        if "://" not in target:
            assert fragment in _anchors(page.parent / target if target else page), f"{target}#{fragment}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_that_a_page_names_exist(page: Path) -> None:
    scripts = set(_project()["scripts"]) | set(tomllib.loads(_text("packaging/client/pyproject.toml"))["project"]["scripts"])
    tools = {"pytest", "python"}
    text = page.read_text("utf-8")
    for name in re.findall(r"\.venv/bin/([\w-]+)", text):
        assert name in scripts | tools, name
    for path in re.findall(r"(?<![\w/.])(scripts/(?:\w+/)*[\w-]+(?:\.py)?|\.ci/\w+)\b", text):
        assert (ROOT / path).is_file(), path
    for name in re.findall(r"(?<![\w/.-])license-(?:agent-cli|agent-client|server|stand)(?![\w.-])", text):
        assert name in scripts, name


def test_the_readme_begins_with_the_two_commands() -> None:
    lines = _text("README.md").splitlines()
    commands = [line.strip() for line in lines if line.startswith("    ")]
    assert commands[0].startswith("scripts/demo") and commands[1].startswith("scripts/test")


def test_the_readme_names_every_folder_of_the_program() -> None:
    packages = tomllib.loads(_text("pyproject.toml"))["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    text = _text("README.md")
    assert [name for name in packages if f"    {name}/ " not in text] == []


def test_every_configuration_key_has_its_row_and_no_other_has() -> None:
    found = {
        (row[0].strip("`[]"), row[1].strip("`"))
        for row in _rows(_text("docs/reference.md"))
        if re.fullmatch(r"`\[\w+\]`", row[0])
    }
    assert found == {(section, key) for section, keys in known_keys().items() for key in keys}


def test_every_direct_dependency_is_in_the_register() -> None:
    project = _project()
    wanted = [*project["dependencies"], *(entry for extra in project["optional-dependencies"].values() for entry in extra)]
    names = {re.split(r"[><=~!\[ ]", entry)[0] for entry in wanted}
    registered = {name for row in _rows(_text("docs/dependencies.md")) for name in row[:2]}
    assert names - registered == set()


def test_every_debian_package_is_in_the_register() -> None:
    script = _text("scripts/bootstrap")
    found = re.search(r'^packages="([^"]+)"', script, re.MULTILINE)
    assert found is not None
    names = set(found[1].replace("\\\n", " ").split())
    registered = {name for row in _rows(_text("docs/dependencies.md")) for name in row[0].split(", ")}
    assert names - registered == set()


def test_threats_are_numbered_without_a_gap_and_t5_is_what_the_code_cites() -> None:
    text = _text("docs/threat-model.md")
    numbers = [int(number) for number in re.findall(r"^\*\*T(\d+): ", text, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert "**T5: roll the disk image back.**" in text and "threat-model T5" in _text("hwsec/storeformat.py")


DECISIONS = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))


def test_every_decision_is_in_the_index_with_its_title_and_status_and_no_other_is() -> None:
    rows = [row for row in _rows(_text("docs/adr/README.md")) if row[0].startswith("[")]
    index = [re.fullmatch(r"\[(\d+)\]\((.+)\)", row[0]) for row in rows]
    assert [match and (int(match[1]), match[2]) for match in index] == [(int(page.name[:4]), page.name) for page in DECISIONS]
    for row, page in zip(rows, DECISIONS, strict=True):
        head = re.match(rf"# {int(page.name[:4])}\. (.+)\n\nStatus: (accepted|superseded)\b.*\.\n\n", page.read_text("utf-8"))
        assert head is not None and row[1:3] == [head[1], head[2]] and row[3], page.name


def test_decisions_are_short() -> None:
    pages = DECISIONS
    assert len(pages) >= 8
    for page in pages:
        text = page.read_text("utf-8")
        assert len(text.splitlines()) <= 40, page.name
        assert all(part in text for part in ("## Context", "## Decision", "## Consequences")), page.name
