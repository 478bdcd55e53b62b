"""Prometheus' own tool finds nothing wrong with the metrics and the alert rules, and the rules name metrics that exist."""

import re
import subprocess
from pathlib import Path

import pytest

from agentd.base.counters import Counters
from agentd.telemetry.metrics import Gauges, Metrics
from common.histogram import Histogram
from hwsec.tpm2.transport import COMMAND_BOUNDS

pytestmark = pytest.mark.system

RULES = Path(__file__).parents[3] / "packaging" / "prometheus" / "license-agent.rules.yml"
FORMER = "license_agent_tpm_lockout_counter"
"""Breaks the convention and stays for those whose dashboards have it."""


def everything() -> bytes:
    gauges = Gauges(
        **{**dict.fromkeys(Gauges.__slots__, 0), "tpm_state": "available", "tpm_commands": Histogram(COMMAND_BOUNDS)}
    )
    return Metrics(Counters(), lambda: gauges).render()


def test_the_metrics_follow_the_conventions_but_for_one_former_name() -> None:
    text = b"".join(line for line in everything().splitlines(keepends=True) if FORMER.encode() not in line)
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
    assert len(everything()) > len(text)


def test_prometheus_takes_the_rules_and_they_name_what_there_is() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    named = set(re.findall(r"license_agent_\w+", RULES.read_text()))
    there = {re.split(r"[ {]", line)[0] for line in everything().decode().splitlines() if not line.startswith("#")}
    assert named and named <= there
