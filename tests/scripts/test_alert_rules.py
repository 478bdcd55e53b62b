"""Each alert rule fires when it should and not before, in Prometheus' own engine; the severities are those of the catalogue."""

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from agentd.base.alerts import Severity

pytestmark = pytest.mark.system

PLACE = Path(__file__).parents[2] / "packaging" / "prometheus"
Series = dict[str, str]
"""Values of each series, a minute apart, as promtool writes them."""


@dataclass(frozen=True)
class Case:
    """A rule: the severity, series for which it fires at `at` minutes, and series for which it does not."""

    severity: str
    at: int
    fires: Series
    quiet: Series


def agent(**metrics: str) -> Series:
    return {f'license_agent_{name}{{instance="till"}}': values for name, values in metrics.items()}


def server(**metrics: str) -> Series:
    return {f'license_server_{name}{{instance="srv"}}': values for name, values in metrics.items()}


def buckets(name: str, quick: str, slow: str) -> Series:
    """A histogram of two buckets: what grows in the quick one, and what grows in all."""
    label = 'endpoint="status",' if name.startswith("license_server") else ""
    quick_le, slow_le = ("0.001", "0.025") if "validation" in name else ("1.0", "30.0")
    start = f'{name}_bucket{{{label}instance="x",le='
    return {f'{start}"{quick_le}"}}': quick, f'{start}"{slow_le}"}}': slow, f'{start}"+Inf"}}': slow}


