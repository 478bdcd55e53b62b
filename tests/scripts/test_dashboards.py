"""The Grafana dashboards: what is committed is what the builder makes, each query runs, and each metric in it exists."""

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from scripts import docs_tables
from scripts.grafana import __main__ as builder
from scripts.grafana import findings, server
from tests.docs.test_docs import _anchors

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("license-agent", "license-server")
METRICS = {"license-agent": docs_tables.agent_metrics, "license-server": docs_tables.server_metrics}
NOT_SHOWN = {
    "license_agent_rotations_failed": "license_agent_rotations_failed_total",
    "license_agent_validations_failed": "license_agent_validations_failed_total",
    "license_agent_last_rotation": "license_agent_last_rotation_timestamp_seconds",
    "license_agent_last_contact": "license_agent_last_contact_timestamp_seconds",
    "license_agent_certificate_ends": "license_agent_certificate_expiry_timestamp_seconds",
    "license_agent_tpm_lockout_counter": "license_agent_tpm_lockout_failures",
    "license_server_days_remaining": "license_server_key_expiry_timestamp_seconds",
}
"""Former and required names, and the metric that is shown in place of each."""
HOURS = 7
"""Longer than any window of a query that has to be full."""
GRAFANA = {"$__rate_interval": "5m", "$__range": "1h", "$instance": ".+"}


@dataclass(frozen=True)
class Query:
    """A query of a panel."""

    panel: str
    kind: str
    expr: str


@cache
def committed(program: str) -> dict:
    return json.loads((builder.PLACE / f"{program}.json").read_text("utf-8"))


def panels(program: str) -> Iterator[dict]:
    for panel in committed(program)["panels"]:
        yield panel
        yield from panel.get("panels", [])


def queries(program: str) -> list[Query]:
    return [
        Query(panel["title"], panel["type"], target["expr"]) for panel in panels(program) for target in panel.get("targets", [])
    ]


def asked(query: Query) -> str:
    """A query as Grafana sends it."""
    expr = query.expr
    for variable, value in GRAFANA.items():
        expr = expr.replace(variable, value)
    assert "$" not in expr
    return expr


@pytest.mark.parametrize("name", builder.DASHBOARDS)
def test_what_is_committed_is_what_the_builder_makes(name: str) -> None:
    assert (builder.PLACE / name).read_text("utf-8") == builder.text_of(builder.DASHBOARDS[name]()), "run scripts/dashboards"


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_series_is_declared_and_every_declared_metric_is_shown(program: str) -> None:
    rows = METRICS[program]()
    declared = {row.name for row in rows}
    series = declared | {f"{row.name}_bucket" for row in rows if row.kind == "histogram"}
    series |= {f"{row.name}_{part}" for row in rows if row.kind == "summary" for part in ("sum", "count")}
    named = {name for query in queries(program) for name in re.findall(r"\b(?:license|cert|devices|fleet)_\w+", query.expr)}
    assert named <= series
    shown = {re.sub("_(bucket|sum|count)$", "", name) if name not in declared else name for name in named}
    assert declared - shown == {old for old in NOT_SHOWN if old.replace("_", "-").startswith(program)}
    assert {new for old, new in NOT_SHOWN.items() if old in declared} <= shown


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_panel_says_what_it_means_and_has_its_place(program: str) -> None:
    found = list(panels(program))
    assert len({panel["id"] for panel in found}) == len(found)
    for panel in found:
        if panel["type"] != "row":
            assert panel["description"].endswith("."), panel["title"]
            assert panel["targets"] and panel["datasource"]["uid"] == "${datasource}"


def test_every_alert_has_a_runbook_that_exists() -> None:
    rules = [rule for program in PROGRAMS for rule in findings.rules(program)]
    assert [rule.name for rule in rules] == list(findings.RUNBOOKS)
    for target in set(findings.RUNBOOKS.values()):
        page, _, fragment = target.partition("#")
        assert fragment in _anchors(ROOT / "docs" / page), target
    for program in PROGRAMS:
        table = next(panel for panel in panels(program) if panel["type"] == "table")
        assert "${docs}${__value.raw}" in json.dumps(table)
        assert all(rule.name in table["targets"][0]["expr"] for rule in findings.rules(program))


