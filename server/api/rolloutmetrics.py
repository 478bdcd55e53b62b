"""Declares the Prometheus metrics of rollouts. Performs no IO: the groups have counted (`fleet.rollouts.views`)."""

from collections.abc import Iterator

from prometheus_client.metrics_core import GaugeMetricFamily, Metric, SummaryMetricFamily

from server.fleet.rollouts.views import Figures


def of_rollouts(figures: Figures | None) -> Iterator[Metric]:
    """The metrics; none where the registry could not be read. No device has a label of its own."""
    if figures is None:
        return
    yield SummaryMetricFamily(
        "fleet_update_duration",
        "Seconds from a device's order to its proof that the update runs, over all rollouts.",
        count_value=figures.proved,
        sum_value=figures.seconds,
    )
    yield GaugeMetricFamily(
        "fleet_update_error_rate",
        "Of the devices that have ended in rollouts which are not at their end, the share that has failed, 0 to 1.",
        figures.error_rate,
    )
