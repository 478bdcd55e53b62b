"""Declares the server's Prometheus metrics and counts responses. Performs no IO: the caller supplies `Facts`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.fleet.fleets.figures import Figures
from server.fleet.fleets.rotations import Rotations
from server.fleet.monitoring.views import Figures as FleetFigures
from server.fleet.rollouts.views import Figures as RolloutFigures
from server.registry.agentcounts import STATUSES

from .devicemetrics import of_devices, of_rotations
from .fleetmetrics import of_fleets
from .rolloutmetrics import of_rollouts

LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
"""Seconds. 2 and 5 are the targets of P95 and P99 (OP-08)."""


@dataclass(frozen=True, slots=True)
class JobFacts:
    """How a timed job stands.

    Attributes:
        name: of the job.
        late_s: seconds since it was due; 0 if it is not, or under way.
        last_success: when it last ended well, seconds since 1970 UTC; None before that.
        failures: how often it has failed since.
    """

    name: str
    late_s: int
    last_success: int | None
    failures: int


@dataclass(frozen=True, slots=True)
class Facts:
    """The state of the server at a scrape.

    Attributes:
        agents: number of agents by status.
        ends: when each key or certificate ends, by its name; seconds since 1970 UTC.
        halted: number of agents that two machines have been.
        clock_trusted: whether the server may sign by its own clock.
        jobs: how the timed jobs stand.
        unattended: names of the keys in `ends` that the server itself will replace in time.
        metadata_ends: when the update metadata of each role ends, seconds since 1970 UTC; empty without a repository.
        devices: the last counts of devices and fleets; None before the first.
        rollouts: what rollouts have counted; None leaves their metrics out.
        rotations: renewals of agents' certificates; None leaves their metrics out.
        fleets: what was found of fleets, and their alerts; None leaves those metrics out.
    """

    agents: dict[str, int]
    ends: dict[str, int]
    halted: int = 0
    clock_trusted: bool = True
    jobs: Sequence[JobFacts] = ()
    unattended: frozenset[str] = frozenset()
    metadata_ends: Mapping[str, int] = field(default_factory=dict)
    devices: Figures | None = None
    rollouts: RolloutFigures | None = None
    rotations: Rotations | None = None
    fleets: FleetFigures | None = None


class Metrics:
    """The server's metrics.

    Args:
        facts: returns the present facts; None while the registry cannot be read.
        wall: seconds since 1970 UTC.
        lines_dropped: returns how many lines of the log were lost since the start.
    """

    def __init__(
        self, facts: Callable[[], Facts | None], wall: Callable[[], float], lines_dropped: Callable[[], int] = lambda: 0
    ) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "license_server_requests_total",
            "Requests answered, by endpoint and outcome.",
            ["endpoint", "outcome"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "license_server_request_seconds",
            "Time from a request's head to its answer.",
            ["endpoint"],
            buckets=LATENCY_BUCKETS,
            registry=self._registry,
        )
        self._refusals = Counter(
            "license_server_refusals_total", "Requests refused, by code.", ["code"], registry=self._registry
        )
        self._operator_requests = Counter(
            "license_server_operator_requests_total", "Requests of operators answered, by outcome.", ["outcome"],
            registry=self._registry,
        )  # fmt: skip
        self._operator_seconds = Histogram(
            "license_server_operator_request_seconds", "Time from the head of an operator's request to its answer.",
            buckets=LATENCY_BUCKETS, registry=self._registry,
        )  # fmt: skip
        self._operator_refusals = Counter(
            "license_server_operator_refusals_total", "Requests of operators refused, by the kind of problem.", ["code"],
            registry=self._registry,
        )  # fmt: skip
        self._ddi_requests = Counter(
            "license_server_ddi_requests_total", "Requests of devices that speak DDI answered, by outcome.", ["outcome"],
            registry=self._registry,
        )  # fmt: skip
        self._rotations = Counter("license_server_rotations_total", "Secrets handed out to agents.", registry=self._registry)
        self._provisioned = Counter(
            "license_server_provisioned_total", "Devices provisioned, repeated ones too.", registry=self._registry
        )
        started = Gauge(
            "license_server_start_time_seconds", "When the server started, in seconds since 1970 UTC.", registry=self._registry
        )
        started.set(wall())
        self._registry.register(_LogCollector(lines_dropped))
        self._registry.register(_FactsCollector(facts, wall))

    def count(self, endpoint: str, status: int, code: str | None, seconds: float) -> None:
        """Counts a response.

        Args:
            endpoint: the last part of a path; one of a closed list.
            status: HTTP status.
            code: of a refusal; None for a success.
            seconds: from the request's head to the response.
        """
        self._requests.labels(endpoint, _outcome(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)
        if code is not None:
            self._refusals.labels(code).inc()
        elif status == 200 and endpoint == "rotate-secret":
            self._rotations.inc()
        elif status == 200 and endpoint == "provision/complete":
            self._provisioned.inc()

    def count_operator(self, status: int, code: str | None, seconds: float) -> None:
        """Counts a response of the operators' listener.

        Args:
            status: HTTP status.
            code: the kind of the problem; None for a success.
            seconds: from the request's head to the response.
        """
        self._operator_requests.labels(_outcome(status)).inc()
        self._operator_seconds.observe(seconds)
        if code is not None:
            self._operator_refusals.labels(code).inc()

    def count_ddi(self, status: int, _kind: str | None, _seconds: float) -> None:
        """Counts a response of the listener for devices that speak DDI. How long it took says nothing: many are downloads.

        Args:
            status: HTTP status.
        """
        self._ddi_requests.labels(_outcome(status)).inc()

    def text(self) -> bytes:
        """The metrics in the text format."""
        return generate_latest(self._registry)


def _outcome(status: int) -> str:
    if status < 400:
        return "ok"
    return "refused" if status < 500 else "failed"


class _LogCollector(Collector):
    def __init__(self, lines_dropped: Callable[[], int]) -> None:
        self._lines_dropped = lines_dropped

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "license_server_log_lines_dropped_total", "Lines of the log that nobody took in time.", self._lines_dropped()
        )


class _FactsCollector(Collector):
    def __init__(self, facts: Callable[[], Facts | None], wall: Callable[[], float]) -> None:
        self._facts = facts
        self._wall = wall

    def describe(self) -> list[Metric]:
        return []  # otherwise registering would query the database

    def collect(self) -> Iterator[Metric]:
        facts, now = self._facts(), self._wall()
        yield GaugeMetricFamily(
            "license_server_registry_up",
            "1 if the registry could be read for this scrape; otherwise there is nothing here of what it has.",
            value=float(facts is not None),
        )
        if facts is None:
            return
        agents = GaugeMetricFamily("license_server_agents", "Agents by status.", labels=["status"])
        for status in STATUSES:
            agents.add_metric([status], facts.agents.get(status, 0))
        yield agents
        yield GaugeMetricFamily(
            "license_server_agents_halted",
            "Agents whose rotations are halted because two machines have one identity.",
            facts.halted,
        )
        days = GaugeMetricFamily(
            "license_server_days_remaining", "Days until a key or certificate of the server ends.", labels=["name"]
        )
        ends = GaugeMetricFamily(
            "license_server_key_expiry_timestamp_seconds",
            "When a key or certificate of the server ends, in seconds since 1970 UTC.",
            labels=["name"],
        )
        for name, end in sorted(facts.ends.items()):
            days.add_metric([name], (end - now) / 86_400)
            ends.add_metric([name], end)
        yield days
        yield ends
        ready = GaugeMetricFamily(
            "license_server_key_successor_ready",
            "1 if the server itself replaces a key in time; 0 if an administrator has to prepare or rotate it.",
            labels=["name"],
        )
        for name in sorted(facts.ends):
            ready.add_metric([name], float(name in facts.unattended))
        yield ready
        yield GaugeMetricFamily(
            "license_server_clock_trusted",
            "1 while the server trusts its own clock; otherwise it signs nothing.",
            value=float(facts.clock_trusted),
        )
        metadata = GaugeMetricFamily(
            "license_server_update_metadata_expiry_timestamp_seconds",
            "When the update metadata of a role ends, in seconds since 1970 UTC; 0 for the timestamp if it cannot be read.",
            labels=["role"],
        )
        for role, end in sorted(facts.metadata_ends.items()):
            metadata.add_metric([role], end)
        yield metadata
        yield from of_rollouts(facts.rollouts)
        yield from _of_jobs(facts.jobs)
        yield from of_devices(facts.devices)
        yield from of_rotations(facts.rotations)
        yield from of_fleets(facts.fleets)


def _of_jobs(jobs: Sequence[JobFacts]) -> Iterator[Metric]:
    late = GaugeMetricFamily(
        "license_server_job_late_seconds", "Seconds since a timed job was due; 0 if it is not due.", labels=["job"]
    )
    success = GaugeMetricFamily(
        "license_server_job_last_success_timestamp_seconds",
        "When a timed job last ended well, in seconds since 1970 UTC.",
        labels=["job"],
    )
    failures = GaugeMetricFamily(
        "license_server_job_failures", "How often a timed job has failed since it last ended well.", labels=["job"]
    )
    for job in jobs:
        late.add_metric([job.name], job.late_s)
        failures.add_metric([job.name], job.failures)
        if job.last_success is not None:
            success.add_metric([job.name], job.last_success)
    yield late
    yield success
    yield failures
