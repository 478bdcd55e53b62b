"""Every list of our folders names the same ones: wheel, types, import contracts, Debian packages."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]
FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name not in ("bench", "tests"))
RULES = (ROOT / "packaging" / "debian" / "rules").read_text("utf-8")


def needed(modules: set[str]) -> set[str]:
    """Our folders that these, and what they import, consist of."""
    found: set[str] = set()
    while todo := modules - found:
        for folder in todo:
            found.add(folder)
            for path in (ROOT / folder).rglob("*.py"):
                for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
                        names = [node.module]
                    modules |= {name.split(".")[0] for name in names} & set(FOLDERS)
    return found


@pytest.mark.parametrize(
    ("named", "folders"),
    [
        (PROJECT["hatch"]["build"]["targets"]["wheel"]["packages"], FOLDERS),
        (PROJECT["mypy"]["packages"], sorted([*FOLDERS, "bench"])),  # the benchmark is no part of the program, and is typed
        (PROJECT["importlinter"]["root_packages"], FOLDERS),
    ],
    ids=["wheel", "mypy", "import-linter"],
)
def test_pyproject_names_every_folder(named: list[str], folders: list[str]) -> None:
    assert named == folders


def test_common_is_held_apart_from_every_other_folder() -> None:
    contracts = {contract["name"]: contract for contract in PROJECT["importlinter"]["contracts"]}
    forbidden = contracts["common imports nothing of ours"]["forbidden_modules"]
    assert sorted([*forbidden, "common"]) == FOLDERS


@pytest.mark.parametrize("package", ["AGENT", "SERVER", "MANAGE"])
def test_a_debian_package_has_what_its_programs_import_and_nothing_else(package: str) -> None:
    found = re.search(rf'install-tree \$\({package}\) .*?"([\w ]+)"((?:\s+\\?\s*\S+=[\w.]+)+)', RULES, re.DOTALL)
    assert found is not None
    programs = {module.split(".")[0] for module in re.findall(r"=([\w.]+)", found[2])}
    assert programs
    assert set(found[1].split()) == needed(programs)
