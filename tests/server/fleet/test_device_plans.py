"""What is asked of devices is served by indexes, as `tests/server/registry/test_plans.py` shows for the rest of the server.

Only who counts, and a selection that requires no term, read all devices.
"""

import re
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection
from sqlalchemy import text as sql

from contracts.contact.updates import RunningVersion
from server.agents import removal
from server.fleet.devices import blocklist, labels, listing, registry
from server.fleet.devices.selection import matches, parse, selecting
from server.fleet.fleets import fleets, membership
from server.registry.models.fleets import Fleet
from tests.server.devices import NOW, Device
from tests.server.registry.test_plans import captured, scans, server
from tests.support.serverside import Acts, ServerSide

__all__ = ["server"]

ID = "pos-000001"
INDEXED = (
    "tag=beta",
    "hardware=pos-x200",
    "site=shop-1",
    "kind=ddi",
    "zone=UTC",
    "id=pos-0*",
    "id=pos-000001",
    "attr.lane=7",
    "fleet=pilot",
    "pos.version<2",
    "tag=beta and not hardware=pos-x200",
    "tag=beta or hardware=pos-x200",
    "(tag=beta or attr.lane=7) and (zone=UTC or not id=pos-0*)",
    "(tag=beta and not zone=UTC) or pos.version<2",
)
WITHOUT = ("not tag=beta", "tag=beta or not zone=UTC")


def everything(server: ServerSide) -> None:
    """What contacts, operators and rollouts ask of devices."""
    database = server.database
    Device(1).come(server)
    Device(2).come(server)
    devices, marks, places = Acts(registry, database), Acts(labels, database), Acts(fleets, database)
    devices.register("shelf-1", "ddi", "", NOW)
    for version in ("1.0", "1.1"):
        devices.note_contact(ID, (RunningVersion(product="pos", version=version, build_id="b"),), "pos-x200", NOW)
    marks.tag([ID, "shelf-1"], ["beta"], NOW)
    marks.untag(["shelf-1"], ["beta"], NOW)
    marks.put_attributes(ID, {"lane": "7"}, NOW)
    marks.unset_attributes(ID, ["lane"], NOW)
    marks.change(ID, "x", "UTC", NOW)
    places.create("pilot", fleets.Wish(), NOW)
    places.create("beta", fleets.Wish(selection="tag=beta and not fleet=pilot"), NOW)
    places.add_members("pilot", [ID, "shelf-1"], NOW)
    places.remove_members("pilot", ["shelf-1"], NOW)
    with database.read() as session:
        listing.listed(session, NOW, "a", 5)
        for text in INDEXED:
            matches(session, parse(text), ID)
            query = selecting(session, parse(text))
            listing.listed(session, NOW, "a", 5, [query])
            listing.count(session, query)
            listing.ids(session, query, 5)
            list(session.scalars(query))
        for fleet in session.query(Fleet):
            list(session.scalars(membership.members(session, fleet)))
            membership.is_member(session, fleet, "pos-000002")
        membership.fleets_of(session, ID)
        for each in (listing.versions, listing.attributes):
            each(session, ID)
        listing.certificates(session, ID, NOW)
        fleets.listed(session, "5", 5)
    places.remove("beta", NOW)
    Acts(blocklist, database).block(server.server.agents, "shelf-1", NOW)
    server.agents.set_status(ID, "revoked", NOW)
    Acts(removal, database).remove(ID, NOW + 90 * 86_400)


def test_no_statement_reads_all_devices(server: ServerSide) -> None:
    with captured(server) as statements:
        everything(server)
    assert sum("FROM device" in statement for statement in statements) > 40
    assert scans(server, statements) == []


@pytest.fixture
def crowd(server: ServerSide) -> Iterator[Connection]:
    """30,000 devices, of which few have what the selections ask for; PostgreSQL knows how they are distributed."""
    with server.database.engine.connect() as connection:
        for statement in (
            """INSERT INTO device SELECT 'pos-1' || lpad(n::text, 8, '0'), 'agent', '', 'pos-x' || mod(n, 900),
               'Zone/' || mod(n, 400), 'shop-' || mod(n, 3000), NULL, 0, 0, 1 FROM generate_series(1, 30000) n""",
            "INSERT INTO device_tag SELECT id, 'tag-' || right(id, 2) FROM device",
            "INSERT INTO device_attribute SELECT id, 'lane', right(id, 3), 'operator', 0 FROM device",
            """INSERT INTO device_version
               SELECT id, 'pos', CASE WHEN id < 'pos-100000100' THEN '1.0' ELSE '2.1' END, 'b', 0 FROM device""",
            "INSERT INTO fleet_member SELECT 'f-' || right(id, 2), id FROM device",
            "ANALYZE",
        ):
            connection.exec_driver_sql(statement)
        connection.commit()
        yield connection


def read(plan: str) -> list[str]:
    """The tables of which a plan reads all rows, by whichever way."""
    lines = plan.splitlines()
    found = []
    for place, line in enumerate(lines):
        named = re.search(r"(Seq Scan|Index Scan|Index Only Scan|Bitmap Index Scan).* on (device\w*)", line)
        if named is not None and (named[1] == "Seq Scan" or "Index Cond" not in lines[place + 1]):
            found.append(named[2])
    return found


def plan_of(crowd: Connection, server: ServerSide, text: str) -> str:
    with server.database.read() as session:
        query = selecting(session, parse(text)).compile(crowd, compile_kwargs={"render_postcompile": True})
    return "\n".join(row[0] for row in crowd.exec_driver_sql(f"EXPLAIN {query}", dict(query.params)))


def test_a_selection_that_requires_a_term_begins_at_its_index(server: ServerSide, crowd: Connection) -> None:
    for text in INDEXED:
        plan = plan_of(crowd, server, text)
        assert read(plan) == [], f"{text}\n{plan}"
    for text in WITHOUT:  # so it would be seen
        assert "device" in read(plan_of(crowd, server, text)), text


def test_a_selection_is_planned_for_its_own_values_each_time(server: ServerSide) -> None:
    """Else PostgreSQL would use, after a few lists, one plan for the few devices of one tag and the many of another."""
    mode = sql("SHOW plan_cache_mode")
    with server.database.read() as session:
        selecting(session, parse("tag=beta"))
        assert session.scalar(mode) == "force_custom_plan"
    with server.database.read() as session:
        assert session.scalar(mode) == "auto"
