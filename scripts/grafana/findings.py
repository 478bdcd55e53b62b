"""Makes one query of all alert rules of a program: what is wrong now, where, how severe it is, and where its runbook is.

The rules say once what is wrong. The dashboards ask the same, without the time that a rule waits before it fires, so they show findings
where nobody has loaded the rules too. Performs no IO but for reading the rules.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

RULES = Path(__file__).resolve().parents[2] / "packaging" / "prometheus"
SEVERITIES = ("low", "medium", "high", "critical")
"""From the least. The value of a finding is its place here, counted from 1."""

_START = "guides.md#find-out-what-is-wrong"
_TPM = "guides.md#the-tpm-is-missing-or-cannot-be-used-exit-status-69"
_CONTACT = "guides.md#no-contact-with-the-server"
_CLOCK = "guides.md#the-clock-is-wrong"
_WEBHOOK = "guides/alerts.md#when-your-side-fails"
_LINES = "guides.md#log-lines-were-dropped"
_SERVER = "guides.md#run-the-license-server"
_KEYS = "guides.md#rotate-certificates-and-server-keys"

RUNBOOKS = {
    "LicenseAgentStopped": _START,
    "LicenseAgentMetricsStale": _START,
    "LicenseAgentRestartsOften": _START,
    "LicenseAgentAuditFailing": "guides.md#the-audit-logs-disk-is-full",
    "LicenseAgentDegraded": _CONTACT,
    "LicenseAgentTpmUnavailable": _TPM,
    "LicenseAgentBackupOverdue": "guides.md#back-up-an-agent",
    "LicenseAgentUpdatesLocked": "guides/updates.md#when-updates-are-locked",
    "LicenseAgentUpdateHindered": "guides/updates.md#when-an-update-cannot-go-on",
    "LicenseAgentRehearsalOverdue": "guides/updates.md#rehearse-each-quarter",
    "LicenseAgentClockSuspect": _CLOCK,
    "LicenseAgentServerTimeHeld": _CLOCK,
    "LicenseAgentUnauthorizedAccess": "guides.md#unauthorized-access-alert",
    "LicenseAgentCertificateEnds": _CONTACT,
    "LicenseAgentLogLinesDropped": _LINES,
    "LicenseAgentNoUsableSecret": "guides.md#rotate-a-secret",
    "LicenseAgentRotationsFail": _CONTACT,
    "LicenseAgentContactsFail": _CONTACT,
    "LicenseAgentContactsSlow": _CONTACT,
    "LicenseAgentRevocationsStale": _CONTACT,
    "LicenseAgentValidationsRefused": "guides.md#a-till-refuses-a-license",
    "LicenseAgentValidationsSlow": _START,
    "LicenseAgentRateLimited": _START,
    "LicenseAgentTpmSlow": _TPM,
    "LicenseAgentAuditUnsealed": _TPM,
    "LicenseAgentWebhookFails": _WEBHOOK,
    "LicenseAgentWebhookDropped": _WEBHOOK,
    "LicenseServerDown": _SERVER,
    "LicenseServerRestartsOften": _SERVER,
    "LicenseServerClockNotTrusted": "guides.md#the-server-does-not-trust-its-clock",
    "LicenseServerTwoMachinesOneIdentity": "guides.md#two-machines-have-one-identity",
    "LicenseServerKeyEnds": _KEYS,
    "LicenseServerKeyEnded": _KEYS,
    "LicenseServerUpdateMetadataEnds": "guides/publish-updates.md#before-something-ends",
    "LicenseServerRegistryDown": _SERVER,
    "LicenseServerJobLate": _SERVER,
    "LicenseServerRequestsFail": _SERVER,
    "LicenseServerSlow": _SERVER,
    "LicenseServerVerySlow": _SERVER,
    "LicenseServerRefusesMany": _SERVER,
    "LicenseServerLogLinesDropped": _LINES,
}
"""Where the documentation says what to do about an alert: below docs/."""

_SERIES = re.compile(r"\b(license_(?:agent|server)_\w+|(?:cert|devices|fleet)_\w+|up(?=\{))(\{)?")


@dataclass(frozen=True)
class Rule:
    """An alert rule.

    Attributes:
        name: of the alert.
        expr: PromQL; what it returns is wrong.
        severity: one of SEVERITIES.
    """

    name: str
    expr: str
    severity: str


def rules(program: str) -> list[Rule]:
    """The alert rules of `license-agent` or `license-server`, in the order of the file."""
    content = yaml.safe_load((RULES / f"{program}.rules.yml").read_text("utf-8"))
    return [
        Rule(rule["alert"], rule["expr"], rule["labels"]["severity"]) for group in content["groups"] for rule in group["rules"]
    ]


def selected(expr: str) -> str:
    """A query that asks for the machines that the dashboard's variable `instance` selects, in each of its series."""
    return _SERIES.sub(lambda found: f'{found[1]}{{instance=~"$instance"' + (", " if found[2] else "}"), expr)


def union(found: list[Rule]) -> str:
    """PromQL: a sample for each finding, with labels `finding` and `runbook`; its value says how severe it is."""
    return " or ".join(_labeled(rule) for rule in found)


def _labeled(rule: Rule) -> str:
    rank = SEVERITIES.index(rule.severity) + 1
    by = "instance" if rule.name.startswith("LicenseAgent") else "instance, name, exported_job"
    expr = f"0 * max by ({by}) ({selected(rule.expr)}) + {rank}"
    for label, value in (("finding", rule.name), ("runbook", RUNBOOKS[rule.name])):
        expr = f'label_replace({expr}, "{label}", "{value}", "", "")'
    return expr


def machines(found: list[Rule]) -> str:
    """PromQL: a sample for each machine that has one of these findings."""
    return "count by (instance) (" + " or ".join(f"max by (instance) ({selected(rule.expr)})" for rule in found) + ")"
