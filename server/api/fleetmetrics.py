"""Declares the Prometheus metrics of the fleets' monitoring. Performs no IO: a job judges (`fleet.monitoring.watch`)."""

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from server.fleet.monitoring.views import Figures


def of_fleets(figures: Figures | None) -> Iterator[Metric]:
    """The metrics; none where the registry could not be read. There is a label for a fleet, of which there are 500 at most."""
    if figures is None:
        return
    rate = GaugeMetricFamily(
        "fleet_error_rate", "Share of a fleet's contacts that failed, 0 to 1; absent where too few came.", labels=["fleet"]
    )
    latency = GaugeMetricFamily(
        "fleet_latency_p95_seconds",
        "Time that the server took to answer 95 % of a fleet's devices; absent where too few came.",
        labels=["fleet"],
    )
    raised = CounterMetricFamily("fleet_alerts", "Alerts of fleets that were raised, or became as severe.", labels=["severity"])
    opened = GaugeMetricFamily("fleet_alerts_open", "Alerts of a fleet that are open.", labels=["fleet", "severity"])
    for fleet_id, value in sorted(figures.error_rates.items()):
        rate.add_metric([fleet_id], value)
    for fleet_id, value in sorted(figures.latencies_p95_s.items()):
        latency.add_metric([fleet_id], value)
    for severity, count in figures.raised.items():
        raised.add_metric([severity], count)
    for (fleet_id, severity), count in sorted(figures.open.items()):
        opened.add_metric([fleet_id, severity], count)
    yield rate
    yield latency
    yield raised
    yield opened
