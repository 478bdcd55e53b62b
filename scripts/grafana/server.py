"""Lays out the dashboard of the license server: the verdict and its objectives, the four golden signals, then each part."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from . import findings
from .parts import BAD_FROM_1, GOOD_AT_1, dashboard, good_below, good_from, lines, number, section
from .parts import findings as table

UID, TITLE = "license-server", "License server"
AVAILABLE, P95_S, P99_S = 0.995, 2.0, 5.0
"""The objectives (docs/reference.md): the share of requests that do not fail, and seconds."""
_REQUESTS = "sum(increase(license_server_requests_total{code}[$__range]))"


def _quantile(value: float, window: str, by: str = "le", metric: str = "license_server_request_seconds") -> str:
    return f"histogram_quantile({value}, sum by ({by}) (rate({metric}_bucket[{window}])))"


def build() -> Dashboard:
    """The dashboard of all processes of the license server, or of those that its variable selects."""
    rules = findings.rules("license-server")
    board = dashboard(TITLE, UID, 'up{job="license-server"}', ("License agents", "license-agent")).with_row(Row("Verdict"))
    available = '1 - (sum(increase(license_server_requests_total{outcome="failed"}[$__range])) or vector(0)) / sum(increase(license_server_requests_total[$__range]))'
    for panel in (
        number("Do not answer", 'count(up{job="license-server"}) - sum(up{job="license-server"})',
               "Processes of the server whose --ops address Prometheus cannot read.", steps=BAD_FROM_1, span=3, none="no server seen"),
        number("Registry", "min(license_server_registry_up)", "1 if every process can read its registry. At 0 requests get 503.",
               steps=GOOD_AT_1, span=3, none="no server seen"),
        number("Clock", "min(license_server_clock_trusted)", "1 while every process trusts its clock. At 0 the server signs nothing.",
               steps=GOOD_AT_1, span=3, none="no server seen"),
        number("Two machines, one identity", "max(license_server_agents_halted)",
               "Agents that two machines have been; 'license-server clones' lists them.", steps=BAD_FROM_1, span=3, none="no server seen"),
        number("Availability", available, f"Share of the requests in the range above that did not fail. Objective: {AVAILABLE:.1%}.",
               steps=good_from(AVAILABLE), unit="percentunit", span=4, none="no request", decimals=3),
        number("P95", _quantile(0.95, "$__range"), f"Of the requests in the range above. Objective: below {P95_S:g} s.",
               steps=good_below(P95_S), unit="s", none="no request"),
        number("P99", _quantile(0.99, "$__range"), f"Of the requests in the range above. Objective: below {P99_S:g} s.",
               steps=good_below(P99_S), unit="s", none="no request"),
        table(rules),
    ):  # fmt: skip
        board = board.with_panel(panel)
    board = board.with_row(Row("Golden signals"))
    for panel in (
        lines("Traffic: requests", {"{{endpoint}}": "sum by (endpoint) (rate(license_server_requests_total[$__rate_interval]))"},
              "Of agents, by the last part of the path.", unit="reqps", span=6, stacked=True),
        lines("Errors: failed and refused", {
            "{{outcome}}": 'sum by (outcome) (rate(license_server_requests_total{outcome=~"failed|refused"}[$__rate_interval]))',
        }, "Failed is the server's fault (5xx) and counts against its availability; refused is the answer to a request that is not right.",
            unit="reqps", span=6),
        lines("Latency: requests", {f"P{value * 100:g}": _quantile(value, "$__rate_interval") for value in (0.5, 0.95, 0.99)},
              "From a request's head to its answer. The rules fire at P95 above 2 s and P99 above 5 s.", unit="s", span=6,
              steps=good_below(P95_S)),
        lines("Saturation", {
            "latest job, s": "max(license_server_job_late_seconds)",
            "log lines dropped, per s": "sum(rate(license_server_log_lines_dropped_total[$__rate_interval]))",
            "refused for their rate, per s": 'sum(rate(license_server_refusals_total{code="rate_limited"}[$__rate_interval]))',
        }, "Work that is late, a log that does not keep up, callers over their rate. Look at processor and database too, with your "
            "own exporters.", span=6),
    ):  # fmt: skip
        board = board.with_panel(panel)
    for row in (_refusals(), _agents(), _fleets(), _monitoring(), _rollouts(), _keys(), _operators(), _process()):
        board = board.with_row(row)
    return board


def _refusals() -> Row:
    return section(
        "Requests",
        lines("Refusals by code", {"{{code}}": "sum by (code) (rate(license_server_refusals_total[$__rate_interval]))"},
              "docs/protocol.md has the codes. Many unknown_agent: machines of another server, or an attack.", unit="reqps", span=12),
        lines("P95 by endpoint", {"{{endpoint}}": _quantile(0.95, "$__rate_interval", "endpoint, le")},
              "From a request's head to its answer.", unit="s", span=12),
    )  # fmt: skip


def _rollouts() -> Row:
    return section(
        "Rollouts",
        lines("Share of devices that failed", {"failed": "max(fleet_update_error_rate)"},
              "Of those that have ended, in rollouts that are not at their end. A rollout stops by its own limits.", unit="percentunit",
              span=12),
        lines("Time to the proof", {
            "average": "sum(max without (instance) (rate(fleet_update_duration_sum[1h]))) / "
            "sum(max without (instance) (rate(fleet_update_duration_count[1h])))",
        }, "From a device's order to its proof that the update runs, for those of the last hour.", unit="s", span=12),
    )  # fmt: skip


def _agents() -> Row:
    return section(
        "Agents",
        # Each process reads the same registry: the largest number is the newest, and a sum would count each agent again.
        lines("Agents by status", {"{{status}}": "max by (status) (license_server_agents)"}, "As the registry has them.", stacked=True),
        lines("Secrets handed out", {"per hour": "sum(increase(license_server_rotations_total[1h]))"},
              "Each agent asks for one a day. A flat line while agents are active: rotations fail."),
        lines("Devices provisioned", {"per hour": "sum(increase(license_server_provisioned_total[1h]))"}, "Repeated ones too."),
    )  # fmt: skip


def _fleets() -> Row:
    return section(
        "Devices and fleets",
        lines("Devices in service", {"registered": "max(devices_registered)", "connected": "max(devices_connected)"},
              "Neither blocked nor retired. Connected: the last contact was about when it was due."),
        lines("Share of a fleet that is connected", {"{{fleet}}": "max by (fleet) (fleet_devices_connected) / max by (fleet) (fleet_devices_total)"},
              "Shops close at night. 'license-server devices list --fleet ID' shows which devices are late or silent.", unit="percentunit"),
        lines("Devices of a fleet", {"{{fleet}}": "max by (fleet) (fleet_devices_total)"}, "A device may be in several fleets."),
        lines("Days until certificates end", {
            f"{value:.0%} have less": f"histogram_quantile({value}, max by (le) (cert_days_remaining_bucket))" for value in (0.01, 0.1, 0.5)
        }, "Agents renew with at least 7 of 30 days left: one with fewer has had no contact for days. One that has ended has 0.", unit="d"),
        lines("Days until certificates end, on average", {"{{fleet}}": "min by (fleet) (fleet_cert_days_avg)"},
              "About 19 while all agents renew.", unit="d"),
        lines("Certificates renewed in a day", {"{{fleet}}": "max by (fleet) (increase(fleet_cert_rotations_total[1d]))",
                                                "all": "max(increase(cert_rotations_total[1d]))"},
              "A fleet that renews all at once has no stagger, or was brought together by hand: 'license-server fleets certificates ID'."),
        lines("Age of these counts", {"seconds": "time() - max(devices_counted_timestamp_seconds)"},
              "They are made every five minutes. Older: nobody does the job 'devices'.", unit="s"),
    )  # fmt: skip


def _monitoring() -> Row:
    return section(
        "Monitoring of fleets",
        lines("Share of a fleet's contacts that failed", {"{{fleet}}": "max by (fleet) (fleet_error_rate)"},
              "'license-server fleets health FLEET' compares it with the usual at this time of the week.", unit="percentunit"),
        lines("P95 of a fleet's contacts", {"{{fleet}}": "max by (fleet) (fleet_latency_p95_seconds)"},
              "What the server took to answer, without the network.", unit="s"),
        lines("Open alerts", {"{{fleet}}, {{severity}}": "max by (fleet, severity) (fleet_alerts_open)"},
              "'license-server fleets alerts list' says what they are about."),
        lines("Alerts raised", {"{{severity}}": "max by (severity) (increase(fleet_alerts_total[1h]))"}, "In an hour."),
    )  # fmt: skip


def _keys() -> Row:
    return section(
        "Keys and certificates",
        lines("Time until a key or certificate ends", {"{{name}}": "min by (name) (license_server_key_expiry_timestamp_seconds) - time()"},
              "'license-server keys schedule' says what is missing for the next one.", unit="s", span=16),
        lines("Time until update metadata ends", {"{{role}}": "min by (role) (license_server_update_metadata_expiry_timestamp_seconds) - time()"},
              "'license-server ota expiry' says who signs it again; 'serve' renews snapshot and timestamp.", unit="s"),
        lines("Needs an administrator", {"{{name}}": "1 - min by (name) (license_server_key_successor_ready)"},
              "1 if the server itself cannot replace a key in time: prepare the next ('license-server keys prepare').", soft_max=1),
    )  # fmt: skip


def _operators() -> Row:
    return section(
        "Operator API",
        lines("Requests", {"{{outcome}}": "sum by (outcome) (rate(license_server_operator_requests_total[$__rate_interval]))"},
              "Of people and programs who operate the server.", unit="reqps"),
        lines("Refusals by kind", {"{{code}}": "sum by (code) (rate(license_server_operator_refusals_total[$__rate_interval]))"},
              "docs/reference.md has the kinds of problem.", unit="reqps"),
        lines("Latency", {
            f"P{value * 100:g}": _quantile(value, "$__rate_interval", metric="license_server_operator_request_seconds") for value in (0.5, 0.95)
        }, "From a request's head to its answer.", unit="s"),
        lines("Requests of devices that speak DDI", {"{{outcome}}": "sum by (outcome) (rate(license_server_ddi_requests_total[$__rate_interval]))"},
              "Of devices with SWUpdate or rauc-hawkbit-updater.", unit="reqps"),
    )  # fmt: skip


def _process() -> Row:
    return section(
        "Jobs and process",
        lines("Jobs that are late", {"{{exported_job}}": "max by (exported_job) (license_server_job_late_seconds)"},
              "Seconds since a timed job was due.", unit="s", span=6),
        lines("Jobs that fail", {"{{exported_job}}": "max by (exported_job) (license_server_job_failures)"},
              "How often since it last ended well.", span=6),
        lines("Time since a job ended well", {
            "{{exported_job}}": "time() - max by (exported_job) (license_server_job_last_success_timestamp_seconds)",
        }, "One of the processes does each job.", unit="s", span=6),
        lines("Starts", {"{{instance}}": "changes(license_server_start_time_seconds[1h])"},
              "Within an hour. The journal says why: journalctl -u license-server.", span=6),
    )  # fmt: skip
