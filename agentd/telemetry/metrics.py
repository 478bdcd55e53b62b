"""Declares each metric once and renders them in Prometheus' text format. The caller writes the file.

Names are exactly those of the requirements, and each metric is one line or, for
`tpm_state` and histograms, several. The text is
written here and not by prometheus_client, which would bring an HTTP server into the core (ADR 36); tests compare the two.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from agentd.base.counters import SAMPLED, Counters
from agentd.ota.table import Step
from common.histogram import Histogram
from hwsec.errors import BackendState

PREFIX = "license_agent_"


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is so at the moment. Times are seconds since 1970 UTC, 0 for never."""

    secrets_active: int
    secrets_grace: int
    degraded: bool
    tpm_available: bool
    last_rotation: float
    clock_suspect: bool
    connections: int
    audit_records: int
    audit_counted: int
    audit_failing: bool
    nv_writes: int
    last_contact: float = 0.0
    revocations_stale: bool = False
    certificate_ends: float = 0.0
    tpm_state: str | None = None
    hierarchies_open: int = 0
    lockout_counter: int | None = None
    nv_budget_left: int | None = None
    log_lines_dropped: int = 0
    up: bool = True
    started_at: float = 0.0
    written_at: float = 0.0
    unfitting_answers: int = 0
    server_time_held: bool = False
    server_time_provisional: bool = False
    licenses_held: int = 0
    licenses_suspended: int = 0
    usage_unreported: int = 0
    ota_state: str | None = None
    ota_attempts: int = 0
    ota_paused: bool = False
    ota_hindered: bool = False
    ota_rehearsal_overdue: bool = False
    ota_installed: float = 0.0
    webhook_waiting: int = 0
    webhook_dead: int = 0
    webhook_oldest: float = 0.0
    backup_overdue: bool | None = None
    backup_last_good: float | None = None
    audit_unsealed: int = 0
    audit_sealed_at: float = 0.0
    tpm_commands: Histogram | None = None


Value = Callable[[Counters, Gauges], float | Histogram | None]


@dataclass(frozen=True, slots=True)
class Declared:
    """One metric.

    Attributes:
        name: without the prefix.
        kind: `gauge`, `counter`, `histogram`, or `unknown` for a counter whose required name lacks `_total`.
        unit: of the value; empty for a count.
        text: what it means.
        value: reads it; None leaves the metric out.
    """

    name: str
    kind: str
    unit: str
    text: str
    value: Value


