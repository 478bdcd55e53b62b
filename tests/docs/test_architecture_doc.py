"""docs/architecture.md against the tree: each file that it names exists, each cited name is in its file."""

import ast
import functools
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text("utf-8")
BUILT, _, PLANNED = TEXT.partition("\n## Planned rooms\n")
PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
CITED = re.findall(r"`([\w/]+\.py): ([\w.]+)`", BUILT)
PATHS = sorted(set(re.findall(r"`([\w-]+/[\w/.-]*)(?:: [\w.]+)?`", BUILT)))


@functools.cache
def names(path: Path) -> set[str]:
    """What a file defines: functions, classes, constants, and methods with their class."""
    found: set[str] = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]
            found |= {f"{node.name}.{method.name}" for method in methods}
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_the_page_cites_files_and_names() -> None:
    assert len(CITED) > 70 and len(PATHS) > 80


def test_a_path_on_the_page_exists() -> None:
    assert [path for path in PATHS if not (ROOT / path).exists()] == []


def test_a_cited_name_is_in_its_file() -> None:
    assert [(path, name) for path, name in sorted(set(CITED)) if name not in names(ROOT / path)] == []


def test_a_question_has_one_file_or_two() -> None:
    section = BUILT.partition("\n## Where is the rule that decides …\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| …")]
    assert len(rows) >= 30
    for question, where in rows:
        files = set(re.findall(r"`([\w/]+\.py)", where))
        assert 1 <= len(files) <= 2, question


def test_every_folder_of_the_program_and_every_room_is_on_the_page() -> None:
    rooms = [path.parent for part in ("agentd", "server") for path in (ROOT / part).glob("*/__init__.py")]
    wanted = [f"`{name}/`" for name in PACKAGES] + [f"`{room.relative_to(ROOT)}/`" for room in rooms]
    assert len(wanted) > 25
    assert [name for name in wanted if f"| {name} |" not in BUILT] == []


def test_what_is_planned_is_not_built() -> None:
    places = re.findall(r"^\| `([\w/]+)` \|", PLANNED, re.MULTILINE)
    assert len(places) >= 3  # the search finds the rows; each one that is built leaves
    assert [place for place in places if (ROOT / place).exists()] == []
