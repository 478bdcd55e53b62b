"""Customers: what is personal is nowhere in the clear, and gone for good once it was erased. On both databases."""

import json
from typing import Any

import pytest
from sqlalchemy import select

from server.base.errors import Conflict, Invalid, NotFound
from server.licensing.sales.orders import Wish, order_of
from server.licensing.states.history import history
from server.registry import audit, events
from server.registry.cipher import Cipher
from server.registry.models.licensing import Customer, Site
from server.registry.models.tables import Base
from tests.server.devices import NOW
from tests.server.licensing.selling import Vendor
from tests.support.serverside import ServerSide

PERSONAL = {
    "name": "Ada Lovelace",
    "contact": "Charles B.",
    "email": "ada@shop.example",
    "phone": "555-0100",
    "address": "1 Main St",
}


def store(server: ServerSide, act: str, *arguments: Any, **named: Any) -> Any:
    with server.database.write() as session:
        return getattr(server.server.customers, act)(session, *arguments, **named)


def everything(server: ServerSide) -> str:
    """All that the registry holds, as one text."""
    with server.database.read() as session:
        rows = [row for table in Base.metadata.sorted_tables for row in session.execute(select(table)).mappings()]
    return repr([dict(row) for row in rows])


def test_a_customer_is_created_changed_and_listed(server: ServerSide) -> None:
    made = store(server, "create", "c-1", PERSONAL, NOW)
    assert (made.customer, made.fields, made.revision, made.erased_at) == ("c-1", PERSONAL, 1, None)
    changed = store(server, "change", "c-1", {"phone": "", "note": "pays late"}, NOW + 1)
    kept = {name: value for name, value in PERSONAL.items() if name != "phone"}
    assert changed.fields == {**kept, "note": "pays late"} and changed.revision == 2
    site = store(server, "create_site", "s-1", "c-1", {"name": "Main street"}, NOW)
    assert store(server, "change_site", "s-1", {"address": "2 Main St"}, NOW).fields == {**site.fields, "address": "2 Main St"}
    assert [row.customer for row in store(server, "listed")] == ["c-1"] and store(server, "listed", "c-1") == []
    assert [row.site for row in store(server, "sites", "c-1")] == ["s-1"]
    assert store(server, "create", None, {}, NOW).customer != store(server, "create", None, {}, NOW).customer


def test_nothing_personal_is_in_the_registry_in_the_clear(server: ServerSide) -> None:
    store(server, "create", "c-1", PERSONAL, NOW)
    store(server, "create_site", "s-1", "c-1", {"name": "Ada's shop"}, NOW)
    store(server, "change", "c-1", {"name": "Ada L."}, NOW)
    found = everything(server)
    assert "c-1" in found and "s-1" in found
    for value in (*PERSONAL.values(), "Ada L.", "Ada's shop"):
        assert value not in found


def test_an_erased_customer_cannot_be_read_from_what_was_kept_of_it(server: ServerSide) -> None:
    vendor = Vendor(server, agents=1)
    vendor.sell("l", vendor.agents[0])
    with server.database.read() as session:
        row = session.get_one(Customer, "c-1")
        key, sealed = server.cipher.open("customer", "c-1", "key", row.key or b""), row.sealed
        site = session.get_one(Site, "s-1").sealed
    assert json.loads(Cipher(key).open("customer", "c-1", "sealed", sealed or b""))["name"] == "Ada Lovelace Ltd"
    erased = store(server, "erase", "c-1", NOW + 5)
    assert (erased.fields, erased.erased_at, erased.revision) == ({}, NOW + 5, 2)
    assert store(server, "erase", "c-1", NOW + 9).erased_at == NOW + 5
    found = everything(server)
    for gone in (key, sealed, site):
        assert repr(gone)[2:-1] not in found
    assert store(server, "sites", "c-1")[0].fields == {}
    # The license, its history, the audit and the events stay, with ids.
    assert vendor.row("l").customer == "c-1" and vendor.row("l").state == "active"
    with server.database.read() as session:
        assert history(session, "l")[0].fields["customer"] == "c-1"
        assert [row.kind for row in events.listed(session, 0, 100, "c-1")] == ["customer.created", "customer.erased"]
        assert audit.verify(session, server.cipher.audit_key())[1] is None
    for act, arguments in (("change", ("c-1", {"name": "x"})), ("create_site", ("s-2", "c-1", {}))):
        with pytest.raises(Conflict, match="was erased: nothing more is stored of it"):
            store(server, act, *arguments, NOW)
    with server.database.read() as session, pytest.raises(Conflict, match="was erased, and gets no licenses"):
        order_of(session, Wish("m", policy="year", customer="c-1"), NOW)


def test_fields_of_one_customer_do_not_open_as_anothers(server: ServerSide) -> None:
    for customer in ("c-1", "c-2"):
        store(server, "create", customer, {"name": customer}, NOW)
    with server.database.write() as session:
        one, two = session.get_one(Customer, "c-1"), session.get_one(Customer, "c-2")
        one.key, one.sealed = two.key, two.sealed
    with pytest.raises(Exception, match="cannot be decrypted"):
        store(server, "show", "c-1")


def test_what_is_wrong_is_refused_with_words(server: ServerSide) -> None:
    store(server, "create", "c-1", {}, NOW)
    store(server, "create", "c-2", {}, NOW)
    store(server, "create_site", "s-1", "c-1", {}, NOW)
    for act, arguments, kind, text in (
        ("create", ("c-1", {}), Conflict, "there is a customer 'c-1' already"),
        ("create", ("a b", {}), Invalid, "is not an id: use 1 to 64 letters"),
        ("create", ("x", {"salary": "1"}), Invalid, "unknown field 'salary': use name, contact"),
        ("create", ("x", {"name": "a\nb"}), Invalid, "has a character that no text may have"),
        ("create", ("x", {"note": "a" * 1001}), Invalid, "must have 0 to 1000 characters"),
        ("create_site", ("s-2", "nobody", {}), NotFound, "'license-server customers list' lists them"),
        ("change_site", ("s-2", {}), NotFound, "'license-server sites list' lists them"),
    ):
        with pytest.raises(kind, match=text):
            store(server, act, *arguments, NOW)
    with pytest.raises(Conflict, match="has revision 1, not 3"):
        store(server, "change", "c-1", {}, NOW, 3)
    with server.database.read() as session, pytest.raises(Conflict, match="belongs to another customer: name customer 'c-1'"):
        order_of(session, Wish(customer="c-2", site="s-1", expires=NOW + 5), NOW)