METRICS: tuple[Declared, ...] = (
    Declared("up", "gauge", "", "1 while the agent runs, 0 once it was stopped", lambda _, g: g.up),
    Declared("start_time_seconds", "gauge", "s", "Time of the agent's start, seconds since 1970", lambda _, g: g.started_at),
    Declared("metrics_written_timestamp_seconds", "gauge", "s", "Time at which these values were read, seconds since 1970",
             lambda _, g: g.written_at),
    Declared("secrets_active", "gauge", "", "Secret versions in state ACTIVE", lambda _, g: g.secrets_active),
    Declared("secrets_grace", "gauge", "", "Secret versions in state GRACE", lambda _, g: g.secrets_grace),
    Declared("rotations_total", "counter", "", "Rotations done since the start", lambda c, _: c.rotations),
    Declared("rotations_failed", "unknown", "", "Rotations failed since the start", lambda c, _: c.rotations_failed),
    Declared("rotations_failed_total", "counter", "", "The same as license_agent_rotations_failed",
             lambda c, _: c.rotations_failed),
    Declared("validations_total", "counter", "", "License validations since the start", lambda c, _: c.validations),
    Declared("validations_failed", "unknown", "", "Validations that ended in a refusal since the start",
             lambda c, _: c.validations_failed),
    Declared("validations_failed_total", "counter", "", "The same as license_agent_validations_failed",
             lambda c, _: c.validations_failed),
    Declared("degraded_mode", "gauge", "", "1 while the agent works without its server and a new secret is overdue",
             lambda _, g: g.degraded),
    Declared("tpm_available", "gauge", "", "1 while the TPM answers", lambda _, g: g.tpm_available),
    Declared("last_rotation", "gauge", "s", "Time of the last rotation, seconds since 1970; 0 before the first",
             lambda _, g: g.last_rotation),
    Declared("last_rotation_timestamp_seconds", "gauge", "s", "The same as license_agent_last_rotation",
             lambda _, g: g.last_rotation),
    Declared("unauthorized_total", "counter", "", "Connections by users who are not allowed", lambda c, _: c.unauthorized),
    Declared("refused_administrators_total", "counter", "",
             "Requests of administrators refused for want of a certificate, a signature or a role since the start",
             lambda c, _: c.refused_administrators),
    Declared("refused_requests_total", "counter", "", "Requests answered with an error", lambda c, _: c.refused_requests),
    Declared("clock_suspect", "gauge", "", "1 while the clock is behind a time that has passed", lambda _, g: g.clock_suspect),
    Declared("connections", "gauge", "", "Open connections on both sockets", lambda _, g: g.connections),
    Declared("audit_records_total", "counter", "", "Audit records written since the start", lambda _, g: g.audit_records),
    Declared("audit_counted_total", "counter", "", "Events counted instead of logged in full since the start",
             lambda _, g: g.audit_counted),
    Declared("audit_failing", "gauge", "", "1 while the audit log cannot be written", lambda _, g: g.audit_failing),
    Declared("degraded_seconds_total", "counter", "s", "Seconds spent in degraded mode since the start",
             lambda c, _: c.degraded_s),
    Declared("contacts_total", "counter", "", "Contacts with the license server since the start", lambda c, _: c.contacts),
    Declared("contacts_failed_total", "counter", "", "Contacts that failed since the start", lambda c, _: c.contacts_failed),
    Declared("last_contact", "gauge", "s", "Time of the last contact with the server, seconds since 1970; 0 before the first",
             lambda _, g: g.last_contact),
    Declared("last_contact_timestamp_seconds", "gauge", "s", "The same as license_agent_last_contact",
             lambda _, g: g.last_contact),
    Declared("revocations_stale", "gauge", "", "1 while the revocation list is older than it should be",
             lambda _, g: g.revocations_stale),
    Declared("certificate_ends", "gauge", "s", "End of the TLS certificate, seconds since 1970; 0 without one",
             lambda _, g: g.certificate_ends),
    Declared("certificate_expiry_timestamp_seconds", "gauge", "s", "The same as license_agent_certificate_ends",
             lambda _, g: g.certificate_ends),
    Declared("server_time_held", "gauge", "", "1 while the server's time contradicts this machine's and is not used",
             lambda _, g: g.server_time_held),
    Declared("server_time_provisional", "gauge", "", "1 while the server's time is used for what begins, and not confirmed",
             lambda _, g: g.server_time_provisional),
    Declared("licenses_held", "gauge", "", "Licenses that the server says belong to this machine",
             lambda _, g: g.licenses_held),
    Declared("licenses_suspended", "gauge", "", "Licenses of this machine that the server has suspended",
             lambda _, g: g.licenses_suspended),
    Declared("usage_counters_unreported", "gauge", "", "Usage counters with counts that the server does not know yet",
             lambda _, g: g.usage_unreported),
    Declared("validation_duration_seconds", "histogram", "s",
             f"Time from a validation's request to its verdict, of one validation in {SAMPLED}", lambda c, _: c.validation_s),
    Declared("contact_duration_seconds", "histogram", "s", "Time of a contact with the license server, failed ones too",
             lambda c, _: c.contact_s),
    Declared("rate_limited_total", "counter", "", "Requests and connections refused because a user asked too often",
             lambda c, _: c.rate_limited),
    Declared("rate_limited_users", "gauge", "", "Users who were refused for asking too often in the last full minute",
             lambda c, _: c.rate_limited_users),
    Declared("audit_unsealed_records", "gauge", "", "Audit records since the last checkpoint", lambda _, g: g.audit_unsealed),
    Declared("audit_checkpoint_timestamp_seconds", "gauge", "s",
             "Time of the last checkpoint of the audit log since the start, seconds since 1970; 0 before it",
             lambda _, g: g.audit_sealed_at),
    Declared("backup_last_good_timestamp_seconds", "gauge", "s",
             "Time of the last good backup that the timer made, seconds since 1970; 0 before it; only with [backup]",
             lambda _, g: g.backup_last_good),
    Declared("backup_overdue", "gauge", "", "1 while the last good backup is older than it may be; only with [backup]",
             lambda _, g: g.backup_overdue),
    Declared("webhook_waiting", "gauge", "", "Alerts that wait for the webhook", lambda _, g: g.webhook_waiting),
    Declared("webhook_oldest_timestamp_seconds", "gauge", "s",
             "Time of the first alert that waits for the webhook, seconds since 1970; 0 if none waits",
             lambda _, g: g.webhook_oldest),
    Declared("webhook_dead_letters", "gauge", "", "Alerts that the webhook has not taken and that were put aside",
             lambda _, g: g.webhook_dead),
    Declared("webhook_delivered_total", "counter", "", "Alerts that the webhook has taken since the start",
             lambda c, _: c.webhook_delivered),
    Declared("webhook_failed_total", "counter", "", "Attempts to send to the webhook that failed since the start",
             lambda c, _: c.webhook_failed),
    Declared("webhook_dropped_total", "counter", "", "Alerts for the webhook that were dropped since the start: no room",
             lambda c, _: c.webhook_dropped),
    Declared("tpm_nv_writes_total", "counter", "", "Writes to the TPM's non-volatile memory since the start",
             lambda _, g: g.nv_writes),
    Declared("log_lines_dropped_total", "counter", "", "Lines of the process's log that nobody took in time",
             lambda _, g: g.log_lines_dropped),
)  # fmt: skip
"""What every agent has."""

