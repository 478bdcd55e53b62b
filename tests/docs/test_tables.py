"""The generated tables on the pages are what the code declares now; `scripts/docs-tables` rewrites them."""

import re
import subprocess
from pathlib import Path

import pytest

from agentd.base.counters import Counters
from agentd.telemetry.metrics import Gauges, Metrics
from common.histogram import Histogram
from scripts import docs_tables
from tests.docs.test_protocol_doc import rows

ROOT = Path(__file__).resolve().parents[2]
PAGE = docs_tables.PAGE.read_text("utf-8")


def test_the_page_has_the_tables_that_the_code_declares() -> None:
    assert docs_tables.rendered(PAGE) == PAGE, "run scripts/docs-tables"


@pytest.mark.parametrize("name", docs_tables.TABLES)
def test_a_changed_row_is_noticed_and_rewritten(name: str) -> None:
    found = docs_tables.block(name).search(PAGE)
    assert found is not None and found[0].count("\n| `") >= 7
    lines = found[0].splitlines(keepends=True)
    spoiled = PAGE.replace(found[0], "".join([*lines[:-2], lines[-1]]))
    assert spoiled != PAGE and docs_tables.rendered(spoiled) == PAGE


def test_a_page_without_its_markers_is_an_error() -> None:
    with pytest.raises(ValueError, match="markers"):
        docs_tables.rendered(PAGE.replace("<!-- end of table -->\n", ""))


def test_every_metric_of_the_agent_is_in_the_table_with_its_type() -> None:
    gauges = Gauges(**{**dict.fromkeys(Gauges.__slots__, 0), "tpm_commands": Histogram((1.0,))})
    text = Metrics(Counters(), lambda: gauges).render().decode()
    types = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE"))
    names = list(types)
    found = docs_tables.block("metrics of the agent").search(PAGE)
    assert found is not None
    table = {re.split(r"\{", row[0].strip("`"))[0]: row[1].split(",")[0] for row in rows(found[0])}
    assert list(table) == names and table == types


@pytest.mark.system
def test_the_command_finds_nothing_to_do() -> None:
    done = subprocess.run([ROOT / "scripts" / "docs-tables", "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
