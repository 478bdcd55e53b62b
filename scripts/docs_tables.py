"""Renders the tables of docs/ that come from declarations in the code, and writes them between their markers.

The metrics are read from the text that agent and server publish, so the tables do not depend on how the code declares them; the
alerts are read from the agent's catalogue.
"""

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from agentd.admin.roles import RULES
from agentd.base.alerts import ALERTS
from agentd.base.counters import Counters
from agentd.telemetry.health import CONDITIONS
from agentd.telemetry.metrics import Gauges
from agentd.telemetry.metrics import Metrics as AgentMetrics
from cli.doctor.table import CHECKS, HOST_CHECKS
from cli.outputs import OUTPUTS
from common.histogram import Histogram
from hwsec.tpm2.transport import COMMAND_BOUNDS
from server.accounts.roles import Role, admits
from server.acts.catalog import ACTS
from server.api.metrics import Facts, JobFacts
from server.api.metrics import Metrics as ServerMetrics
from server.fleet.fleets.figures import DAYS, Certificates, Figures, Group
from server.fleet.fleets.rotations import Rotations
from server.fleet.monitoring.rules import Severity
from server.fleet.monitoring.views import Figures as FleetFigures
from server.fleet.rollouts.views import Figures as RolloutFigures
from server.keys.lifecycle import LIFETIMES
from server.operators.problems import KINDS
from server.ota.words import LIFETIMES as METADATA_LIFETIMES

from . import server_audit_events
from .audit_events import fields_table, table

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference.md"
AUDIT_PAGE = ROOT / "docs" / "audit-fields.md"
SERVER_AUDIT_PAGE = ROOT / "docs" / "server-audit-events.md"


@dataclass(frozen=True)
class Row:
    """One metric as the page shows it.

    Attributes:
        name: of its samples.
        kind: its type.
        labels: names of its labels.
        values: what a gauge's labels may be; empty where the code has no closed list.
        text: its description.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    values: tuple[str, ...]
    text: str

    def line(self) -> str:
        labels = f"{{{', '.join(self.labels)}}}" if self.labels else ""
        kind = "untyped, counts up" if self.kind in ("unknown", "untyped") else self.kind
        values = f" ({self.labels[0]}: {', '.join(f'`{value}`' for value in self.values)})" if self.values else ""
        return f"| `{self.name}{labels}` | {kind} | {self.text.rstrip('.')}{values} |"


def published(text: str) -> list[Row]:
    """The metrics in a text of Prometheus' format, in its order."""
    found = []
    for family in text_string_to_metric_families(text):
        # The client library adds `_created` to its counters and histograms: times, not metrics of ours.
        samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
        if not samples:
            continue
        name = family.name if family.type in ("histogram", "summary") else samples[0].name
        labels = tuple(label for label in samples[0].labels if label != "le")
        values = tuple(dict.fromkeys(sample.labels[labels[0]] for sample in samples)) if labels else ()
        found.append(Row(name, family.type, labels, values if family.type == "gauge" else (), family.documentation))
    return found


def agent_metrics() -> list[Row]:
    """All metrics of the agent, those that need a TPM among them."""
    gauges = Gauges(**{**dict.fromkeys(Gauges.__slots__, 0), "tpm_commands": Histogram(COMMAND_BOUNDS)})
    return published(AgentMetrics(Counters(), lambda: gauges).render().decode())


def server_metrics() -> list[Row]:
    """All metrics of the server, with one request counted: a labeled metric has no sample before its first."""
    counted = Group(1, 1, Certificates((0,) * len(DAYS), 1, 1.0))
    metrics = ServerMetrics(
        lambda: Facts(
            {},
            dict.fromkeys(LIFETIMES, 0),
            jobs=[
                JobFacts(name, 0, 0, 0)
                for name in ("alertmanager", "devices", "housekeeping", "keys", "mail", "monitoring", "rollouts", "updates")
            ],
            metadata_ends=dict.fromkeys(METADATA_LIFETIMES, 0),
            devices=Figures(0, counted, {"ID": counted}),
            rollouts=RolloutFigures(0, 0, 0, 0),
            rotations=Rotations(0, {"ID": 0}),
            fleets=FleetFigures({"ID": 0.0}, {"ID": 0.0}, {each.value: 0 for each in Severity}, {("ID", "warning"): 1}),
        ),
        lambda: 0.0,
    )
    metrics.count("challenge", 429, "rate_limited", 0.1)
    metrics.count_operator(429, "rate-limited", 0.1)
    metrics.count_ddi(200, None, 0.1)
    return published(metrics.text().decode())


def metrics_table(rows: list[Row]) -> list[str]:
    return ["| name | type | meaning |", "|---|---|---|", *(row.line() for row in rows)]


