"""The metrics have exactly the names that the requirements give them, and any Prometheus parser reads them."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from agentd.base.counters import Counters
from agentd.ota.table import Step
from agentd.telemetry.metrics import (
    METRICS,
    OTA_METRICS,
    OTA_STATE_TEXT,
    PREFIX,
    TPM_METRICS,
    TPM_STATE_TEXT,
    Declared,
    Gauges,
    Metrics,
)
from common.histogram import Histogram
from hwsec.errors import BackendState

REQUIRED = [
    "secrets_active",
    "secrets_grace",
    "rotations_total",
    "rotations_failed",
    "validations_total",
    "validations_failed",
    "degraded_mode",
    "tpm_available",
    "last_rotation",
]
GAUGES = Gauges(
    secrets_active=1, secrets_grace=2, degraded=True, tpm_available=False, last_rotation=1.8e9, clock_suspect=True,
    connections=3, audit_records=4, audit_counted=5, audit_failing=False, nv_writes=6, last_contact=1.7e9,
    revocations_stale=True, certificate_ends=1.9e9, log_lines_dropped=16, server_time_held=True,
    started_at=1.75e9, written_at=1.76e9, webhook_waiting=17, webhook_dead=18, webhook_oldest=1.77e9,
    audit_unsealed=24, audit_sealed_at=1.78e9,
)  # fmt: skip
COUNTERS = Counters(
    rotations=7, rotations_failed=8, validations=9, validations_failed=10, unauthorized=11, refused_requests=12, contacts=13,
    refused_administrators=17,
    contacts_failed=14, degraded_s=15.5, webhook_delivered=19, webhook_failed=20, webhook_dropped=21,
    rate_limited=22, rate_limited_users=23,
)  # fmt: skip


def samples(text: bytes) -> dict[str, float]:
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text.decode()):
        if family.type == "histogram":
            continue
        for sample in family.samples:
            assert sample.name not in found
            assert sample.labels == {}
            found[sample.name] = sample.value
    return found


def test_every_name_is_there_with_its_value() -> None:
    assert samples(Metrics(COUNTERS, lambda: GAUGES).render()) == {
        f"license_agent_{name}": value
        for name, value in {
            "secrets_active": 1, "secrets_grace": 2, "rotations_total": 7, "rotations_failed": 8, "validations_total": 9,
            "validations_failed": 10, "degraded_mode": 1, "tpm_available": 0, "last_rotation": 1.8e9,
            "refused_administrators_total": 17,
            "unauthorized_total": 11, "refused_requests_total": 12, "clock_suspect": 1, "connections": 3,
            "audit_records_total": 4, "audit_counted_total": 5, "audit_failing": 0, "tpm_nv_writes_total": 6,
            "contacts_total": 13, "contacts_failed_total": 14, "degraded_seconds_total": 15.5, "last_contact": 1.7e9,
            "revocations_stale": 1, "certificate_ends": 1.9e9, "log_lines_dropped_total": 16, "server_time_held": 1,
            "server_time_provisional": 0,
            "licenses_held": 0,
            "licenses_suspended": 0,
            "usage_counters_unreported": 0,
            "rate_limited_total": 22, "rate_limited_users": 23, "audit_unsealed_records": 24,
            "audit_checkpoint_timestamp_seconds": 1.78e9,
            "webhook_waiting": 17, "webhook_dead_letters": 18, "webhook_oldest_timestamp_seconds": 1.77e9,
            "webhook_delivered_total": 19, "webhook_failed_total": 20, "webhook_dropped_total": 21,
            "up": 1, "start_time_seconds": 1.75e9, "metrics_written_timestamp_seconds": 1.76e9, "rotations_failed_total": 8,
            "validations_failed_total": 10, "last_rotation_timestamp_seconds": 1.8e9,
            "last_contact_timestamp_seconds": 1.7e9, "certificate_expiry_timestamp_seconds": 1.9e9,
        }.items()
    }  # fmt: skip


@pytest.mark.parametrize("name", REQUIRED)
def test_the_text_has_the_required_name_on_a_line_of_its_own(name: str) -> None:
    lines = Metrics(Counters(), lambda: GAUGES).render().decode().splitlines()
    assert sum(line.startswith(f"license_agent_{name} ") for line in lines) == 1
    assert not any(line.startswith("license_agent_") and "_created" in line for line in lines)


def test_each_rendering_asks_anew() -> None:
    counters = Counters()
    metrics = Metrics(counters, lambda: GAUGES)
    before = metrics.render()
    counters.validations += 1
    assert samples(before)["license_agent_validations_total"] == 0
    assert samples(metrics.render())["license_agent_validations_total"] == 1


TPM_GAUGES = replace(
    GAUGES,
    tpm_state="available",
    hierarchies_open=2,
    lockout_counter=3,
    unfitting_answers=1,
    tpm_commands=Histogram((0.5, 2.0)),
    ota_state="proving",
    ota_attempts=2,
    ota_installed=1_800_000_000.0,
)


class FromTheLibrary:
    """The same values as prometheus_client renders them."""

    def collect(self) -> Iterator[Metric]:
        for declared in METRICS:
            yield from self.one(declared.name, declared.kind, declared.text, declared.value(COUNTERS, TPM_GAUGES))
        states = Metric(f"{PREFIX}tpm_state", TPM_STATE_TEXT, "gauge")
        for state in BackendState:
            states.add_sample(states.name, {"state": state.value}, float(state.value == "available"))
        yield states
        for declared in TPM_METRICS:
            yield from self.one(declared.name, declared.kind, declared.text, declared.value(COUNTERS, TPM_GAUGES))
        steps = Metric(f"{PREFIX}ota_state", OTA_STATE_TEXT, "gauge")
        for step in Step:
            steps.add_sample(steps.name, {"state": step.value}, float(step.value == "proving"))
        yield steps
        for declared in OTA_METRICS:
            yield from self.one(declared.name, declared.kind, declared.text, declared.value(COUNTERS, TPM_GAUGES))

    def one(self, name: str, kind: str, text: str, value: float | Histogram | None) -> Iterator[Metric]:
        if isinstance(value, Histogram):
            yield HistogramMetricFamily(PREFIX + name, text, list(value.cumulative()), value.sum)
        elif value is not None:
            metric = Metric(PREFIX + (name.removesuffix("_total") if kind == "counter" else name), text, kind)
            metric.add_sample(PREFIX + name, {}, float(value))
            yield metric


def test_the_text_is_what_the_library_renders_but_for_the_form_of_large_numbers() -> None:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(FromTheLibrary())  # type: ignore[arg-type]
    ours = Metrics(COUNTERS, lambda: TPM_GAUGES).render().decode().splitlines()
    theirs = generate_latest(registry).decode().splitlines()
    assert len(ours) == len(theirs) > 100
    for mine, other in zip(ours, theirs, strict=True):
        if mine.startswith("#"):
            assert mine == other
        else:
            (name, value), (other_name, other_value) = mine.rsplit(" ", 1), other.rsplit(" ", 1)
            assert (name, float(value)) == (other_name, float(other_value))


@pytest.mark.parametrize("declared", (*METRICS, *TPM_METRICS, *OTA_METRICS), ids=lambda declared: declared.name)
def test_no_declaration_needs_an_escape(declared: Declared) -> None:
    assert declared.text.isprintable() and "\\" not in declared.text
    assert declared.name.isidentifier() and (declared.kind != "counter" or declared.name.endswith("_total"))


@pytest.mark.system
def test_the_core_loads_no_http_and_no_tpm_before_it_is_configured() -> None:
    code = "import sys; sys.path.insert(0, '.'); import agentd.main; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert "agentd.telemetry.metrics" in loaded
    unwanted = {
        "http",
        "socketserver",
        "wsgiref",
        "urllib.request",
        "httpx",
        "prometheus_client",
        "hwsec.tpm",
        "tpm2_pytss",
        "email.parser",
    }
    assert not loaded & unwanted


def test_durations_are_counted_by_their_bounds() -> None:
    made = Histogram((0.1, 1.0))
    for seconds in (-1.0, 0.1, 0.2, 1.0, 1.1, 50.0):
        made.observe(seconds)
    assert list(made.cumulative()) == [("0.1", 2), ("1.0", 4), ("+Inf", 6)]
    assert made.sum == pytest.approx(52.4)
    counters = Counters()
    counters.contact_s.observe(3.0)
    lines = Metrics(counters, lambda: GAUGES).render().decode().splitlines()
    assert 'license_agent_contact_duration_seconds_bucket{le="5.0"} 1.0' in lines
    assert 'license_agent_contact_duration_seconds_bucket{le="2.5"} 0.0' in lines
    assert "license_agent_contact_duration_seconds_sum 3.0" in lines
