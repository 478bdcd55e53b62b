"""Where things are: the TPM library in one package, and tables that are pure."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import READY_S

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("agentd", "audittrail", "cli", "common", "contracts", "hwsec", "ipc", "server", "settings", "stand")
PURE = (
    "hwsec.pcr.policy",
    "hwsec.pcr.files",
    "hwsec.nv.budget",
    "hwsec.nv.layout",
    "hwsec.errors",
    "hwsec.statements",
    "hwsec.sealedblob",
    "hwsec.tpm2.codes",
)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            found.add(node.module.split(".")[0])
    return found


def test_one_file_imports_the_tpm_library() -> None:
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert paths
    assert [str(path.relative_to(ROOT)) for path in paths if "tpm2_pytss" in imports(path)] == ["hwsec/tpm2/library.py"]


@pytest.mark.parametrize("module", [*PURE, "hwsec.tpm"])
def test_importing_needs_no_tpm_library(module: str) -> None:
    script = f"import sys; sys.modules['tpm2_pytss'] = None; import {module}"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=READY_S, check=False).returncode == 0