def alerts_table() -> list[str]:
    """The agent's alerts, the most severe first."""
    order = {severity: number for number, severity in enumerate(type(ALERTS[0].severity))}
    found = sorted(ALERTS, key=lambda alert: (order[alert.severity], alert.event))
    lines = [f"| `{alert.event}` | {alert.severity} | {alert.title} | {alert.action} |" for alert in found]
    return ["| audit event | severity | meaning | what to do |", "|---|---|---|---|", *lines]


def health_table() -> list[str]:
    """The conditions of the agent's health, in the order in which `status` shows them."""
    lines = [f"| `{each.code}` | `{each.health.code}` | {each.title} |" for each in CONDITIONS]
    return ["| code | verdict | meaning |", "|---|---|---|", *lines]


def checks_table() -> list[str]:
    """The checks of `license-agent-cli doctor`, in the order in which they are made."""
    lines = [f"| `{check.id}` | {check.title} | {check.looks_at} |" for check in (*CHECKS, *HOST_CHECKS)]
    return ["| check | passes if | looks at |", "|---|---|---|", *lines]


def outputs_table() -> list[str]:
    """What each command prints with --json."""
    lines = []
    for command, output in OUTPUTS.items():
        form = "a line each" if output.lines else "one document"
        lines.append(f"| `{command}` | [{output.schema}](reference/schemas/{output.schema}.json) | {form} |")
    return ["| command | schema | printed |", "|---|---|---|", *lines]


def acts_table() -> list[str]:
    """What operators may ask, in the order of the catalog."""
    lines = []
    for act in ACTS:
        who = "people only" if act.people_only else f"`{act.scope}`" if act.scope else "any"
        roles = ", ".join(f"`{role}`" for role in Role if admits(role, act.needed))
        two = " Two people." if act.approval else ""
        everybody = all(admits(role, act.needed) for role in Role)
        lines.append(f"| `{act.method} {act.path}` | {who} | {'all' if everybody else roles} | {act.summary}{two} |")
    return ["| request | scope of a token | roles | what it does |", "|---|---|---|---|", *lines]


def problems_table() -> list[str]:
    """The kinds of problem of the operator API."""
    lines = [f"| `{name}` | {kind.status} | {kind.title} | {kind.next} |" for name, kind in KINDS.items()]
    return ["| type | status | meaning | what to do |", "|---|---|---|---|", *lines]


def roles_table() -> list[str]:
    """What administrators may ask on the admin socket, in the order of the table in the code."""
    lines = []
    for request, rule in RULES.items():
        without = "everyone who may use the socket" if rule.anyone else "root" if rule.root else "nobody"
        role = "any, or none" if rule.anyone else f"`{rule.role.name.lower()}`"
        lines.append(f"| `{request.__struct_config__.tag}` | {role} | {without} |")
    return ["| operation | least role | without a certificate |", "|---|---|---|", *lines]


TABLES: dict[str, Callable[[], list[str]]] = {
    "metrics of the agent": lambda: metrics_table(agent_metrics()),
    "metrics of the server": lambda: metrics_table(server_metrics()),
    "alerts of the agent": alerts_table,
    "conditions of health": health_table,
    "checks of doctor": checks_table,
    "output of the commands": outputs_table,
    "roles of administrators": roles_table,
    "acts of operators": acts_table,
    "problems of the operator API": problems_table,
}


AUDIT_TABLES: dict[str, Callable[[], list[str]]] = {"events of the audit log": table, "fields of the audit log": fields_table}
"""Those of the page of the audit log."""
SERVER_AUDIT_TABLES: dict[str, Callable[[], list[str]]] = {"events of the server's audit log": server_audit_events.table}
"""That of the page of the server's audit log."""
PAGES = ((PAGE, TABLES), (AUDIT_PAGE, AUDIT_TABLES), (SERVER_AUDIT_PAGE, SERVER_AUDIT_TABLES))


def block(name: str) -> re.Pattern[str]:
    """What is between the markers of a table."""
    return re.compile(rf"(<!-- table: {name}; written by scripts/docs-tables -->\n).*?(<!-- end of table -->\n)", re.DOTALL)


def rendered(page: str, tables: dict[str, Callable[[], list[str]]] = TABLES) -> str:
    """A page with its tables as the code has them now.

    Raises:
        ValueError: the page lacks the markers of a table.
    """
    for name, rows in tables.items():
        table = "\n".join([*rows(), ""])
        page, count = block(name).subn(lambda match, table=table: match[1] + table + match[2], page)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"the page must have the markers of the table {name!r} once, not {count} times")
    return page


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/docs-tables", description="Rewrite the generated tables of docs/.")
    parser.add_argument("--check", action="store_true", help="Change nothing; exit with 1 if a table is out of date.")
    options = parser.parse_args()
    old = False
    for path, tables in PAGES:
        before = path.read_text("utf-8")
        after = rendered(before, tables)
        old = old or before != after
        if before != after and not options.check:
            path.write_text(after, "utf-8")
            print(f"{path.relative_to(ROOT)}: rewritten")
    if options.check:
        return int(old)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
