"""Configurations of fleets: what may be set, their numbers and history, and which agents drift; on both databases."""

from typing import Any

import pytest

from contracts.contact.configuration import ResultState, values_of
from server.base.errors import Conflict, Invalid, NotFound
from server.fleet.configuration import drift, settings
from server.fleet.fleets.fleets import required
from server.registry.models.fleets import Device
from tests.server.devices import NOW
from tests.support.serverside import ServerSide

from .shop import Shop

NIGHT = {"zone": "Europe/Berlin", "days": ["mon"], "start": "22:00", "end": "04:00"}


@pytest.fixture
def shop(server: ServerSide) -> Shop:
    made = Shop(server)
    made.fleet("north", 1)
    return made


def sets(shop: Shop) -> dict[str, Any]:
    with shop.server.database.read() as session:
        row = settings.present(session, required(session, "north"))
        return {} if row is None else values_of(settings.members_of(row))


def drifting(shop: Shop, after: str = "", limit: int = 10) -> list[tuple[str, str, int, str]]:
    with shop.server.database.read() as session:
        rows = drift.drifted(session, "north", after, limit)
    return [(each.device_id, each.state, each.number, each.detail) for each in rows]


def test_a_change_keeps_the_rest_and_makes_the_next_number(shop: Shop) -> None:
    assert shop.configure("north", {"updates.notice_h": 72, "updates.window": NIGHT}) == 1
    assert shop.configure("north", change={"updates.notice_h": 48}) == 2
    assert sets(shop) == {"updates.window": NIGHT, "updates.notice_h": 48}
    assert shop.configure("north", change={"updates.notice_h": 48}) == 2, "nothing has changed"
    assert shop.configure("north", unset=["updates.window"]) == 3 and sets(shop) == {"updates.notice_h": 48}
    assert shop.configure("north", {}) == 4 and sets(shop) == {}
    with shop.server.database.read() as session:
        found = settings.history(session, "north", None, 10)
        assert [each.number for each in found] == [4, 3, 2, 1] and {each.created_by for each in found} == {"sam"}
        assert [each.number for each in settings.history(session, "north", 3, 1)] == [2]
        assert values_of(settings.members_of(found[3])) == {"updates.window": NIGHT, "updates.notice_h": 72}, "as it was"


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"server.url": "https://evil"}, "a fleet cannot set server.url; it can set updates.window, "),
        ({"updates.enabled": False}, "cannot set updates.enabled"),
        ({"management.authentication": "uid-only"}, "cannot set management.authentication"),
        ({"updates.notice_h": 0}, "updates.notice_h"),
        ({"updates.notice_h": "72"}, "updates.notice_h"),
        ({"updates.window": {**NIGHT, "zone": "Mars/Olympus"}}, "names the time zone 'Mars/Olympus', which does not exist"),
        ({"updates.window": NIGHT, "updates.consent_last": "12:00"}, "within updates.window"),
        ({"updates.freeze": ["2026-02-30"]}, "there is no such day"),
    ],
)
def test_what_agents_would_refuse_is_refused_here(shop: Shop, members: dict[str, Any], said: str) -> None:
    with pytest.raises(Invalid, match=said):
        shop.configure("north", members)
    assert sets(shop) == {}


def test_who_looked_at_another_number_decides_again(shop: Shop) -> None:
    assert shop.configure("north", {"updates.notice_h": 72}, expected=0) == 1
    for expected in (0, 2):
        with pytest.raises(Conflict, match=f"fleet 'north' has configuration 1, not {expected}"):
            shop.configure("north", {"updates.notice_h": 24}, expected=expected)
    with pytest.raises(Invalid, match=r"does not set updates\.window"):
        shop.configure("north", unset=["updates.window"])
    for call in (lambda: shop.configure("south", {}), lambda: shop.end("south")):
        with pytest.raises(NotFound, match="there is no fleet 'south'"):
            call()


def test_drift_names_each_agent_that_does_not_have_it_in_force_and_why(shop: Shop) -> None:
    with pytest.raises(NotFound, match="has no configuration"):
        drifting(shop)
    names = [shop.id_of(number) for number in range(1, 8)]
    for number in range(1, 8):
        shop.join("north", number)
    shop.fleet("first", 0, 6)
    shop.configure("first", {})
    shop.configure("north", {"updates.notice_h": 24})
    shop.contact(number=3)
    number = shop.configure("north", {"updates.notice_h": 72})
    with shop.server.database.write() as session:
        session.add(Device(id="printer", kind="ddi", name="", created_at=NOW, updated_at=NOW, revision=1))
        session.flush()
    shop.contact()
    shop.contact(ResultState.LIMITED, 2, details=("updates.notice_h: it is 48",), digest="0f" * 32)
    shop.ask(number=4)
    shop.contact(ResultState.REFUSED, 5, details=("an unknown member",))
    shop.contact(number=6)
    assert drifting(shop) == [
        (names[1], "limited", number, "updates.notice_h: it is 48"),
        (names[2], "behind", 1, ""),
        (names[3], "sent", number, ""),
        (names[4], "refused", number, "an unknown member"),
        (names[5], "other-fleet", 1, ""),
        (names[6], "never", 0, ""),
    ]
    assert [each[0] for each in drifting(shop, names[1], 2)] == names[2:4], "page by page"
    with shop.server.database.read() as session:
        assert drift.counted(session, "north", number) == {"sent": 1, "applied": 1, "limited": 1, "refused": 1}
