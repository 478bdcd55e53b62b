"""Many licenses at once: all or none, or row by row; a repeated run issues nothing twice. On both databases."""

import json
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from server.base.errors import Invalid
from server.licensing.lists import bulk
from server.licensing.lists.bulk import Result, issue_many, named, numbered
from server.licensing.lists.license_list import Filter, listed
from server.licensing.lists.sheets import Wanted
from server.licensing.sales import products, seats
from server.licensing.sales.orders import Wish
from server.licensing.sales.products import PolicyPlan
from server.licensing.sales.seats import Terms
from server.registry import events
from tests.server.atonce import at_once
from tests.server.devices import NOW
from tests.server.licensing.selling import YEAR, Vendor
from tests.support.serverside import ServerSide, open_server


def wanted(line: int, license_id: str | None, agent: str | None = None, **wish: Any) -> Wanted:
    return Wanted(line, agent, Wish(license_id, **{"policy": "year", "site": "s-1", **wish}))


def run(server: ServerSide, orders: list[Wanted], *, whole: bool = True, now: int = NOW) -> list[Result]:
    return issue_many(server.database, server.server.licenses, orders, now, whole=whole)


def outcomes(results: list[Result]) -> dict[str, int]:
    return dict(Counter(each.outcome for each in results))


def ids(server: ServerSide) -> list[str]:
    with server.database.read() as session:
        return [row.license_id for row in listed(session, NOW)]


@pytest.mark.parametrize("whole", [True, False])
def test_five_hundred_are_issued_with_their_tokens(server: ServerSide, whole: bool) -> None:
    vendor = Vendor(server, agents=5)
    orders = [wanted(number, f"l{number:03}", vendor.agents[number % 5]) for number in range(500)]
    begun = time.monotonic()
    results = run(server, orders, whole=whole)
    print(f"500 licenses with tokens: {time.monotonic() - begun:.1f} s")
    assert outcomes(results) == {"issued": 500}
    assert all(server.licenses.validate(each.agent, each.token, NOW)[0] for each in results[::50])
    assert len(ids(server)) == 500
    with server.database.read() as session:
        kinds = [row.kind for row in events.listed(session, 0, 10_000) if row.kind == "license.issued"]
    assert len(kinds) == 500 and server.audit.verify(server.server.cipher.audit_key())[1] is None


def test_one_bad_line_holds_all_back_or_only_itself(server: ServerSide) -> None:
    vendor = Vendor(server)
    orders = [
        wanted(1, "a", vendor.agents[0]),
        wanted(2, "b", "nobody"),
        wanted(3, "c", policy="nix"),
        wanted(4, "d", subject="x" * 200),
        wanted(5, "e"),
        Wanted(6, None, Wish(), problem="expires: 'soon' is not a time"),
        wanted(7, "f", vendor.agents[0], policy="try"),
        wanted(8, "g", vendor.agents[0], policy="try"),
    ]
    results = run(server, orders)
    assert outcomes(results) == {"bad": 5, "not issued": 3} and ids(server) == []
    assert all(each.token is None for each in results)
    with server.database.read() as session:
        assert not [row for row in events.listed(session, 0, 1000) if row.kind.startswith("license.")]
    results = run(server, orders, whole=False)
    assert ids(server) == ["a", "e", "f"] and outcomes(results) == {"bad": 5, "issued": 3}
    problems = {each.line: each.problem or "" for each in results if each.outcome == "bad"}
    for line, text in {
        2: "no agent 'nobody' is enrolled",
        3: "'license-server policies list' lists them",
        4: "sub must be a text of 1 to 128",
        6: "is not a time",
        8: "has had its trial",
    }.items():
        assert text in problems[line]


