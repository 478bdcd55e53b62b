"""The example in docs/hwsec.md works as it stands there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_example_runs(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "hwsec.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    keys, directory = tmp_path / "keys", tmp_path / "state"
    keys.mkdir()
    directory.mkdir()
    seen: list[bytes] = []
    names = {"keys": keys, "directory": directory, "use": lambda view: seen.append(bytes(view))}
    exec(compile(code, "docs/hwsec.md", "exec"), names)
    assert len(seen[0]) == 32 and seen[0] != bytes(32)
    assert names["generation"] == 2


def test_the_modules_it_names_exist() -> None:
    text = (ROOT / "docs" / "hwsec.md").read_text("utf-8")
    modules = set(re.findall(r"hwsec\.([a-z0-9]+(?:\.[a-z0-9]+)?)(?!\w)", text))
    assert modules >= {"tpm", "software", "store", "vault", "secretmem", "owner", "pcr.policy", "errors"}
    assert all((ROOT / "hwsec" / f"{name.replace('.', '/')}.py").is_file() for name in modules)
