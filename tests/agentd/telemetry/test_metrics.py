"""The metrics have exactly the names that the requirements give them, and any Prometheus parser reads them."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agentd.base.counters import Counters
from agentd.telemetry.metrics import Gauges, Metrics

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
    started_at=1.75e9, written_at=1.76e9,
)  # fmt: skip
COUNTERS = Counters(
    rotations=7, rotations_failed=8, validations=9, validations_failed=10, unauthorized=11, refused_requests=12, contacts=13,
    contacts_failed=14, degraded_s=15.5,
)  # fmt: skip


def samples(text: bytes) -> dict[str, float]:
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text.decode()):
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
            "unauthorized_total": 11, "refused_requests_total": 12, "clock_suspect": 1, "connections": 3,
            "audit_records_total": 4, "audit_counted_total": 5, "audit_failing": 0, "tpm_nv_writes_total": 6,
            "contacts_total": 13, "contacts_failed_total": 14, "degraded_seconds_total": 15.5, "last_contact": 1.7e9,
            "revocations_stale": 1, "certificate_ends": 1.9e9, "log_lines_dropped_total": 16, "server_time_held": 1,
            "server_time_provisional": 0,
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
