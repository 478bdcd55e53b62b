"""Contacts become observations of fleets: noted by device, added by processes, written once, and removed after 90 days."""

import pytest
from sqlalchemy import func, inspect, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from server.base.errors import Conflict
from server.fleet.fleets import figures, fleets
from server.fleet.fleets.fleets import Wish
from server.fleet.monitoring import contacts as noted
from server.fleet.monitoring import latency, observations, retention
from server.fleet.monitoring.contacts import Contacts, Failure
from server.fleet.monitoring.intervals import INTERVAL_S, KEPT_S, interval_of
from server.fleet.monitoring.retention import AHEAD, DAY_S, make_room, remove_observations
from server.registry.models.fleets import Device, DeviceSeen, DeviceTag
from server.registry.models.monitoring import FleetObservation
from tests.server.devices import NOW
from tests.support.serverside import ServerSide

AT = interval_of(NOW)


class Time:
    def __init__(self) -> None:
        self.now = float(AT)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def shop(server: ServerSide) -> ServerSide:
    """Devices d0 to d9, of which the even ones have the tag beta; a fleet by selection, and a static one."""
    with server.database.write() as session:
        for n in range(10):
            session.add(Device(id=f"d{n}", kind="ddi", name="", created_at=NOW, updated_at=NOW, revision=1))
            if n % 2 == 0:
                session.add(DeviceTag(device_id=f"d{n}", tag="beta"))
        session.flush()
        fleets.create(session, "beta", Wish(selection="tag=beta"), NOW)
        fleets.create(session, "few", Wish(), NOW)
        fleets.add_members(session, "few", ["d0", "d1"], NOW)
    return server


def rows(server: ServerSide) -> dict[tuple[str, int], FleetObservation]:
    with server.database.read() as session:
        return {(row.fleet_id, row.at): row for row in session.scalars(select(FleetObservation))}


def test_a_device_counts_once_in_an_interval_however_often_it_asks() -> None:
    time = Time()
    contacts = Contacts(time)
    contacts.note("a", 0.004)
    contacts.note("a", 3.0, Failure.REFUSED)
    contacts.note("a", 0.004, Failure.ROTATION)
    contacts.note("b", 9.0)
    assert contacts.take() == {}  # the interval goes on
    time.now += INTERVAL_S
    contacts.note("b", 0.02)
    taken = contacts.take()
    assert list(taken) == [AT]
    devices = taken[AT].devices
    assert noted.failures(devices["a"]) == Failure.REFUSED | Failure.ROTATION
    assert noted.slowest(devices["a"]) == latency.BOUNDS.index(3.0)
    assert (noted.failures(devices["b"]), noted.slowest(devices["b"])) == (Failure.NONE, len(latency.BOUNDS))
    assert list(contacts.take(everything=True)) == [AT + INTERVAL_S]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noted, "MAX_DEVICES", 2)
    time = Time()
    contacts = Contacts(time)
    for device_id in ("a", "b", "c", "a"):
        contacts.note(device_id, 0.1)
    for _ in range(noted.MAX_INTERVALS):
        time.now += INTERVAL_S
        contacts.note("a", 0.1)
    taken = contacts.take(everything=True)
    assert len(taken) == noted.MAX_INTERVALS
    assert AT not in taken
    time.now = AT
    for device_id in ("a", "b", "c", "a"):
        contacts.note(device_id, 0.1)
    full = contacts.take(everything=True)[AT]
    assert (set(full.devices), full.unnoted) == ({"a", "b"}, 1)


def test_what_processes_have_noted_is_added_for_each_fleet_of_a_device(shop: ServerSide) -> None:
    time = Time()
    one, other = Contacts(time), Contacts(time)
    for n in range(4):
        one.note(f"d{n}", 0.004)
    one.note("d2", 0.3, Failure.REFUSED)
    one.note("stranger", 0.1)
    other.note("d0", 0.3, Failure.REFUSED | Failure.ROTATION)
    time.now += INTERVAL_S
    assert observations.write(shop.database, one) == 4
    assert observations.write(shop.database, other) == 2
    assert observations.write(shop.database, one) == 0
    found = rows(shop)
    assert set(found) == {("beta", AT), ("few", AT)}
    beta, few = found["beta", AT], found["few", AT]
    assert (beta.contacts, beta.failed, beta.refused, beta.rotations) == (3, 2, 2, 1)
    assert (few.contacts, few.failed, few.refused, few.rotations) == (3, 1, 1, 1)
    assert latency.counts_of(beta.latencies) == (1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0)
    assert beta.devices is None


