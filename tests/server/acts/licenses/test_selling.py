"""A vendor's acts: what is sold, to whom, licenses one and many, reports; what is kept of a person. On both databases."""

import json
import time
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, text

from server.accounts.roles import SCOPES, Role
from server.acts.caller import Caller, local
from server.acts.catalog import ACTS
from server.acts.runner import PreconditionFailed, PreconditionMissing
from server.acts.tables import MAX_LINES, RowsRefused
from server.base.errors import Conflict, Invalid, NotAllowed, NotFound
from server.registry.models.core import Base
from tests.server.acts.operators import Desk, account
from tests.server.devices import NOW, Device
from tests.support.serverside import ServerSide

DAY = 86_400
YEAR = 365 * DAY
PERSONAL = {"name": "Ada Lovelace Ltd", "email": "ada@shop.example", "phone": "+44 20 7946 0018", "note": "likes =1+1"}


class Shop:
    """A desk with a clerk who sells, and what they sell."""

    def __init__(self, server: ServerSide) -> None:
        self.server, self.desk = server, Desk(server)
        self.ines = account(server, "ines", Role.ISSUER)
        self.agents = [Device(number).come(server).agent_id for number in (1, 2)]
        for agent in self.agents:
            server.secrets.rotate_by_hand(agent, NOW)
        self.do("products.create", product="till", name="Till software")
        self.do("entitlement_sets.create", entitlement_set="base", name="Base", features=["sales"])
        self.do("policies.create", policy="year", product="till", name="A year", entitlement_set="base", duration=YEAR)
        self.do("policies.create", policy="pro", product="till", name="Pro", features=["kiosk"], duration=YEAR)
        self.do("customers.create", customer="c-1", fields=PERSONAL)
        self.do("sites.create", site="s-1", customer="c-1", fields={"address": "1 Main Street"})

    def do(self, name: str, by: Caller | None = None, now: int = NOW, /, **named: Any) -> Any:
        return self.desk.do(name, by or self.ines, now, **named)


@pytest.fixture
def shop(server: ServerSide) -> Shop:
    return Shop(server)


def test_a_license_from_its_sale_to_its_end(shop: Shop) -> None:
    first, second = shop.agents
    sam = account(shop.server, "sam", Role.SUPPORT)
    sold = shop.do("licenses.issue", policy="year", site="s-1", license_id="l")
    assert (sold.token, sold.license.state, sold.license.customer) == (None, "unassigned", "c-1")
    assigned = shop.do("licenses.assign", sam, license_id="l", agent_id=first)
    assert assigned.state == "active" and "'license-server reissue" in assigned.notices[0]
    suspended = shop.do("licenses.suspend", license_id="l", reason="invoice 4711")
    assert suspended.state == "suspended" and "does not say that it learns of this" in suspended.notices[0]
    with pytest.raises(NotAllowed, match="needs issuer or security_officer"):
        shop.do("licenses.reinstate", sam, license_id="l")
    assert shop.do("licenses.reinstate", license_id="l").state == "active"
    assert shop.do("licenses.renew", license_id="l").expires == NOW + 2 * YEAR
    assert shop.do("licenses.upgrade", license_id="l", policy="pro", features=["fuel"]).features == ("kiosk", "fuel")
    assert shop.do("licenses.transfer", sam, license_id="l", agent_id=second).agent_id == second
    assert shop.do("licenses.release", license_id="l").state == "unassigned"
    shop.do("licenses.assign", license_id="l", agent_id=first)
    moved = shop.do("agents.replace", sam, agent_id=first, successor=second)
    assert moved.licenses == ("l",) and shop.server.agent(first).shown_status == "retired"  # type: ignore[union-attr]
    assert shop.do("licenses.revoke", license_id="l").state == "revoked"
    found: list[str] = []
    after = ""
    while after is not None:
        page = shop.do("licenses.history", license_id="l", limit=3, after=after)
        found += [each.event for each in page.items]
        after = page.after
    assert found == [
        "issued", "assigned", "suspended", "reinstated", "renewed", "upgraded", "transferred", "released", "assigned",
        "transferred", "revoked",
    ]  # fmt: skip
    past = shop.do("licenses.history", license_id="l").items
    assert past[2].fields["why"] == "invoice 4711" and past[1].fields["account"] == "sam"