def test_a_repeated_run_issues_nothing_twice(server: ServerSide) -> None:
    vendor = Vendor(server)
    orders = [wanted(1, "a", vendor.agents[0]), wanted(2, "b"), wanted(3, "c", expires=NOW + 99)]
    assert outcomes(run(server, orders)) == {"issued": 3}
    before = [vendor.row(name) for name in "abc"]
    assert outcomes(run(server, orders, now=NOW + 50)) == {"unchanged": 3}
    assert [vendor.row(name) for name in "abc"] == before
    for other in (
        wanted(1, "a", vendor.agents[1]),
        wanted(1, "a", vendor.agents[0], features=("more",)),
        wanted(1, "b", site=None),
    ):
        (result,) = run(server, [other])
        assert "exists with other terms" in (result.problem or "")
    dated = Wanted(3, None, Wish("c", policy="year", site="s-1", expires=NOW + 100), dated=True)
    assert "exists with other terms" in (run(server, [dated])[0].problem or "")


def test_ids_come_from_the_batch(server: ServerSide) -> None:
    Vendor(server, agents=0)
    orders = numbered(3, "order-7", Wish(policy="year"))
    assert outcomes(run(server, orders)) == {"issued": 3} and ids(server) == ["order-7-0001", "order-7-0002", "order-7-0003"]
    lines = named([wanted(2, None), wanted(3, "x")], "web")
    assert [each.wish.license_id for each in lines] == ["web-2", "x"]
    assert "add that column, or name a batch" in (named([wanted(2, None)], None)[0].problem or "")


def test_too_many_for_one_transaction_are_refused(server: ServerSide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "MAX_WHOLE", 2)
    with pytest.raises(Invalid, match="too many for all or none"):
        run(server, [wanted(number, str(number)) for number in range(3)])


def test_an_agent_without_a_secret_gets_its_tokens_later(server: ServerSide) -> None:
    from tests.server.devices import Device

    Vendor(server, agents=0)
    agent = Device(9).come(server).agent_id
    (result,) = run(server, [wanted(1, "a", agent)])
    assert (result.outcome, result.token) == ("issued", None)
    server.secrets.rotate_by_hand(agent, NOW)
    (token,) = server.licenses.reissue_all(agent, NOW)
    assert server.licenses.validate(agent, token, NOW)[0]


@pytest.mark.parametrize("whole", [True, False])
def test_two_processes_share_licenses_at_one_site_at_once(directory: Path, whole: bool) -> None:
    with closing(open_server(directory)) as one, closing(open_server(directory)) as two:
        vendor = Vendor(one, agents=3)
        with one.database.write() as session:
            plan = PolicyPlan("Two tills", "base", duration=YEAR, floating=Terms(2))
            products.create_policy(session, "shop", "till", plan, NOW)
            for agent in vendor.agents:
                seats.assign_site(session, agent, "s-1", NOW)

        def orders(name: str) -> list[Wanted]:
            shared = [wanted(number, f"{name}{number}", policy="shop") for number in range(0, 12, 2)]
            others = [wanted(number, f"{name}{number}", vendor.agents[number % 3]) for number in range(1, 12, 2)]
            return sorted([*shared, *others], key=lambda each: each.line)

        found = at_once(
            [lambda: run(one, orders("a"), whole=whole), lambda: run(two, list(reversed(orders("b"))), whole=whole)]
        )
        assert [outcomes(results) for results in found] == [{"issued": 12}] * 2
        assert outcomes(run(one, orders("a"), whole=whole)) == {"unchanged": 12}
        with one.database.read() as session:
            assert [row.seats for row in seats.listed(session, NOW)] == [2] * 12


@pytest.mark.parametrize("whole", [True, False])
def test_two_processes_run_the_same_file_at_once(directory: Path, whole: bool) -> None:
    with closing(open_server(directory)) as one, closing(open_server(directory)) as two:
        vendor = Vendor(one, agents=3)
        orders = [wanted(number, f"l{number}", vendor.agents[number % 3]) for number in range(30)]
        found = at_once([lambda: run(one, orders, whole=whole), lambda: run(two, list(reversed(orders)), whole=whole)])
        # An id that another run commits at the same moment is a bad line, never a second license.
        assert sum(each.outcome == "issued" for results in found for each in results) == 30
        with one.database.read() as session:
            assert len(listed(session, NOW, which=Filter(product="till"))) == 30
            assert json.dumps([row.revision for row in listed(session, NOW)]) == json.dumps([1] * 30)
        assert one.audit.verify(one.server.cipher.audit_key())[1] is None
