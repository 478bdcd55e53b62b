"""The metrics, in Prometheus' text format. Names exactly as the requirements have them. Writing is left to the caller."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from hwsec.errors import BackendState


@dataclass(slots=True)
class Counters:
    """What the daemon counts in this run."""

    rotations: int = 0
    rotations_failed: int = 0
    validations: int = 0
    validations_failed: int = 0
    unauthorized: int = 0
    refused_requests: int = 0
    contacts: int = 0
    contacts_failed: int = 0
    degraded_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is so at the moment."""

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


class _AgentCollector(Collector):
    def __init__(self, counters: Counters, gauges: Callable[[], Gauges]) -> None:
        self._counters = counters
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        """All samples, in a fixed order."""
        c, g = self._counters, self._gauges()
        # The library insists on `_total` for the type counter, so counters without it are left untyped.
        for name, kind, text, value in (
            ("secrets_active", "gauge", "Secret versions in state ACTIVE", g.secrets_active),
            ("secrets_grace", "gauge", "Secret versions in state GRACE", g.secrets_grace),
            ("rotations_total", "counter", "Rotations done since the start", c.rotations),
            ("rotations_failed", "unknown", "Rotations failed since the start", c.rotations_failed),
            ("validations_total", "counter", "License validations since the start", c.validations),
            ("validations_failed", "unknown", "Validations that ended in a refusal since the start", c.validations_failed),
            ("degraded_mode", "gauge", "1 while the agent works without its server, and a new secret is overdue", g.degraded),
            ("tpm_available", "gauge", "1 while the TPM answers", g.tpm_available),
            ("last_rotation", "gauge", "Time of the last rotation, seconds since 1970; 0 if there was none", g.last_rotation),
            ("unauthorized_total", "counter", "Connections by users who are not allowed", c.unauthorized),
            ("refused_requests_total", "counter", "Requests answered with an error", c.refused_requests),
            ("clock_suspect", "gauge", "1 while the clock stands behind a time that has passed", g.clock_suspect),
            ("connections", "gauge", "Open connections on both sockets", g.connections),
            ("audit_records_total", "counter", "Audit records written since the start", g.audit_records),
            ("audit_counted_total", "counter", "Events counted instead of logged in full since the start", g.audit_counted),
            ("audit_failing", "gauge", "1 while the audit log cannot be written", g.audit_failing),
            ("degraded_seconds_total", "counter", "Seconds spent in degraded mode since the start", c.degraded_s),
            ("contacts_total", "counter", "Contacts with the license server since the start", c.contacts),
            (
                "contacts_failed_total",
                "counter",
                "Contacts that failed since the start",
                c.contacts_failed,
            ),
            (
                "last_contact",
                "gauge",
                "Time of the last contact with the server, seconds since 1970; 0 if none",
                g.last_contact,
            ),
            ("revocations_stale", "gauge", "1 while the revocation list is older than it should be", g.revocations_stale),
            (
                "certificate_ends",
                "gauge",
                "End of the TLS certificate, seconds since 1970; 0 if there is none",
                g.certificate_ends,
            ),
            ("tpm_nv_writes_total", "counter", "Writes to the TPM's non-volatile memory since the start", g.nv_writes),
        ):
            full = f"license_agent_{name}"
            metric = Metric(full.removesuffix("_total") if kind == "counter" else full, text, kind)
            metric.add_sample(full, {}, float(value))
            yield metric
        yield from _tpm_metrics(g)


def _tpm_metrics(g: Gauges) -> Iterator[Metric]:
    """What is known of the TPM; nothing where there is none."""
    if g.tpm_state is None:
        return
    states = Metric("license_agent_tpm_state", "1 for the state that the TPM is in", "gauge")
    for state in BackendState:
        states.add_sample(states.name, {"state": state.value}, float(state.value == g.tpm_state))
    yield states
    for name, text, value in (
        ("tpm_hierarchies_open", "Hierarchies of the TPM whose auth value is empty", g.hierarchies_open),
        ("tpm_lockout_counter", "Failed authorizations that the TPM counts at present", g.lockout_counter),
        ("tpm_nv_budget_left", "NV writes that may be made now within the budget", g.nv_budget_left),
    ):
        if value is not None:
            metric = Metric(f"license_agent_{name}", text, "gauge")
            metric.add_sample(metric.name, {}, float(value))
            yield metric


class Metrics:
    """Renders counters and gauges.

    Args:
        counters: of this run.
        gauges: asked at each rendering.
    """

    def __init__(self, counters: Counters, gauges: Callable[[], Gauges]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_AgentCollector(counters, gauges))

    def render(self) -> bytes:
        """The text of the metrics file."""
        return generate_latest(self._registry)