def test_a_clerk_does_not_change_what_another_has_changed(shop: Shop) -> None:
    for name, named, change in (
        ("products", {"product": "till"}, {"name": "Till"}),
        ("entitlement_sets", {"entitlement_set": "base"}, {"features": ["sales", "returns"]}),
        ("policies", {"policy": "year"}, {"duration": 2 * YEAR}),
        ("customers", {"customer": "c-1"}, {"fields": {"phone": ""}}),
        ("sites", {"site": "s-1"}, {"fields": {"note": "back door"}}),
    ):
        with pytest.raises(PreconditionMissing):
            shop.do(f"{name}.change", **named, **change)
        seen = str(shop.do(f"{name}.show", **named).revision)
        assert shop.do(f"{name}.change", **named, **change, if_match=seen).revision == 2
        with pytest.raises(PreconditionFailed):
            shop.do(f"{name}.change", **named, **change, if_match=seen)
    shop.do("licenses.issue", policy="year", license_id="l", agent_id=shop.agents[0])
    seen = str(shop.do("licenses.show", license_id="l").revision)
    shop.do("licenses.renew", license_id="l", if_match=seen)
    for act in ("renew", "suspend", "release", "revoke"):
        with pytest.raises(PreconditionFailed):
            shop.do(f"licenses.{act}", license_id="l", if_match=seen)
    assert shop.do("licenses.show", license_id="l").expires == NOW + 4 * YEAR


def test_licenses_are_found_by_everything_that_they_name(shop: Shop) -> None:
    shop.do("customers.create", customer="c-2")
    for number, customer in ((1, "c-1"), (2, "c-2"), (3, "c-1")):
        shop.do("licenses.issue", license_id=f"l-{number}", policy="year", customer=customer)
    shop.do("licenses.assign", license_id="l-3", agent_id=shop.agents[0])

    def found(**which: Any) -> list[str]:
        return [each.license_id for each in shop.do("licenses.list", **which).items]

    assert found(customer="c-1") == ["l-1", "l-3"] and found(customer="c-2") == ["l-2"]
    assert found(state="unassigned") == ["l-1", "l-2"] and found(agent_id=shop.agents[0]) == ["l-3"]
    assert found(customer="c-1", state="active", product="till", policy="year") == ["l-3"] and found(site="s-1") == []
    assert found(subject="c-2") == ["l-2"]
    for which in ({"customer": "c-9"}, {"site": "s-9"}, {"policy": "x"}, {"product": "x"}):
        with pytest.raises(NotFound):
            found(**which)
    with pytest.raises(Conflict, match="belongs to another customer"):
        shop.do("licenses.issue", policy="year", customer="c-2", site="s-1")
    assert [each.license_id for each in shop.do("licenses.list", limit=2).items] == ["l-1", "l-2"]


# Many


def test_a_table_is_issued_whole_or_line_by_line_and_never_twice(shop: Shop) -> None:
    table = f"license_id;agent;policy;expires;subject\nx1;{shop.agents[0]};year;;=1+1\nx2;nobody;year;;\nx3;;;soon;\n"
    with pytest.raises(RowsRefused) as refused:
        shop.do("licenses.import", table=table, idempotency_key="k")
    assert [(row.line, row.id) for row in refused.value.rows] == [(3, "x2"), (4, None)]
    assert "2 of 3 lines are bad, so nothing was done (line 3: no agent 'nobody'" in str(refused.value)
    assert shop.do("licenses.list").items == ()
    done = shop.do("licenses.import", table=table, row_by_row=True)
    assert (done.issued, done.unchanged, done.bad) == (1, 0, 2)
    assert done.results[0].token.count(".") == 4 and done.results[2].problem.startswith("expires: ")
    again = shop.do("licenses.import", table=table, row_by_row=True)
    assert (again.issued, again.unchanged, again.bad) == (0, 1, 2)
    items = [{"license_id": "y1", "policy": "year", "features": ["a|b"], "metadata": {"shop": "7"}}, {"policy": "pro"}]
    done = shop.do("licenses.import", items=items, batch="order-7", idempotency_key="k")
    assert [each.license_id for each in done.results] == ["y1", "order-7-2"]
    assert shop.do("licenses.import", items=items, batch="order-7", idempotency_key="k") == done
    assert shop.do("licenses.show", license_id="y1").features == ("sales", "a|b")
    for wrong in ({}, {"table": table, "items": items}):
        with pytest.raises(Invalid, match="one of the two"):
            shop.do("licenses.import", **wrong)
    with pytest.raises(Invalid, match="own machine only"):
        shop.do("licenses.import", table=table, zone="local")


def test_many_lines_are_divided_by_who_asks_over_the_network(shop: Shop) -> None:
    with pytest.raises(Invalid, match="divide the table"):
        shop.do("licenses.issue_many", count=MAX_LINES + 1, batch="b", policy="year")
    with pytest.raises(Invalid, match="divide the table"):
        shop.do("customers.import", table="customer\n" + "c\n" * (MAX_LINES + 1))