CASES: dict[str, dict[str, Case]] = {
    "license-agent": {
        "LicenseAgentStopped": Case("critical", 10, agent(up="0x10"), agent(up="1x10")),
        "LicenseAgentMetricsStale": Case(
            "critical", 10, agent(up="1x10", metrics_written_timestamp_seconds="0x10"),
            agent(up="1x10", metrics_written_timestamp_seconds="0+60x10"),
        ),
        "LicenseAgentRestartsOften": Case(
            "medium", 30, agent(start_time_seconds="0 1 2 3 4 4x30"), agent(start_time_seconds="0 1 2 3 3x30")
        ),
        "LicenseAgentAuditFailing": Case("critical", 5, agent(audit_failing="1x10"), agent(audit_failing="0x10")),
        "LicenseAgentDegraded": Case(
            "high", 1441, agent(degraded_mode="1x1500"), agent(degraded_mode="1x700 0x2 1x800")
        ),
        "LicenseAgentTpmUnavailable": Case(
            "high", 10, {'license_agent_tpm_state{instance="till",state="available"}': "0x10"},
            {'license_agent_tpm_state{instance="till",state="available"}': "1x10"},
        ),
        "LicenseAgentBackupOverdue": Case("medium", 65, agent(backup_overdue="1x70"), agent(backup_overdue="1x30 0x40")),
        "LicenseAgentUpdatesLocked": Case(
            "high", 10, {'license_agent_ota_state{instance="till",state="locked"}': "1x20"},
            {'license_agent_ota_state{instance="till",state="locked"}': "0x20",
             'license_agent_ota_state{instance="till",state="proving"}': "1x20"},
        ),
        "LicenseAgentUpdateHindered": Case("medium", 65, agent(ota_hindered="1x70"), agent(ota_hindered="1x30 0x40")),
        "LicenseAgentRehearsalOverdue": Case(
            "low", 65, agent(ota_rehearsal_overdue="1x70"), agent(ota_rehearsal_overdue="1x30 0x40")
        ),
        "LicenseAgentClockSuspect": Case("medium", 10, agent(clock_suspect="1x10"), agent(clock_suspect="1x3 0x7")),
        "LicenseAgentServerTimeHeld": Case("medium", 50, agent(server_time_held="1x60"), agent(server_time_held="1x30 0x30")),
        "LicenseAgentUnauthorizedAccess": Case(
            "medium", 10, agent(unauthorized_total="0x5 1x10"), agent(unauthorized_total="5x20")
        ),
        "LicenseAgentCertificateEnds": Case(
            "high", 5, agent(certificate_expiry_timestamp_seconds="400000x5"),
            agent(certificate_expiry_timestamp_seconds="500000x5"),
        ),
        "LicenseAgentLogLinesDropped": Case(
            "low", 10, agent(log_lines_dropped_total="0x5 9x10"), agent(log_lines_dropped_total="9x20")
        ),
        "LicenseAgentNoUsableSecret": Case(
            "critical", 15, agent(secrets_active="0x20", secrets_grace="0x20"),
            agent(secrets_active="0x20", secrets_grace="1x20")
        ),
        "LicenseAgentRotationsFail": Case(
            "high", 600, agent(rotations_failed_total="0+0.01x700"), agent(rotations_failed_total="0x300 3x400")
        ),
        "LicenseAgentContactsFail": Case(
            "high", 480, agent(contacts_total="0+1x500", contacts_failed_total="0+1x500"),
            agent(contacts_total="0+1x500", contacts_failed_total="0+0.5x500"),
        ),
        "LicenseAgentContactsSlow": Case(
            "low", 480, buckets("license_agent_contact_duration_seconds", "0x500", "0+1x500"),
            buckets("license_agent_contact_duration_seconds", "0+1x500", "0+1x500"),
        ),
        "LicenseAgentRevocationsStale": Case("medium", 70, agent(revocations_stale="1x80"),
        agent(revocations_stale="1x50 0x30")),
        "LicenseAgentValidationsRefused": Case(
            "high", 40, agent(validations_total="0+2x50", validations_failed_total="0+2x50"),
            agent(validations_total="0+20x50", validations_failed_total="0+2x50"),
        ),
        "LicenseAgentValidationsSlow": Case(
            "medium", 90, buckets("license_agent_validation_duration_seconds", "0x100", "0+9x100"),
            buckets("license_agent_validation_duration_seconds", "0+9x100", "0+9x100"),
        ),
        "LicenseAgentRateLimited": Case("low", 20, agent(rate_limited_users="1x30"), agent(rate_limited_users="1x10 0x20")),
        "LicenseAgentTpmSlow": Case(
            "low", 150, buckets("license_agent_tpm_command_duration_seconds", "0x200", "0+9x200"),
            buckets("license_agent_tpm_command_duration_seconds", "0+9x200", "0+9x200"),
        ),
        "LicenseAgentAuditUnsealed": Case(
            "medium", 300, agent(audit_checkpoint_timestamp_seconds="60x400", audit_unsealed_records="7x400"),
            agent(audit_checkpoint_timestamp_seconds="60x400", audit_unsealed_records="0x400"),
        ),
        "LicenseAgentWebhookFails": Case(
            "medium", 80, agent(webhook_oldest_timestamp_seconds="60x90"), agent(webhook_oldest_timestamp_seconds="0x90")
        ),
        "LicenseAgentWebhookDropped": Case(
            "low", 30, agent(webhook_dropped_total="0x9 2x40", webhook_dead_letters="0x50"),
            agent(webhook_dropped_total="2x50", webhook_dead_letters="5x50"),
        ),
    },
    "license-server": {
        "LicenseServerDown": Case(
            "critical", 10, {'up{instance="srv",job="license-server"}': "0x10"},
            {'up{instance="srv",job="license-server"}': "1x10"}
        ),
        "LicenseServerRestartsOften": Case(
            "medium", 30, server(start_time_seconds="0 1 2 3 4 4x30"), server(start_time_seconds="0 1 2 3 3x30")
        ),
        "LicenseServerClockNotTrusted": Case("critical", 5, server(clock_trusted="0x10"), server(clock_trusted="1x10")),
        "LicenseServerTwoMachinesOneIdentity": Case("critical", 5, server(agents_halted="1x10"), server(agents_halted="0x10")),
        "LicenseServerKeyEnds": Case(
            "high", 5,
            {
                'license_server_key_expiry_timestamp_seconds{instance="srv",name="tls"}': "2000000x10",
                'license_server_key_successor_ready{instance="srv",name="tls"}': "0x10",
            },
            {
                'license_server_key_expiry_timestamp_seconds{instance="srv",name="tls"}': "2000000x10",
                'license_server_key_successor_ready{instance="srv",name="tls"}': "1x10",
            },
        ),
        "LicenseServerKeyEnded": Case(
            "critical", 5, {'license_server_key_expiry_timestamp_seconds{instance="srv",name="tls"}': "60x10"},
            {'license_server_key_expiry_timestamp_seconds{instance="srv",name="tls"}': "9000x10"},
        ),
        "LicenseServerUpdateMetadataEnds": Case(
            "high", 5,
            {'license_server_update_metadata_expiry_timestamp_seconds{instance="srv",role="root"}': "2500000x10"},
            {
                'license_server_update_metadata_expiry_timestamp_seconds{instance="srv",role="root"}': "2600000x10",
                'license_server_update_metadata_expiry_timestamp_seconds{instance="srv",role="snapshot"}': "1100000x10",
                'license_server_update_metadata_expiry_timestamp_seconds{instance="srv",role="timestamp"}': "90000x10",
                'license_server_update_metadata_expiry_timestamp_seconds{instance="srv",role="candidate"}': "60x10",
            },
        ),
        "LicenseServerRegistryDown": Case("critical", 5, server(registry_up="0x10"), server(registry_up="1x10")),
        "LicenseServerJobLate": Case(
            "medium", 10, {'license_server_job_late_seconds{instance="srv",job="keys"}': "4000x10"},
            {'license_server_job_late_seconds{instance="srv",job="keys"}': "3000x10"},
        ),
        "LicenseServerRequestsFail": Case(
            "critical", 30, {'license_server_requests_total{endpoint="a",instance="srv",outcome="failed"}': "0+6x40"},
            {'license_server_requests_total{endpoint="a",instance="srv",outcome="ok"}': "0+600x40"},
        ),
        "LicenseServerSlow": Case(
            "high", 30, buckets("license_server_request_seconds", "0x40", "0+60x40"),
            buckets("license_server_request_seconds", "0+60x40", "0+60x40"),
        ),
        "LicenseServerVerySlow": Case(
            "critical", 30, buckets("license_server_request_seconds", "0+30x40", "0+60x40"),
            buckets("license_server_request_seconds", "0+60x40", "0+60x40"),
        ),
        "LicenseServerRefusesMany": Case(
            "medium", 90,
            {
                'license_server_refusals_total{code="unknown_agent",instance="srv"}': "0+120x100",
                'license_server_requests_total{endpoint="a",instance="srv",outcome="refused"}': "0+180x100",
            },
            {
                'license_server_refusals_total{code="unknown_agent",instance="srv"}': "0+120x100",
                'license_server_requests_total{endpoint="a",instance="srv",outcome="ok"}': "0+600x100",
            },
        ),
        "LicenseServerLogLinesDropped": Case(
            "low", 10, server(log_lines_dropped_total="0x5 9x10"), server(log_lines_dropped_total="9x20")
        ),
    },
}  # fmt: skip