def test_a_fleet_whose_selection_cannot_be_answered_keeps_no_other_from_being_counted(
    shop: ServerSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    among = observations.among

    def failing(session: Session, fleet: object, ids: list[str]) -> set[str]:
        if getattr(fleet, "id", None) == "beta":
            raise Conflict("too many versions")
        return among(session, fleet, ids)  # type: ignore[arg-type]

    monkeypatch.setattr(observations, "among", failing)
    contacts = Contacts(Time())
    contacts.note("d0", 0.1)
    assert observations.write(shop.database, contacts, everything=True) == 1
    assert set(rows(shop)) == {("few", AT)}


def test_what_the_database_did_not_take_is_written_later(shop: ServerSide, monkeypatch: pytest.MonkeyPatch) -> None:
    contacts = Contacts(Time())
    contacts.note("d0", 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(observations, "_write", _raising)
        with pytest.raises(OperationalError):
            observations.write(shop.database, contacts, everything=True)
    assert rows(shop) == {}
    assert observations.write(shop.database, contacts, everything=True) == 2


def _raising(*_: object) -> int:
    raise OperationalError("", None, Exception("gone"))


def test_quantiles_are_as_exact_as_their_buckets() -> None:
    assert latency.quantile(latency.NONE, 0.95) is None
    counts = list(latency.NONE)
    counts[latency.bucket_of(0.2)] = 95
    counts[latency.bucket_of(3.0)] = 5
    found = latency.quantile(counts, 0.95)
    assert found == 0.25
    assert latency.quantile(counts, 0.5) == pytest.approx(0.1 + 0.15 * 50 / 95)
    assert 2.0 < (latency.quantile(counts, 0.99) or 0) <= 3.0
    assert latency.quantile([0] * 12 + [3], 0.5) == 5.0  # nothing beyond the last bound can be told apart
    assert latency.counts_of(latency.text_of(counts)) == tuple(counts)
    for text in ("", "1,2", "a," * 12 + "b", "-1" + ",0" * 12):
        assert latency.counts_of(text) == latency.NONE


def test_late_devices_are_those_that_came_once_and_left_out_a_contact(shop: ServerSide) -> None:
    with shop.database.write() as session:
        session.add_all([DeviceSeen(device_id="d0", at=NOW), DeviceSeen(device_id="d2", at=NOW - 5 * DAY_S)])
    found = figures.count(shop.database, NOW).fleets["beta"]
    assert (found.total, found.connected, found.late) == (5, 1, 1)


def observe(server: ServerSide, *times: int) -> None:
    with server.database.write() as session:
        for at in times:
            observations.row_of(session, "beta", at).contacts += 1


def partitions(server: ServerSide) -> set[str]:
    with server.database.engine.connect() as connection:
        return {name for name in inspect(connection).get_table_names() if name.startswith("fleet_observation_")}


def removed(server: ServerSide, now: int) -> int:
    with server.database.write() as session:
        return remove_observations(session, now)


def kept(server: ServerSide) -> int:
    with server.database.read() as session:
        return session.scalar(select(func.count()).select_from(FleetObservation)) or 0


def test_observations_are_kept_for_90_days_on_both_databases(shop: ServerSide) -> None:
    begin = NOW // DAY_S * DAY_S
    with shop.database.write() as session:
        made = make_room(session, NOW)
        assert make_room(session, NOW) == 0
    assert made == (0 if shop.database.is_sqlite else AHEAD)
    observe(shop, *(begin + n * 6 * 3600 for n in range(8)))  # two days
    assert kept(shop) == 8
    removed(shop, begin + KEPT_S)
    assert kept(shop) == 8
    removed(shop, begin + DAY_S + KEPT_S)
    assert kept(shop) == 4
    removed(shop, begin + DAY_S + 7 * 3600 + KEPT_S)
    assert kept(shop) == 2
    removed(shop, begin + 30 * DAY_S + KEPT_S)
    assert kept(shop) == 0
    assert partitions(shop) == (set() if shop.database.is_sqlite else {"fleet_observation_rest"})


def test_what_comes_on_a_day_without_a_partition_is_kept_and_removed_too(shop: ServerSide) -> None:
    begin = NOW // DAY_S * DAY_S
    observe(shop, begin + 300, begin + DAY_S)  # nobody has made room
    with shop.database.write() as session:
        made = make_room(session, NOW)
    assert made == (0 if shop.database.is_sqlite else AHEAD - 2)
    observe(shop, begin + 600, begin + DAY_S, begin + 3 * DAY_S)
    assert kept(shop) == 4
    assert removed(shop, begin + DAY_S + KEPT_S) == 2
    assert kept(shop) == 2


def test_many_rows_go_in_batches(shop: ServerSide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 3)
    observe(shop, *range(AT, AT + 5 * INTERVAL_S, INTERVAL_S))
    assert [removed(shop, AT + KEPT_S + DAY_S) for _ in range(3)] == [3, 2, 0]


def test_a_deleted_fleet_leaves_no_observations_to_one_of_the_same_name(shop: ServerSide) -> None:
    observe(shop, AT)
    with shop.database.write() as session:
        fleets.remove(session, "beta", NOW)
    assert kept(shop) == 0