def test_five_hundred_licenses_in_one_request_add_up(shop: Shop) -> None:
    began = time.perf_counter()
    done = shop.do("licenses.issue_many", count=500, batch="o", policy="year", customer="c-1", idempotency_key="o")
    print(f"500 licenses in one request: {time.perf_counter() - began:.2f} s")
    assert (done.issued, done.results[-1].license_id) == (500, "o-0500")
    assert shop.do("licenses.issue_many", count=500, batch="o", policy="year", customer="c-1").unchanged == 500
    found, after = 0, ""
    while after is not None:
        page = shop.do("licenses.export", customer="c-1", limit=200, after=after)
        found, after = found + len(page.items), page.after
    assert found == 500
    ends, after = [], ""
    while after is not None:
        page = shop.do("reports.expiry", until=NOW + YEAR + 1, limit=150, after=after)
        ends, after = ends + [each.license_id for each in page.items], page.after
    assert len(ends) == 500 and ends == sorted(ends)
    assert shop.do("reports.expiry").items == () and shop.do("reports.expiry", begin=NOW + YEAR, limit=1).items[0].state
    with pytest.raises(Invalid, match="begin again"):
        shop.do("reports.expiry", after="x")


def test_reports_of_devices_add_up(shop: Shop) -> None:
    for number in range(3):
        shop.do("licenses.issue", license_id=f"l-{number}", policy="year", agent_id=shop.agents[0])
    shop.do("licenses.suspend", license_id="l-0")
    rows = {each.agent_id: each for each in shop.do("reports.devices").items}
    assert (rows[shop.agents[0]].active, rows[shop.agents[0]].suspended, rows[shop.agents[1]].active) == (2, 1, 0)
    assert [each.agent_id for each in shop.do("reports.devices", limit=1, after=shop.agents[0]).items] == [shop.agents[1]]


def test_customers_and_sites_come_from_a_table(shop: Shop) -> None:
    table = "customer,name,email\nc-7,'=Seven Ltd,seven@shop.example\nc-1,Somebody else,\nno id!,x,\n,nameless,\n"
    with pytest.raises(RowsRefused) as refused:
        shop.do("customers.import", table=table)
    assert [(row.line, row.id) for row in refused.value.rows] == [(3, "c-1"), (4, "no id!"), (5, "")]
    assert "Somebody" not in str(refused.value) + "".join(row.problem for row in refused.value.rows)
    with pytest.raises(NotFound):
        shop.do("customers.show", customer="c-7")
    done = shop.do("customers.import", table=table, row_by_row=True)
    assert (done.created, done.unchanged, done.bad) == (1, 0, 3)
    assert shop.do("customers.show_details", customer="c-7").fields == {"name": "=Seven Ltd", "email": "seven@shop.example"}
    same = [{"customer": "c-7", "name": "=Seven Ltd", "email": "seven@shop.example"}]
    assert shop.do("customers.import", items=same).unchanged == 1
    sites = [{"site": "s-7", "customer": "c-7", "address": "7 High Street"}, {"site": "s-1", "customer": "c-7"}]
    with pytest.raises(RowsRefused, match="another customer"):
        shop.do("sites.import", items=sites)
    assert shop.do("sites.import", items=sites[:1]).created == 1
    assert [each.site for each in shop.do("sites.list", customer="c-7").items] == ["s-7"]


def test_many_enrollment_tokens_are_made_at_once(shop: Shop) -> None:
    sam = account(shop.server, "sam", Role.SUPPORT)
    made = shop.do("enrollment_tokens.make_many", sam, count=20, idempotency_key="van 3")
    assert len({each.text for each in made.items}) == 20
    assert shop.do("enrollment_tokens.make_many", sam, count=20, idempotency_key="van 3") == made
    listed = shop.do("enrollment_tokens.list", sam, state="open").items
    assert sorted(each.claim_id for each in listed) == sorted(each.claim_id for each in made.items)
    with shop.server.database.read() as session:
        assert not [each for each in made.items if each.text in everything(session)]


# Personal data


def everything(session: Any) -> str:
    """All rows of all tables, as text; bytes as those characters that they are."""
    found = []
    for table in Base.metadata.sorted_tables:
        for row in session.execute(select(table)):
            found += [cell.decode("latin-1") if isinstance(cell, bytes) else str(cell) for cell in row]
    found += [str(row) for row in session.execute(text("SELECT fields FROM audit"))]
    return "\n".join(found)


