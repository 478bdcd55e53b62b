"""Prometheus' own tool finds nothing wrong with the server's metrics and alert rules, and the rules name metrics that exist."""

import re
import subprocess
from pathlib import Path

import pytest

from server.api.metrics import Facts, JobFacts, Metrics

pytestmark = pytest.mark.system

RULES = Path(__file__).parents[3] / "packaging" / "prometheus" / "license-server.rules.yml"
FORMER = b"license_server_days_remaining"
"""Breaks the convention (days are no base unit) and stays for those whose dashboards have it."""


def everything() -> bytes:
    jobs = [JobFacts("housekeeping", 5, 1_799_999_000, 2)]
    metrics = Metrics(
        lambda: Facts({"active": 1}, {"tls": 2_000_000_000}, 1, True, jobs, frozenset({"tls"}), {"root": 1_900_000_000}),
        lambda: 1_800_000_000.5,
    )
    metrics.count("challenge", 200, None, 0.1)
    metrics.count("challenge", 429, "rate_limited", 0.1)
    return metrics.text()


def test_the_metrics_follow_the_conventions_but_for_one_former_name() -> None:
    text = b"".join(line for line in everything().splitlines(keepends=True) if FORMER not in line)
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
    assert len(everything()) > len(text)


def test_times_are_in_the_base_unit() -> None:
    lines = everything().decode().splitlines()
    assert 'license_server_key_expiry_timestamp_seconds{name="tls"} 2e+09' in lines
    assert 'license_server_key_successor_ready{name="tls"} 1.0' in lines
    assert 'license_server_update_metadata_expiry_timestamp_seconds{role="root"} 1.9e+09' in lines
    assert "license_server_start_time_seconds 1.8000000005e+09" in lines
    assert "license_server_agents_halted 1.0" in lines


def test_prometheus_takes_the_rules_and_they_name_what_there_is() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    named = set(re.findall(r"license_server_\w+", RULES.read_text()))
    there = {re.split(r"[ {]", line)[0] for line in everything().decode().splitlines() if not line.startswith("#")}
    assert named and named <= there
