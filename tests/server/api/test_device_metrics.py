"""Metrics of devices and fleets: of the last counts, without a label for each device."""

from prometheus_client.parser import text_string_to_metric_families

from server.api.metrics import Facts, Metrics
from server.fleet.fleets.figures import DAYS, Certificates, Figures, Group
from server.fleet.fleets.rotations import Rotations

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(figures: Figures | None, rotations: Rotations | None = None) -> Samples:
    text = Metrics(lambda: Facts({}, {}, devices=figures, rotations=rotations), lambda: 0.0).text().decode()
    found = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    ours = ("devices_", "fleet_", "cert_")
    return {(each.name, tuple(each.labels.items())): each.value for each in found if each.name.startswith(ours)}


def test_there_are_none_before_the_first_count() -> None:
    assert samples(None) == {}


def test_counts_become_metrics() -> None:
    some = Group(7, 5, Certificates((1, 1, *(4 for _ in DAYS[2:])), 6, 60.0))
    nothing = Group(0, 0, Certificates((0,) * len(DAYS), 0, 0.0))
    found = samples(Figures(1234, some, {"pilot": some, "empty": nothing}))
    expected: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {
        ("devices_registered", ()): 7,
        ("devices_connected", ()): 5,
        ("devices_counted_timestamp_seconds", ()): 1234,
        ("fleet_devices_total", (("fleet", "pilot"),)): 7,
        ("fleet_devices_total", (("fleet", "empty"),)): 0,
        ("fleet_devices_connected", (("fleet", "pilot"),)): 5,
        ("fleet_devices_connected", (("fleet", "empty"),)): 0,
        ("fleet_cert_days_avg", (("fleet", "pilot"),)): 10,
        ("cert_days_remaining_sum", ()): 60,
        ("cert_days_remaining_count", ()): 6,
        ("cert_days_remaining_bucket", (("le", "0.0"),)): 1,
        ("cert_days_remaining_bucket", (("le", "7.0"),)): 4,
        ("cert_days_remaining_bucket", (("le", "+Inf"),)): 6,
    }
    assert expected.items() <= found.items()
    assert len(found) == len(expected) + len(DAYS) - 2, "a fleet without certificates has no average"


def test_renewals_are_counted_of_all_agents_and_by_fleet() -> None:
    assert samples(None, Rotations(9, {"pilot": 4, "empty": 0})) == {
        ("cert_rotations_total", ()): 9,
        ("fleet_cert_rotations_total", (("fleet", "pilot"),)): 4,
        ("fleet_cert_rotations_total", (("fleet", "empty"),)): 0,
    }
