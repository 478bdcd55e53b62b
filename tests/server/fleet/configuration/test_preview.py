"""When the agents of a fleet may install: windows and frozen days of its configuration, and zones of its devices."""

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from common.zones import UnknownZone
from contracts.contact.configuration import Members
from server.fleet.configuration import preview
from server.fleet.configuration.preview import DeviceZone
from server.fleet.fleets.fleets import required
from server.registry.models.fleets import Device
from tests.support.serverside import ServerSide

from .shop import Shop

BERLIN = ZoneInfo("Europe/Berlin")
NIGHT = {"zone": "Europe/Berlin", "days": ["sat", "sun"], "start": "22:00", "end": "04:00"}


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp())


def opens(now: str, days: int, **set_: Any) -> list[tuple[int, int | None]]:
    members = msgspec.convert({name.replace("_", ".", 1): value for name, value in set_.items()}, Members)
    return [(each.opens, each.closes) for each in preview.preview(members, (), at(now), days).openings]


def test_windows_and_frozen_days_are_those_of_the_configuration() -> None:
    found = opens("2026-12-18T12:00", 4, updates_window=NIGHT, updates_freeze=["2026-12-21"])
    assert found == [
        (at("2026-12-19T22:00"), at("2026-12-20T04:00")), (at("2026-12-20T22:00"), at("2026-12-21T00:00"))
    ]  # fmt: skip
    assert opens("2026-12-18T12:00", 4, updates_freeze=["2000-01-01..2099-12-31"]) == []


@pytest.mark.parametrize(("now", "hours"), [("2026-03-28T12:00", 5), ("2026-10-24T12:00", 7), ("2026-12-19T12:00", 6)])
def test_a_night_is_as_long_as_its_clocks_make_it(now: str, hours: int) -> None:
    ((begin, end),) = opens(now, 1, updates_window=NIGHT)
    assert end is not None and end - begin == hours * 3600


def test_without_a_window_any_time_will_do() -> None:
    found = preview.preview(Members(), (), 1000, 1)
    assert (found.zone, found.window, [each.opens for each in found.openings]) == ("UTC", False, [1000])


def test_a_zone_that_this_machine_does_not_know_is_said() -> None:
    members = msgspec.convert({"updates.window": {**NIGHT, "zone": "Mars/Olympus"}}, Members)
    with pytest.raises(UnknownZone, match="Mars/Olympus"):
        preview.preview(members, (), 1000, 1)


def test_devices_are_counted_by_zone_and_a_wrong_zone_is_said(server: ServerSide) -> None:
    shop = Shop(server)
    shop.fleet("north", 1, 1, 2, 3, 4)
    names = [shop.id_of(number) for number in range(1, 5)]
    zones = ("Europe/Berlin", "Europe/Berlin", "Europe/Berln", None)
    with server.database.write() as session:
        for name, zone in zip(names, zones, strict=True):
            session.get_one(Device, name).zone = zone
    with server.database.read() as session:
        found = preview.zones_of(session, required(session, "north"))
    assert found[0] == DeviceZone("Europe/Berlin", 2, "")
    problems = {each.zone: each.problem for each in found[1:]}
    assert problems[""] == "no time zone is known of these devices"
    assert problems["Europe/Berln"].startswith(
        "the zone of these devices names the time zone 'Europe/Berln', which does not exist"
    )
