"""The guide about the dashboards names the files that the packages install, and its examples are accepted."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from scripts.grafana import __main__ as builder
from scripts.grafana import parts, server

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "guides" / "dashboards.md").read_text("utf-8")
EXAMPLES = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]


def test_the_files_are_where_the_packages_put_them() -> None:
    rules = (ROOT / "packaging" / "debian" / "rules").read_text("utf-8")
    installed = {f"{path}/{name}" for path, name in re.findall(r"\$\(\w+\)(/usr/share/[\w-]+/grafana)/([\w.-]+)", rules)}
    assert installed == set(re.findall(r"`(/usr/share/\S+\.json)`", PAGE))
    assert {Path(path).name for path in installed} == set(builder.DASHBOARDS)
    providers = EXAMPLES[2]["providers"]
    assert {provider["options"]["path"] for provider in providers} == {str(Path(path).parent) for path in installed}


def test_the_words_of_the_page_are_those_of_the_dashboards() -> None:
    assert f"`{parts.DOCS}`" in PAGE and f"{server.AVAILABLE:.1%}".replace("%", " %") in PAGE
    rows = [panel.title for build in builder.DASHBOARDS.values() for panel in build().build().panels if panel.type_val == "row"]
    closed = set(rows) - {"Verdict", "Golden signals"}
    table = PAGE[PAGE.index("| License agents | License server |") : PAGE.index("Graphs of single machines")]
    cells = {cell.strip() for line in table.splitlines()[2:] for cell in line.strip("| ").split("|")} - {""}
    assert cells == closed


@pytest.mark.system
def test_prometheus_takes_the_jobs(tmp_path: Path) -> None:
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(EXAMPLES[0]), "utf-8")
    done = subprocess.run(["promtool", "check", "config", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "license-server" in [job["job_name"] for job in EXAMPLES[0]["scrape_configs"]]
