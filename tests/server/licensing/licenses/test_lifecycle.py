"""What happens to a license after it was sold: by the table of its states, with its history, on both databases."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from contracts.claims import MAX_VALUE_CHARS
from contracts.licensetoken import parse_token
from server.base.errors import Conflict, Invalid, NotFound, RegistryError
from server.licensing.licenses import replacement
from server.licensing.lists.license_list import EVERY, Filter, devices, ending, listed
from server.licensing.states.license_states import TRANSITIONS, Event, State
from server.registry import audit, events
from server.registry.models.core import License
from tests.server.atonce import at_once
from tests.server.devices import NOW
from tests.server.licensing.selling import YEAR, Vendor
from tests.support.serverside import ServerSide, open_server


@pytest.fixture
def vendor(server: ServerSide) -> Vendor:
    return Vendor(server)


def test_a_license_by_policy_has_the_policys_terms(vendor: Vendor) -> None:
    one, _two = vendor.agents
    token = vendor.sell("l", one, features=("extra",), metadata={"shop": "7"})
    assert token is not None and parse_token(token).agent_id == one
    row = vendor.row("l")
    assert (row.features, row.metadata) == (("sales", "fuel", "extra"), {"tier": "1", "shop": "7"})
    assert (row.subject, row.customer, row.site, row.policy, row.product) == ("c-1", "c-1", "s-1", "year", "till")
    assert (row.not_before, row.expires, row.state, row.revision) == (NOW, NOW + YEAR, "active", 1)


def test_the_life_of_a_license(vendor: Vendor) -> None:
    """From the shelf to a till, suspended, renewed, moved, upgraded, released, sold again, and revoked."""
    one, two = vendor.agents
    vendor.sell("l")
    assert vendor.row("l").state == "unassigned"
    vendor.do("assign", "l", one)
    vendor.do("suspend", "l", now=NOW + 1)
    assert vendor.row("l").suspended_at == NOW + 1
    assert vendor.do("renew", "l", now=NOW + 2) == NOW + 2 * YEAR
    vendor.do("transfer", "l", two, now=NOW + 3)
    assert (vendor.row("l").agent_id, vendor.row("l").state) == (two, "suspended")
    vendor.do("reinstate", "l", now=NOW + 4)
    assert vendor.do("upgrade", "l", now=NOW + 5, to="pro", features=("extra",), without=("fuel",)) == (
        "sales", "kiosk", "extra",
    )  # fmt: skip
    assert vendor.row("l").metadata == {"tier": "2"} and vendor.row("l").expires == NOW + 2 * YEAR
    vendor.do("release", "l", now=NOW + 6)
    vendor.do("assign", "l", one, now=NOW + 7)
    late = NOW + 3 * YEAR
    assert vendor.row("l", late).state == "expired"
    assert vendor.do("renew", "l", now=late) == late + YEAR, "an expired license begins again when it is renewed"
    vendor.server.licenses.revoke("l", late + 1)
    assert list(vendor.past("l")) == [
        ("issued", "unassigned"),
        ("assigned", "active"),
        ("suspended", "suspended"),
        ("renewed", "suspended"),
        ("transferred", "suspended"),
        ("reinstated", "active"),
        ("upgraded", "active"),
        ("released", "unassigned"),
        ("assigned", "active"),
        ("renewed", "active"),
        ("revoked", "revoked"),
    ]
    with vendor.server.database.read() as session:
        kinds = [row.kind for row in events.listed(session, 0, 100, "l")]
        said = [record.event for record in audit.listed(session, 0, 1000) if record.fields.get("license") == "l"]
    assert kinds == said == [f"license.{event}" for event, _state in vendor.past("l")]
    assert vendor.row("l", late).revision == 11


# The table


def bring(vendor: Vendor, license_id: str, state: State) -> int:
    """Brings a new license into a state; returns the time at which it is in it."""
    vendor.sell(license_id, None if state is State.UNASSIGNED else vendor.agents[0])
    if state is State.SUSPENDED:
        vendor.do("suspend", license_id)
    if state is State.REVOKED:
        vendor.server.licenses.revoke(license_id, NOW)
    return NOW + 2 * YEAR if state is State.EXPIRED else NOW


ACTS = {
    Event.ASSIGNED: ("assign", True),
    Event.TRANSFERRED: ("transfer", True),
    Event.RELEASED: ("release", False),
    Event.SUSPENDED: ("suspend", False),
    Event.REINSTATED: ("reinstate", False),
    Event.RENEWED: ("renew", False),
    Event.UPGRADED: ("upgrade", False),
}


def test_every_act_in_every_state_does_what_the_table_says(vendor: Vendor) -> None:
    tried = 0
    for state in State:
        for event, (act, with_agent) in ACTS.items():
            license_id = f"{state}-{act}"
            now = bring(vendor, license_id, state)
            real = Event.EXTENDED if event is Event.RENEWED and state is State.UNASSIGNED else event
            before = vendor.row(license_id, now)
            assert before.state == state
            arguments = (vendor.agents[1],) if with_agent else ()
            expected = TRANSITIONS[state].get(real)
            if expected is None:
                with pytest.raises(Conflict, match=rf"is {state}, so it cannot be {real}: "):
                    vendor.do(act, license_id, *arguments, now=now)
                assert vendor.row(license_id, now) == before, "what is refused changes nothing"
            else:
                vendor.do(act, license_id, *arguments, now=now)
                assert vendor.row(license_id, now).state == expected
                assert list(vendor.past(license_id))[-1] == (real.value, expected.value)
            tried += 1
    assert tried == len(State) * len(ACTS)


def test_an_expired_license_on_no_machine_is_extended(vendor: Vendor) -> None:
    vendor.sell("l")
    late = NOW + YEAR
    assert vendor.row("l", late).state == "expired" and vendor.row("l", late - 1).state == "unassigned"
    vendor.do("renew", "l", now=late)
    assert vendor.row("l", late).state == "unassigned" and list(vendor.past("l"))[-1] == ("extended", "unassigned")


def test_the_filters_of_a_list_are_the_states_of_the_table(vendor: Vendor) -> None:
    for state in State:
        bring(vendor, f"l-{state}", state)
    for now in (NOW, NOW + 2 * YEAR):
        with vendor.server.database.read() as session:
            every = listed(session, now)
            for state in State:
                assert listed(session, now, which=Filter(state=state)) == [row for row in every if row.state == state]
    assert len(every) == len(State)


# Rules


def test_what_is_refused_says_what_to_do(vendor: Vendor) -> None:
    one, two = vendor.agents
    vendor.sell("l", one)
    cases: list[tuple[str, tuple[object, ...], dict[str, object], type[RegistryError], str]] = [
        ("suspend", ("x",), {}, NotFound, "'license-server licenses list' lists them"),
        ("suspend", ("l",), {"revision": 7}, Conflict, "has revision 1, not 7: somebody has changed it"),
        ("transfer", ("l", one), {}, Conflict, "is on agent 'pos-000001' already"),
        ("transfer", ("l", "x"), {}, RegistryError, "no agent 'x' is enrolled"),
        ("renew", ("l",), {"expires": NOW + 5}, Invalid, "give a later one"),
        ("upgrade", ("l",), {"to": "try"}, Conflict, "is a trial: no license becomes one"),
        ("upgrade", ("l",), {"to": "nix"}, NotFound, "'license-server policies list' lists them"),
        ("upgrade", ("l",), {"metadata": {"a": "x" * (MAX_VALUE_CHARS + 1)}}, Invalid, "must have 0 to 256 characters"),
    ]
    for act, arguments, named, kind, text in cases:
        with pytest.raises(kind, match=text):
            vendor.do(act, *arguments, **named)
    vendor.server.agents.set_status(two, "revoked", NOW)
    with pytest.raises(Conflict, match="is revoked; only active agents"):
        vendor.do("transfer", "l", two)
    assert list(vendor.past("l")) == [("issued", "active")]


def test_a_license_without_a_policy_needs_a_new_end(vendor: Vendor) -> None:
    vendor.sell("l", vendor.agents[0], policy=None, expires=NOW + 10)
    with pytest.raises(Invalid, match="give --expires"):
        vendor.do("renew", "l")
    assert vendor.do("renew", "l", duration=5) == NOW + 15


def test_a_change_that_no_token_could_carry_is_refused_when_it_is_made(vendor: Vendor) -> None:
    """A contact must not fail later, for all licenses of the agent, because one has grown too long."""
    many = {f"name-{number}": "\u00e9\u4e16" * 128 for number in range(31)}
    vendor.sell("l", vendor.agents[0])
    with pytest.raises(Invalid, match=r"its token has .* characters, the limit is 16384"):
        vendor.do("upgrade", "l", metadata=many)
    with pytest.raises(Invalid, match="its token has"):
        vendor.sell("m", metadata=many)


def test_a_suspended_license_gets_no_token(vendor: Vendor) -> None:
    one = vendor.agents[0]
    token = vendor.sell("l", one)
    vendor.do("suspend", "l")
    assert vendor.server.licenses.reissue_all(one, NOW) == []
    assert vendor.server.licenses.validate(one, token, NOW)[:2] == (False, "suspended")
    with pytest.raises(Conflict, match="is suspended; 'license-server licenses reinstate l' first"):
        vendor.sell("l", one)
    vendor.do("reinstate", "l")
    (again,) = vendor.server.licenses.reissue_all(one, NOW)
    assert vendor.server.licenses.validate(one, again, NOW)[:2] == (True, "ok")


def test_a_moved_license_is_the_new_agents_only(vendor: Vendor) -> None:
    one, two = vendor.agents
    old = vendor.sell("l", one)
    vendor.do("transfer", "l", two)
    assert vendor.server.licenses.reissue_all(one, NOW) == []
    assert vendor.server.licenses.validate(one, old, NOW)[:2] == (False, "wrong_audience")
    (new,) = vendor.server.licenses.reissue_all(two, NOW)
    assert parse_token(new).agent_id == two and vendor.server.licenses.validate(two, new, NOW)[0]
    with vendor.server.database.read() as session:
        assert json.loads(session.get_one(License, "l").claims)["aud"] == two


def test_a_new_machine_replaces_an_old_one_in_one_act(vendor: Vendor) -> None:
    one, two = vendor.agents
    for name in ("active", "suspended", "revoked", "short"):
        vendor.sell(name, one, expires=NOW + (10 if name == "short" else YEAR))
    vendor.do("suspend", "suspended")
    vendor.server.licenses.revoke("revoked", NOW)

    def swap(old: str, new: str) -> Any:
        with vendor.server.database.write() as session:
            return replacement.replace(session, old, new, NOW + 20)

    with pytest.raises(Conflict, match="cannot replace itself"):
        swap(one, one)
    done = swap(one, two)
    assert [moved.license_id for moved in done.moved] == ["active", "short", "suspended"]
    with vendor.server.database.read() as session:
        found = {row.license_id: (row.agent_id, row.state) for row in listed(session, NOW + 20)}
        first, _second = devices(session, NOW + 20)
    assert found == {
        "active": (two, "active"),
        "suspended": (two, "suspended"),
        "short": (two, "expired"),
        "revoked": (one, "revoked"),
    }
    assert first.status == "retired" and list(vendor.past("active"))[-1] == ("transferred", "active")
    assert len(vendor.server.licenses.reissue_all(two, NOW + 20)) == 1
    with pytest.raises(Conflict, match="is retired; only active agents get licenses"):
        swap(two, one)
    assert vendor.row("active").agent_id == two, "what is refused moves nothing"
    assert vendor.server.audit.verify(vendor.server.server.cipher.audit_key())[1] is None


# Trials


def test_a_machine_tries_a_product_once_for_ever(vendor: Vendor) -> None:
    one, two = vendor.agents
    vendor.sell("trial", one, policy="try")
    vendor.sell("trial", one, policy="try")  # the same license again
    for license_id, now in (("another", NOW), ("later", NOW + 10 * YEAR)):
        with pytest.raises(Conflict, match=r"has had its trial of product 'till' \(license 'trial'\): sell it"):
            vendor.sell(license_id, one, policy="try", now=now)
    with pytest.raises(Conflict, match="cannot be renewed: upgrade it"):
        vendor.do("renew", "trial")
    with pytest.raises(Conflict, match="belongs to its machine"):
        vendor.do("release", "trial")
    vendor.sell("stock", policy="try")
    with pytest.raises(Conflict, match="has had its trial"):
        vendor.do("assign", "stock", one)
    vendor.do("assign", "stock", two)
    with pytest.raises(Conflict, match="has had its trial"):
        vendor.do("transfer", "trial", two)


def test_a_trial_is_remembered_after_the_agent_is_gone(vendor: Vendor) -> None:
    from server.agents.removal import remove
    from tests.server.devices import Device

    one = vendor.agents[0]
    vendor.sell("trial", one, policy="try")
    vendor.server.agents.set_status(one, "revoked", NOW)
    with vendor.server.database.write() as session:
        remove(session, one, NOW + YEAR)
    again = Device(1).come(vendor.server, now=NOW + YEAR).agent_id
    with pytest.raises(Conflict, match="has had its trial"):
        vendor.sell("another", again, policy="try", now=NOW + YEAR)


def test_no_trial_begins_again_under_the_id_of_one_that_has_gone(vendor: Vendor) -> None:
    one = vendor.agents[0]
    vendor.sell("trial", one, policy="try")
    with vendor.server.database.write() as session:
        session.execute(delete(License).where(License.jti == "trial"))
    with pytest.raises(Conflict, match="has had its trial"):
        vendor.sell("trial", one, policy="try", now=NOW + 40 * 86_400)


def test_a_trial_that_is_issued_again_ends_no_later(vendor: Vendor) -> None:
    one = vendor.agents[0]
    vendor.sell("trial", one, policy="try")
    for wish in ({}, {"duration": YEAR}, {"expires": NOW + YEAR}):
        with pytest.raises(Conflict, match="is a trial, which cannot be renewed"):
            vendor.sell("trial", one, policy="try", now=NOW + 86_400, **wish)
    assert vendor.row("trial").expires == NOW + 30 * 86_400
    vendor.sell("trial", one, policy="try", now=NOW + 86_400, expires=NOW + 30 * 86_400)


def test_a_trial_becomes_a_sale(vendor: Vendor) -> None:
    vendor.sell("trial", vendor.agents[0], policy="try")
    vendor.do("upgrade", "trial", now=NOW + 86_400, to="year")
    row = vendor.row("trial")
    assert (row.policy, row.expires) == ("year", NOW + 86_400 + YEAR)
    assert vendor.do("renew", "trial") == row.expires + YEAR


# Lists and reports


def test_lists_go_on_behind_a_key_and_take_filters(vendor: Vendor) -> None:
    one, two = vendor.agents
    for number in range(6):
        vendor.sell(f"l{number}", (one, two)[number % 2], subject=f"shop {number % 3}", site="s-1" if number < 4 else None)
    with vendor.server.database.read() as session:
        assert [row.license_id for row in listed(session, NOW, after="l1", limit=2)] == ["l2", "l3"]
        for which, expected in (
            (Filter(agent_id=one), "l0 l2 l4"),
            (Filter(customer="c-1"), "l0 l1 l2 l3"),
            (Filter(site="s-1", agent_id=two), "l1 l3"),
            (Filter(product="till", policy="year", subject="shop 1"), "l1 l4"),
            (EVERY, "l0 l1 l2 l3 l4 l5"),
        ):
            assert " ".join(row.license_id for row in listed(session, NOW, which=which)) == expected
        with pytest.raises(NotFound):
            Filter(customer="nobody").check(session)


def test_licenses_are_listed_by_their_end(vendor: Vendor) -> None:
    for number, days in enumerate((30, 10, 20, 10, 400)):
        vendor.sell(f"l{number}", vendor.agents[0], expires=NOW + days * 86_400)
    vendor.server.licenses.revoke("l2", NOW)
    with vendor.server.database.read() as session:
        end = NOW + 31 * 86_400
        whole = ending(session, NOW, NOW, end)
        assert [row.license_id for row in whole] == ["l1", "l3", "l0"]
        assert ending(session, NOW, NOW, end, whole[0], 1) == whole[1:2]
        assert ending(session, NOW, NOW, end, which=Filter(customer="c-1")) == whole


def test_devices_are_listed_with_the_numbers_of_their_licenses(vendor: Vendor) -> None:
    one, two = vendor.agents
    for number in range(4):
        vendor.sell(f"l{number}", one, expires=NOW + 100 + number)
    vendor.do("suspend", "l0")
    vendor.server.licenses.revoke("l1", NOW)
    with vendor.server.database.read() as session:
        first, second = devices(session, NOW + 102)
        assert (first.active, first.suspended, first.expired, first.revoked, first.next_end) == (1, 1, 1, 1, NOW + 103)
        assert (second.agent_id, second.active, second.next_end) == (two, 0, None)
        assert devices(session, NOW, after=one, limit=1) == [second]


# At once


def test_two_processes_change_one_license_and_one_after_the_other_wins(directory: Path) -> None:
    with closing(open_server(directory)) as a, closing(open_server(directory)) as b:
        one, other = Vendor(a), b
        one.sell("l", one.agents[0])

        def move(server: ServerSide, agent: str) -> str:
            from server.licensing.licenses import lifecycle

            try:
                with server.database.write() as session:
                    lifecycle.transfer(session, "l", agent, NOW)
                return "ok"
            except Conflict as error:
                return str(error)

        found = at_once([lambda: move(a, one.agents[1]), lambda: move(other, one.agents[1])])
        assert sorted(found)[0].startswith("license 'l'") and sorted(found)[1] == "ok"
        assert [event for event, _ in one.past("l")] == ["issued", "transferred"]


def test_licenses_that_go_in_opposite_directions_wait_for_nobody_for_ever(directory: Path) -> None:
    from server.licensing.licenses import lifecycle

    with closing(open_server(directory)) as a, closing(open_server(directory)) as b:
        vendor = Vendor(a)
        one, two = vendor.agents
        vendor.sell("x", one)
        vendor.sell("y", two)

        def swing(server: ServerSide, license_id: str, first: str, second: str) -> None:
            for number in range(10):
                with server.database.write() as session:
                    lifecycle.transfer(session, license_id, (first, second)[number % 2], NOW)

        at_once([lambda: swing(a, "x", two, one), lambda: swing(b, "y", one, two)])
        assert (vendor.row("x").agent_id, vendor.row("y").agent_id) == (one, two)
        assert a.audit.verify(a.server.cipher.audit_key())[1] is None
