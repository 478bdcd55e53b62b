"""Lays out the dashboard of the agents: the verdict, the four golden signals, then each part of an agent."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from . import findings
from .parts import BAD_FROM_1, LOOK_FROM_1, dashboard, good_below, lines, number, section
from .parts import findings as table

UID, TITLE = "license-agent", "License agents"
_WORST = "of the selected machines, the ten worst"


def _none(expr: str) -> str:
    """PromQL that returns 0 where `expr` returns nothing, if there is an agent at all."""
    return f"{expr} or 0 * count(license_agent_up)"


def build() -> Dashboard:
    """The dashboard of all agents, or of those that its variable selects."""
    rules = findings.rules("license-agent")
    critical = findings.machines([rule for rule in rules if rule.severity == "critical"])
    others = findings.machines([rule for rule in rules if rule.severity != "critical"])
    board = dashboard(TITLE, UID, "license_agent_up", ("License server", "license-server")).with_row(Row("Verdict"))
    for panel in (
        number("Agents", "count(license_agent_up)", "Agents whose metrics Prometheus has at this moment.", none="no agent seen"),
        number("Do not work", _none(f"count({critical})"), "Agents with a finding that is critical: tills are refused, or soon will be.",
               steps=BAD_FROM_1, none="no agent seen"),
        number("Need attention", _none(f"count({others} unless {critical})"), "Agents that validate licenses, and with a finding.",
               steps=LOOK_FROM_1, none="no agent seen"),
        number("Fine", _none(f"count(count by (instance) (license_agent_up) unless ({critical} or {others}))"),
               "Agents without a finding.", none="no agent seen"),
        number("Silent", _none("count(count by (instance) (last_over_time(license_agent_up[1d])) "
               "unless count by (instance) (license_agent_up))"),
               "Agents that were seen within the last 24 hours and are not seen now: the machine is off, its network is down, or "
               "its node exporter does not run. Nothing else on this page knows anything of them.", none="no agent seen"),
        number("Work without their server", _none("count(license_agent_degraded_mode == 1)"),
               "Agents in degraded mode. Their licenses pass until the grace of the newest secret ends.",
               steps=LOOK_FROM_1, none="no agent seen"),
        table(rules),
    ):  # fmt: skip
        board = board.with_panel(panel)
    board = board.with_row(Row("Golden signals"))
    for panel in (
        lines("Traffic: validations", {
            "valid": "sum(rate(license_agent_validations_total[$__rate_interval])) - sum(rate(license_agent_validations_failed_total[$__rate_interval]))",
            "refused": "sum(rate(license_agent_validations_failed_total[$__rate_interval]))",
        }, "What tills ask, of all selected machines together.", unit="reqps", span=6, stacked=True),
        lines("Errors: refused validations", {
            "{{instance}}": "topk(10, rate(license_agent_validations_failed_total[$__rate_interval]) / "
            "rate(license_agent_validations_total[$__rate_interval]) > 0)",
        }, f"Share of the validations that ended in a refusal, {_WORST}. A refusal may be right: the license has expired, say. "
            "'license-agent-cli why' explains one.", unit="percentunit", span=6, soft_max=1, steps=good_below(0.5)),
        lines("Latency: validation", {
            f"P{name}": f"histogram_quantile({value}, sum by (le) (rate(license_agent_validation_duration_seconds_bucket[$__rate_interval])))"
            for name, value in (("50", 0.5), ("90", 0.9), ("99", 0.99))
        }, "From the request to the verdict, without the time on the socket. The rule LicenseAgentValidationsSlow fires above the line.",
            unit="s", span=6, steps=good_below(0.005)),
        lines("Saturation", {
            "users over their rate": "sum(license_agent_rate_limited_users)",
            "refused for their rate, per s": "sum(rate(license_agent_rate_limited_total[$__rate_interval]))",
            "log lines dropped, per s": "sum(rate(license_agent_log_lines_dropped_total[$__rate_interval]))",
            "connections, the busiest machine": "max(license_agent_connections)",
        }, "What is full: users who ask more than [pos] rate_per_s allows, and a journal that does not keep up.", span=6),
    ):  # fmt: skip
        board = board.with_panel(panel)
    for row in (_tpm(), _secrets(), _server(), _certificates(), _audit(), _updates(), _access()):
        board = board.with_row(row)
    return board


def _tpm() -> Row:
    return section(
        "TPM",
        lines("State of the TPM", {"{{state}}": "sum by (state) (license_agent_tpm_state)"},
              "Agents by the state of their TPM. Agents with the software backend are not here.", stacked=True),
        lines("TPM answers", {
            "yes": "count(license_agent_tpm_available == 1)", "no, or software backend": "count(license_agent_tpm_available == 0)",
        }, "license_agent_tpm_available. Validations go on from memory while a TPM does not answer; a restart would not succeed."),
        lines("Time of a command", {
            f"P{name}": f"histogram_quantile({value}, sum by (le) (rate(license_agent_tpm_command_duration_seconds_bucket[$__rate_interval])))"
            for name, value in (("50", 0.5), ("90", 0.9))
        }, "No validation waits for the TPM. The rule LicenseAgentTpmSlow fires above the line.", unit="s", steps=good_below(2.5)),
        lines("NV writes left today", {"{{instance}}": "bottomk(10, license_agent_tpm_nv_budget_left)"},
              f"Writes to non-volatile memory that the agent may still make, {_WORST}. At 0 seals wait; the memory wears out."),
        lines("NV writes", {"{{instance}}": "topk(10, increase(license_agent_tpm_nv_writes_total[1d]))"},
              f"Writes to non-volatile memory within a day, {_WORST}."),
        lines("Signs of a fault, or of an attack", {
            "lockout failures {{instance}}": "topk(5, license_agent_tpm_lockout_failures > 0)",
            "unfitting answers {{instance}}": "topk(5, increase(license_agent_tpm_unfitting_answers_total[1h]) > 0)",
            "open hierarchies {{instance}}": "topk(5, license_agent_tpm_hierarchies_open > 0)",
        }, "Failed authorizations that the TPM counts, answers that did not fit their command, hierarchies whose auth value is empty."),
    )  # fmt: skip


def _secrets() -> Row:
    return section(
        "Secrets and licenses",
        lines("Machines by their secrets", {
            "an ACTIVE secret": "count(license_agent_secrets_active > 0)",
            "only secrets in GRACE": "count(license_agent_secrets_active == 0 and license_agent_secrets_grace > 0)",
            "no usable secret": "count(license_agent_secrets_active == 0 and license_agent_secrets_grace == 0)",
        }, "A machine without a usable secret refuses every license.", stacked=True),
        lines("Age of the newest secret", {"{{instance}}": "topk(10, time() - (license_agent_last_rotation_timestamp_seconds > 0))"},
              f"Time since the last rotation, {_WORST}. Rotations are due once a day.", unit="s"),
        lines("Rotations", {
            "done": "sum(increase(license_agent_rotations_total[1h]))",
            "failed": "sum(increase(license_agent_rotations_failed_total[1h]))",
        }, "Within an hour, of all selected machines."),
        lines("Licenses", {
            "held": "sum(license_agent_licenses_held)", "suspended": "sum(license_agent_licenses_suspended)",
        }, "Licenses that the server says belong to these machines, and those of them that it has suspended."),
        lines("Usage not reported", {"{{instance}}": "topk(10, license_agent_usage_counters_unreported > 0)"},
              f"Usage counters with counts that the server does not know yet, {_WORST}."),
        lines("Revocation list out of date", {"machines": "count(license_agent_revocations_stale == 1) or 0 * count(license_agent_up)"},
              "Machines whose revocation list is older than it should be; a configuration may refuse licenses then."),
    )  # fmt: skip


def _server() -> Row:
    return section(
        "License server and time",
        lines("Contacts", {
            "succeeded": "sum(rate(license_agent_contacts_total[$__rate_interval])) - sum(rate(license_agent_contacts_failed_total[$__rate_interval]))",
            "failed": "sum(rate(license_agent_contacts_failed_total[$__rate_interval]))",
        }, "Of all selected machines. If they fail everywhere at once, look at the server and not at the machines.", unit="reqps", stacked=True),
        lines("Time since the last contact", {"{{instance}}": "topk(10, time() - (license_agent_last_contact_timestamp_seconds > 0))"},
              f"{_WORST.capitalize()}.", unit="s"),
        lines("Time of a contact", {
            f"P{name}": f"histogram_quantile({value}, sum by (le) (rate(license_agent_contact_duration_seconds_bucket[$__rate_interval])))"
            for name, value in (("50", 0.5), ("90", 0.9))
        }, "Failed contacts too. The rule LicenseAgentContactsSlow fires above the line.", unit="s", steps=good_below(10)),
        lines("Time in degraded mode", {"{{instance}}": "topk(10, increase(license_agent_degraded_seconds_total[1d]) > 0)"},
              f"Within a day, {_WORST}.", unit="s"),
        lines("Clocks", {
            "wrong": "count(license_agent_clock_suspect == 1) or 0 * count(license_agent_up)",
            "server's time held": "count(license_agent_server_time_held == 1) or 0 * count(license_agent_up)",
            "server's time provisional": "count(license_agent_server_time_provisional == 1) or 0 * count(license_agent_up)",
        }, "Machines whose clock is wrong, and those that the server's time contradicts. Many at once: the server's clock is wrong."),
    )  # fmt: skip


def _certificates() -> Row:
    return section(
        "Certificates",
        lines("Time until the TLS certificate ends", {
            "{{instance}}": "bottomk(10, (license_agent_certificate_expiry_timestamp_seconds > 0) - time())",
        }, f"{_WORST.capitalize()}. Certificates renew by themselves while the server can be reached; the rule fires at 5 days.",
            unit="s", span=12),
        lines("Certificates by the time that is left", {
            "less than 5 days": "count((license_agent_certificate_expiry_timestamp_seconds > 0) - time() < 432000) or 0 * count(license_agent_up)",
            "less than 30 days": "count((license_agent_certificate_expiry_timestamp_seconds > 0) - time() < 2592000) or 0 * count(license_agent_up)",
            "all": "count(license_agent_certificate_expiry_timestamp_seconds > 0)",
        }, "Machines. Agents that are enrolled by hand have none.", span=12),
    )  # fmt: skip


def _audit() -> Row:
    return section(
        "Audit log and backups",
        lines("Records", {
            "written": "sum(rate(license_agent_audit_records_total[$__rate_interval]))",
            "counted instead of written": "sum(rate(license_agent_audit_counted_total[$__rate_interval]))",
        }, "Of all selected machines. Events beyond 50 per second of one kind are counted and written once a minute.", unit="reqps"),
        lines("Cannot be written", {"machines": "count(license_agent_audit_failing == 1) or 0 * count(license_agent_up)"},
              "Validations go on, and changes by administrators are refused."),
        lines("Time since the last checkpoint", {
            "{{instance}}": "topk(10, time() - (license_agent_audit_checkpoint_timestamp_seconds > 0) and license_agent_audit_unsealed_records > 0)",
        }, f"{_WORST.capitalize()}, with records that no checkpoint covers yet. The rule LicenseAgentAuditUnsealed fires above the line.",
            unit="s", steps=good_below(14400)),
        lines("Age of the last good backup", {"{{instance}}": "topk(10, time() - (license_agent_backup_last_good_timestamp_seconds > 0))"},
              f"Where a timer makes them, {_WORST}.", unit="s"),
        lines("Backups overdue", {"machines": "count(license_agent_backup_overdue == 1) or 0 * count(license_agent_up)"},
              "'license-agent-cli backup run' makes one, and prints the reason if it fails."),
    )  # fmt: skip


def _updates() -> Row:
    return section(
        "Updates",
        lines("Machines by the step of their update", {"{{state}}": "sum by (state) (license_agent_ota_state)"},
              "Agents that install updates. locked: more than 2 attempts failed; 'license-agent-cli ota unlock' after a look.", stacked=True),
        lines("Attempts that failed", {"{{instance}}": "topk(10, license_agent_ota_failed_attempts > 0)"},
              f"In a row, {_WORST}. The register says why: license-agent-cli ota history."),
        lines("Held back", {
            "paused": "count(license_agent_ota_paused == 1) or 0 * count(license_agent_up)",
            "hindered": "count(license_agent_ota_hindered == 1) or 0 * count(license_agent_up)",
            "rehearsal overdue": "count(license_agent_ota_rehearsal_overdue == 1) or 0 * count(license_agent_up)",
        }, "Machines that an administrator has paused, those with a full disk or a repository that serves something wrong, and test "
           "benches that have not rehearsed an update for a quarter."),
        lines("Time since the last update", {"{{instance}}": "topk(10, time() - (license_agent_ota_last_success_timestamp_seconds > 0))"},
              f"That proved itself, {_WORST}.", unit="s"),
    )  # fmt: skip


def _access() -> Row:
    return section(
        "Access, webhook and process",
        lines("Refused", {
            "users who are not allowed": "sum(increase(license_agent_unauthorized_total[5m]))",
            "administrators": "sum(increase(license_agent_refused_administrators_total[5m]))",
            "requests": "sum(increase(license_agent_refused_requests_total[5m]))",
        }, "Within 5 minutes. The audit log names the users."),
        lines("Alerts for the webhook", {
            "waiting": "sum(license_agent_webhook_waiting)", "put aside": "sum(license_agent_webhook_dead_letters)",
            "oldest, hours": "max(time() - (license_agent_webhook_oldest_timestamp_seconds > 0)) / 3600",
        }, "'license-agent-cli webhook status' says why they wait, 'webhook retry' sends those that were put aside."),
        lines("Webhook", {
            "taken": "sum(increase(license_agent_webhook_delivered_total[5m]))",
            "failed": "sum(increase(license_agent_webhook_failed_total[5m]))",
            "dropped": "sum(increase(license_agent_webhook_dropped_total[5m]))",
        }, "Within 5 minutes."),
        lines("Starts of the agent", {"{{instance}}": "topk(10, changes(license_agent_start_time_seconds[1h]) > 0)"},
              f"Within an hour, {_WORST}. The journal says why: journalctl -u license-agent."),
        lines("Age of the metrics", {"{{instance}}": "topk(10, time() - license_agent_metrics_written_timestamp_seconds)"},
              f"{_WORST.capitalize()}. The agent writes every 15 seconds; above the line it hangs, or its disk is full.",
              unit="s", steps=good_below(120)),
    )  # fmt: skip
