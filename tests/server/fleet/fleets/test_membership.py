"""Members of fleets: static ones, selected ones, and the order of fleets."""

from collections.abc import Iterator

import pytest
from sqlalchemy.orm import Session

from server.fleet.fleets.membership import fleets_of, is_member, members
from server.registry.models.fleets import Fleet, FleetMember
from tests.server.devices import NOW
from tests.server.fleet.devices.manydevices import fill
from tests.support.serverside import ServerSide

SELECTIONS = (None, "tag=beta", "not tag=beta", "tag=beta and (hardware=pos-x200 or id=e-*)", "fleet=f-1")


@pytest.fixture
def session(server: ServerSide) -> Iterator[Session]:
    with server.database.write() as session:
        yield session


def fleet(session: Session, fleet_id: str, rank: int, selection: str | None) -> Fleet:
    common = {"tags": "[]", "policy": "{}", "created_at": NOW, "updated_at": NOW, "revision": 1}
    made = Fleet(id=fleet_id, name=fleet_id, selection=selection, rank=rank, configuration=None, **common)
    session.add(made)
    return made


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
def test_a_fleet_has_its_static_members_and_those_it_selects(session: Session, selection: str | None) -> None:
    ids = fill(session, 30)
    made = fleet(session, "mine", 1, selection)
    session.add_all(FleetMember(fleet_id="mine", device_id=each) for each in ids[:3])
    found = list(session.scalars(members(session, made)))
    assert len(found) == len(set(found)) and set(ids[:3]) <= set(found)
    assert set(found) == {each for each in ids if is_member(session, made, each)}
    assert len(found) == 3 if selection is None else 3 < len(found) < 30


def test_the_fleets_of_a_device_are_in_the_order_of_their_rank(session: Session) -> None:
    ids = fill(session, 30)
    made = [fleet(session, f"fleet-{rank}", rank, SELECTIONS[rank % 5]) for rank in (5, 3, 8, 1, 4, 2)]
    session.add(FleetMember(fleet_id="fleet-5", device_id=ids[4]))
    for each in ids:
        expected = sorted(one.rank for one in made if is_member(session, one, each))
        assert [one.rank for one in fleets_of(session, each)] == expected
    assert 5 in [one.rank for one in fleets_of(session, ids[4])]
    assert fleets_of(session, "nobody") == []