TPM_METRICS: tuple[Declared, ...] = (
    Declared("tpm_hierarchies_open", "gauge", "", "Hierarchies of the TPM whose auth value is empty",
             lambda _, g: g.hierarchies_open),
    Declared("tpm_lockout_counter", "gauge", "", "Former name of license_agent_tpm_lockout_failures",
             lambda _, g: g.lockout_counter),
    Declared("tpm_lockout_failures", "gauge", "", "Failed authorizations that the TPM counts at present",
             lambda _, g: g.lockout_counter),
    Declared("tpm_nv_budget_left", "gauge", "", "NV writes that may be made now within the budget",
             lambda _, g: g.nv_budget_left),
    Declared("tpm_unfitting_answers_total", "counter", "",
             "Answers of the TPM since the start that did not fit or are not authenticated; each was asked for again",
             lambda _, g: g.unfitting_answers),
    Declared("tpm_command_duration_seconds", "histogram", "s", "Time of a command of the TPM since the start",
             lambda _, g: g.tpm_commands),
)  # fmt: skip
"""What an agent with a TPM has besides, after `tpm_state`, which has a sample for each state."""

OTA_METRICS: tuple[Declared, ...] = (
    Declared("ota_failed_attempts", "gauge", "", "Updates that have failed in a row; more than 2 lock",
             lambda _, g: g.ota_attempts),
    Declared("ota_paused", "gauge", "", "1 while no update begins because somebody has paused them", lambda _, g: g.ota_paused),
    Declared("ota_hindered", "gauge", "", "1 while something keeps an update from going on that is not its package's: room on "
             "the disk, or the repository", lambda _, g: g.ota_hindered),
    Declared("ota_rehearsal_overdue", "gauge", "", "1 on a test bench that has not rehearsed an update for a quarter",
             lambda _, g: g.ota_rehearsal_overdue),
    Declared("ota_last_success_timestamp_seconds", "gauge", "s",
             "Time of the last update that proved itself, seconds since 1970; 0 if the register has none",
             lambda _, g: g.ota_installed),
)  # fmt: skip
"""What an agent that installs updates has besides, after `ota_state`, which has a sample for each state."""

OTA_STATE_TEXT = "1 for the state that the update is in"
TPM_STATE_TEXT = "1 for the state that the TPM is in"


def _family(name: str, kind: str, text: str, samples: list[tuple[str, float]]) -> str:
    """A metric in the text format: what it is, then a line for each sample.

    Args:
        name: with the prefix.
        kind: as in `Declared`.
        text: one line without a backslash.
        samples: the labels in braces, or nothing, and the value.
    """
    # The format has no `unknown`, the word of OpenMetrics.
    head = f"# HELP {name} {text}\n# TYPE {name} {'untyped' if kind == 'unknown' else kind}\n"
    return head + "".join(f"{name}{labels} {float(value)!r}\n" for labels, value in samples)


def _histogram(name: str, text: str, found: Histogram) -> str:
    """A histogram in the text format; arguments as for `_family`."""
    buckets = "".join(f'{name}_bucket{{le="{bound}"}} {float(count)!r}\n' for bound, count in found.cumulative())
    return (
        f"# HELP {name} {text}\n# TYPE {name} histogram\n{buckets}"
        f"{name}_count {float(sum(found.counts))!r}\n{name}_sum {found.sum!r}\n"
    )


class Metrics:
    """Renders counters and gauges.

    Args:
        counters: of this run.
        gauges: called at each rendering.
    """

    def __init__(self, counters: Counters, gauges: Callable[[], Gauges]) -> None:
        self._counters = counters
        self._gauges = gauges

    def render(self) -> bytes:
        """The text of the metrics file, in the order of the declaration."""
        return "".join(self._families(self._gauges())).encode("utf-8")

    def _families(self, gauges: Gauges) -> Iterator[str]:
        yield from self._declared(METRICS, gauges)
        if gauges.tpm_state is not None:
            states = [(f'{{state="{state.value}"}}', float(state.value == gauges.tpm_state)) for state in BackendState]
            yield _family(f"{PREFIX}tpm_state", "gauge", TPM_STATE_TEXT, states)
            yield from self._declared(TPM_METRICS, gauges)

        if gauges.ota_state is not None:
            steps = [(f'{{state="{step.value}"}}', float(step.value == gauges.ota_state)) for step in Step]
            yield _family(f"{PREFIX}ota_state", "gauge", OTA_STATE_TEXT, steps)
            yield from self._declared(OTA_METRICS, gauges)

    def _declared(self, declarations: tuple[Declared, ...], gauges: Gauges) -> Iterator[str]:
        for declared in declarations:
            value = declared.value(self._counters, gauges)
            if isinstance(value, Histogram):
                yield _histogram(PREFIX + declared.name, declared.text, value)
            elif value is not None:
                yield _family(PREFIX + declared.name, declared.kind, declared.text, [("", value)])