@pytest.mark.parametrize("part", CASES)
def test_every_rule_has_its_case_and_a_severity_of_the_catalogue(part: str) -> None:
    text = (PLACE / f"{part}.rules.yml").read_text("utf-8")
    found = dict(re.findall(r"- alert: (\w+)\n(?:.*\n)*?\s+labels: \{severity: (\w+)\}", text))
    assert found == {name: case.severity for name, case in CASES[part].items()}
    assert set(found.values()) == {severity.value for severity in Severity}
    assert text.count("summary:") == text.count("description:") == len(found)


@pytest.mark.parametrize("part", CASES)
def test_each_rule_fires_and_does_not_fire(part: str, tmp_path: Path) -> None:
    tests = []
    for name, case in CASES[part].items():
        for series, fires in ((case.fires, True), (case.quiet, False)):
            query = f'count(ALERTS{{alertname="{name}",alertstate="firing",severity="{case.severity}"}})'
            expected = [{"labels": "{}", "value": 1}] if fires else []
            tests.append(
                {
                    "name": f"{name} {'fires' if fires else 'is quiet'}",
                    "interval": "1m",
                    "input_series": [{"series": each, "values": values} for each, values in series.items()],
                    "promql_expr_test": [{"expr": query, "eval_time": f"{case.at}m", "exp_samples": expected}],
                }
            )
    file = tmp_path / "rules.test.json"
    content = {"rule_files": [str(PLACE / f"{part}.rules.yml")], "evaluation_interval": "1m", "tests": tests}
    file.write_text(json.dumps(content), "utf-8")
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("label", ["job", "exported_job"])
def test_a_late_job_is_named_with_and_without_honor_labels(label: str, tmp_path: Path) -> None:
    own = {"job": "license-server", "instance": "srv", label: "keys"}
    text = ",".join(f'{name}="{value}"' for name, value in own.items())
    alert = {"exp_labels": {**own, "severity": "medium"}, "exp_annotations": {
        "summary": "The job keys of the license server on srv is not done",
        "description": "The journal says why it fails. Until it is done, rows that nobody needs stay in the registry.",
    }}  # fmt: skip
    test = {
        "interval": "1m",
        "input_series": [{"series": f"license_server_job_late_seconds{{{text}}}", "values": "4000x10"}],
        "alert_rule_test": [{"eval_time": "10m", "alertname": "LicenseServerJobLate", "exp_alerts": [alert]}],
    }
    file = tmp_path / "rules.test.json"
    file.write_text(
        json.dumps({"rule_files": [str(PLACE / "license-server.rules.yml")], "evaluation_interval": "1m", "tests": [test]}),
        "utf-8",
    )
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alertmanager_takes_the_example_and_every_severity_has_its_channel() -> None:
    file = PLACE / "alertmanager.yml"
    done = subprocess.run(["amtool", "check-config", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for severity, receiver in (("critical", "pager"), ("high", "on-duty"), ("medium", "tickets"), ("low", "daily")):
        command = ["amtool", "config", "routes", "test", f"--config.file={file}", f"severity={severity}"]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == receiver
