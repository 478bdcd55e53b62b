"""Declares the Prometheus metrics of devices and fleets. Performs no IO: a job has counted (`fleet.fleets.figures`)."""

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from server.fleet.fleets.figures import DAYS, Certificates, Figures
from server.fleet.fleets.rotations import Rotations


def of_devices(figures: Figures | None) -> Iterator[Metric]:
    """The metrics; none before the first count. No device has a label of its own."""
    if figures is None:
        return
    everything = figures.devices
    yield GaugeMetricFamily("devices_registered", "Devices in service: neither blocked nor retired.", everything.total)
    yield GaugeMetricFamily(
        "devices_connected", "Devices in service whose last contact was about when it was due.", everything.connected
    )
    days = HistogramMetricFamily(
        "cert_days_remaining",
        "Devices in service by the days until their client certificate ends, as of the last count; one that has ended has 0.",
    )
    days.add_metric([], buckets=_buckets(everything.certificates), sum_value=everything.certificates.days)
    yield days
    yield GaugeMetricFamily(
        "devices_counted_timestamp_seconds",
        "When devices were counted for these metrics, in seconds since 1970 UTC.",
        figures.at,
    )
    total = GaugeMetricFamily("fleet_devices_total", "Devices of a fleet that are in service.", labels=["fleet"])
    connected = GaugeMetricFamily(
        "fleet_devices_connected", "Devices of a fleet whose last contact was about when it was due.", labels=["fleet"]
    )
    average = GaugeMetricFamily(
        "fleet_cert_days_avg", "Days until the client certificates of a fleet's devices end, on average.", labels=["fleet"]
    )
    for name, group in sorted(figures.fleets.items()):
        total.add_metric([name], group.total)
        connected.add_metric([name], group.connected)
        if group.certificates.average is not None:
            average.add_metric([name], group.certificates.average)
    yield total
    yield connected
    yield average


def of_rotations(rotations: Rotations | None) -> Iterator[Metric]:
    """The metrics of renewals; none where the registry could not be read."""
    if rotations is None:
        return
    yield CounterMetricFamily(
        "cert_rotations", "Client certificates that agents have renewed, in a fleet or not.", rotations.total
    )
    each = CounterMetricFamily(
        "fleet_cert_rotations", "Client certificates that the agents of a fleet have renewed.", labels=["fleet"]
    )
    for fleet_id, count in sorted(rotations.fleets.items()):
        each.add_metric([fleet_id], count)
    yield each


def _buckets(certificates: Certificates) -> list[tuple[str, float]]:
    bounds = [(f"{days}.0", float(count)) for days, count in zip(DAYS, certificates.within, strict=False)]
    return [*bounds, ("+Inf", float(certificates.count))]