def test_nothing_personal_is_in_any_table_in_the_clear(shop: Shop) -> None:
    key = {"idempotency_key": "k"}
    shop.do("customers.create", customer="c-2", fields=PERSONAL, **key)
    shop.do("customers.change", customer="c-2", fields={"contact": "Grace Hopper"}, if_match="*", **key)
    shop.do("customers.import", items=[{"customer": "c-3", "name": "Edsger Dijkstra"}], **key)
    shop.do("sites.create", site="s-2", customer="c-2", fields={"address": "12 Byron Road"}, **key)
    shop.do("sites.change", site="s-2", fields={"note": "ring at Babbage"}, if_match="*", **key)
    shop.do("licenses.issue", policy="year", site="s-2", license_id="l", **key)
    with pytest.raises(RowsRefused):
        shop.do("customers.import", items=[{"customer": "c-3", "name": "Barbara Liskov"}])
    with shop.server.database.read() as session:
        kept = everything(session)
    assert "c-2" in kept and "s-2" in kept and "Till software" in kept, "the search finds what is in the clear"
    for name in (*PERSONAL.values(), "1 Main Street", "Hopper", "Dijkstra", "Byron", "Babbage", "Liskov"):
        assert name not in kept, name
    told = [shop.do(name, limit=500) for name in ("customers.list", "sites.list", "licenses.list", "licenses.export")]
    assert "Ada" not in json.dumps([each.model_dump(mode="json") for each in told])
    assert shop.do("customers.show_details", customer="c-2").fields == {**PERSONAL, "contact": "Grace Hopper"}
    assert shop.do("sites.show_details", site="s-2").fields == {"address": "12 Byron Road", "note": "ring at Babbage"}


def test_an_erased_customer_stays_an_id(shop: Shop) -> None:
    olga = account(shop.server, "olga", Role.SECURITY_OFFICER)
    with pytest.raises(NotAllowed, match="security_officer"):
        shop.do("customers.erase", customer="c-1")
    assert shop.do("customers.erase", olga, customer="c-1").erased_at == NOW
    assert shop.do("customers.show_details", customer="c-1").fields == {}
    assert shop.do("sites.show_details", site="s-1").fields == {}
    with pytest.raises(Conflict, match="was erased"):
        shop.do("customers.change", customer="c-1", fields={"name": "Ada"}, if_match="*")
    with pytest.raises(RowsRefused, match="was erased"):
        shop.do("customers.import", items=[{"customer": "c-1", "name": "Ada"}])


def test_who_may_only_read_ids_sees_nothing_personal(shop: Shop) -> None:
    vera, olga = account(shop.server, "vera", Role.VIEWER), account(shop.server, "olga", Role.SECURITY_OFFICER)
    for who in (vera, olga):
        for act in ACTS:
            if act.reads and act.name.partition(".")[0] in ("customers", "sites"):
                body = {name: {"customer": "c-1", "site": "s-1"}[name] for name, field in act.body.model_fields.items()
                        if field.is_required()}  # fmt: skip
                try:
                    shown = shop.do(act.name, who, **body)
                except NotAllowed:
                    continue
                assert not set(PERSONAL.values()) & set(str(shown.model_dump()).split("'")), act.name


def test_a_token_that_writes_licenses_reads_no_customer(shop: Shop) -> None:
    webshop = replace(account(shop.server, "web", Role.ISSUER, "program"), scopes=frozenset({"licenses:write"}), via="token")
    issued = shop.do("licenses.issue", webshop, policy="year", site="s-1", agent_id=shop.agents[0])
    refused = 0
    for act in ACTS:
        if act.name.partition(".")[0] in ("customers", "sites") or act.name.startswith(("reports.", "licenses.export")):
            required = {name for name, field in act.body.model_fields.items() if field.is_required()}
            body: dict[str, Any] = {name: {} if name == "fields" else "c-1" for name in required}
            options = {"if_match": "*"} if act.match_required else {}
            with pytest.raises(NotAllowed, match="has not the scope"):
                shop.do(act.name, webshop, **body, **options)
            refused += 1
    assert refused > 15
    text = str(issued.model_dump())
    assert "c-1" in text and not [value for value in PERSONAL.values() if value in text]


def test_no_act_with_personal_data_is_kept_for_an_approval() -> None:
    for act in ACTS:
        if act.name.partition(".")[0] in ("customers", "sites"):
            assert not act.approval, act.name
            assert act.scope in SCOPES and act.scope.startswith("customers:")


def test_the_command_line_of_the_server_may_issue_more_at_once(shop: Shop) -> None:
    table = "customer\n" + "".join(f"k-{number}\n" for number in range(MAX_LINES + 2))
    assert shop.do("customers.import", local(), table=table).created == MAX_LINES + 2