def test_the_objectives_are_those_of_the_alerts() -> None:
    found = {rule.name: rule.expr for rule in findings.rules("license-server")}
    assert found["LicenseServerSlow"].endswith(f"> {server.P95_S:g}") and "(0.95," in found["LicenseServerSlow"]
    assert found["LicenseServerVerySlow"].endswith(f"> {server.P99_S:g}") and "(0.99," in found["LicenseServerVerySlow"]


def made_up(program: str) -> dict[str, str]:
    """A series for every metric, of three machines: one on which all is well, one on which nothing is, one in GRACE."""
    steps = HOURS * 60
    series = {f'up{{instance="well",job="{program}"}}': f"1x{steps}"}
    for row in METRICS[program]():
        for machine in ("well", "ill", "grace"):
            labels = {
                name: {"outcome": "failed", "code": "rate_limited"}.get(name, "x")
                for name in row.labels
                if name not in ("job", "state")
            }
            labels |= {"exported_job": "keys"} if "job" in row.labels else {}
            labels |= {"instance": machine, "job": program}
            text = ",".join(f'{name}="{value}"' for name, value in labels.items())
            if row.kind == "histogram":
                for bound in ("0.1", "100", "+Inf"):
                    series[f'{row.name}_bucket{{{text},le="{bound}"}}'] = f"{'0x' if bound == '0.1' else '0+60x'}{steps}"
            elif row.kind == "summary":
                series |= {f"{row.name}_{part}{{{text}}}": f"0+60x{steps}" for part in ("sum", "count")}
            elif row.name.endswith("_total") or row.kind == "unknown":
                series[f"{row.name}{{{text}}}"] = f"0+60x{steps}"
            elif row.name.endswith("_timestamp_seconds") and machine == "well":
                far = "expiry" in row.name
                series[f"{row.name}{{{text}}}"] = f"9e9x{steps}" if far else f"0+60x{steps}"
            elif row.name.endswith("_timestamp_seconds"):
                series[f"{row.name}{{{text}}}"] = f"{HOURS * 3600 + 60 if 'expiry' in row.name else 60}x{steps}"
            elif row.name.endswith("start_time_seconds"):
                series[f"{row.name}{{{text}}}"] = f"0+{0 if machine == 'well' else 1}x{steps}"
            else:
                value = 0 if machine == "ill" or (machine == "grace" and "active" in row.name) else 1
                series[f"{row.name}{{{text}}}"] = f"{value}x{steps}"
    return series


def run(tmp_path: Path, series: dict[str, str], tests: list[tuple[str, list[dict]]]) -> None:
    content = {
        "evaluation_interval": "1h",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {"expr": expr, "eval_time": f"{HOURS * 60}m", "exp_samples": samples} for expr, samples in tests
                ],
            }
        ],
    }
    file = tmp_path / "queries.json"
    file.write_text(json.dumps(content), "utf-8")
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.system
@pytest.mark.parametrize("program", PROGRAMS)
def test_prometheus_answers_each_query(program: str, tmp_path: Path) -> None:
    something = [{"labels": "{}", "value": 1}]
    run(tmp_path, made_up(program), [(f"count({asked(query)}) > bool 0", something) for query in queries(program)])


@pytest.mark.system
@pytest.mark.parametrize("program", PROGRAMS)
def test_where_nothing_is_seen_no_number_looks_good(program: str, tmp_path: Path) -> None:
    numbers = [query for query in queries(program) if query.kind == "stat"]
    assert len(numbers) >= 6
    run(tmp_path, {'unrelated{instance="x"}': "1x10"}, [(asked(query), []) for query in numbers])


@pytest.mark.system
def test_the_table_names_machine_finding_and_runbook_and_the_numbers_agree(tmp_path: Path) -> None:
    found = {query.panel: asked(query) for query in queries("license-agent") if query.kind in ("stat", "table")}
    series = {f'license_agent_up{{instance="{name}"}}': f"{up}x{HOURS * 60}" for name, up in (("ill", 0), ("well", 1))}
    table = found.pop("What is wrong, where, and what to do")
    runbook = findings.RUNBOOKS["LicenseAgentStopped"]
    row = [{"labels": f'{{finding="LicenseAgentStopped",instance="ill",runbook="{runbook}"}}', "value": 4}]
    wanted = {"Agents": 2, "Do not work": 1, "Need attention": 0, "Fine": 1, "Silent": 0, "Work without their server": 0}
    assert wanted.keys() == found.keys()
    run(
        tmp_path,
        series,
        [(table, row), *((expr, [{"labels": "{}", "value": wanted[name]}]) for name, expr in found.items())],
    )
