"""Products, entitlement sets and policies, and the orders that they make. On both databases."""

from typing import Any

import pytest

from contracts.claims import check_claims
from contracts.licensetoken import MAX_VERSION
from server.base.errors import Conflict, Invalid, NotFound
from server.keys.jose import issue_token, new_signing_key
from server.licensing.sales import products, seats
from server.licensing.sales.orders import Order, Wish, claims_of, order_of, token_chars
from server.licensing.sales.products import PolicyPlan
from server.licensing.sales.seats import DAY_S, HOUR_S, Mode, Terms
from server.registry import events
from tests.server.devices import NOW
from tests.server.licensing.selling import YEAR, Vendor
from tests.support.serverside import ServerSide


def act(server: ServerSide, name: str, *arguments: Any, **named: Any) -> Any:
    with server.database.write() as session:
        return getattr(products, name)(session, *arguments, **named)


def order(server: ServerSide, **wish: Any) -> Order:
    with server.database.read() as session:
        return order_of(session, Wish(**wish), NOW)


def test_what_is_sold_is_kept_and_listed(server: ServerSide) -> None:
    Vendor(server, agents=0)
    assert [row.product for row in act(server, "products")] == ["till"]
    assert [row.policy for row in act(server, "policies", "till")] == ["pro", "try", "year"]
    assert [row.policy for row in act(server, "policies", None, "pro", 1)] == ["try"]
    assert [row.entitlement_set for row in act(server, "sets")] == ["base"]
    assert act(server, "change_product", "till", "Tills", NOW + 1).name == "Tills"
    assert act(server, "show_product", "till").revision == 2
    with pytest.raises(Conflict, match="has revision 2, not 1"):
        act(server, "change_product", "till", "x", NOW, 1)


def test_a_changed_policy_or_set_counts_for_later_licenses_only(server: ServerSide) -> None:
    vendor = Vendor(server, agents=0)
    vendor.sell("before")
    act(server, "change_set", "base", None, ("sales", "returns"), NOW)
    act(server, "change_policy", "year", PolicyPlan(features=("fuel2",), duration=60), NOW)
    vendor.sell("after")
    assert vendor.row("before").features == ("sales", "fuel") and vendor.row("before").expires == NOW + YEAR
    assert vendor.row("after").features == ("sales", "returns", "fuel2") and vendor.row("after").expires == NOW + 60


def test_licenses_by_a_policy_with_seats_are_shared_by_the_tills_of_their_site(server: ServerSide) -> None:
    vendor = Vendor(server, agents=1)
    terms = Terms(2, Mode.SOFT, lease=HOUR_S, grace=7 * DAY_S, idle=HOUR_S)
    made = act(server, "create_policy", "shop", "till", PolicyPlan("Two tills", "base", duration=YEAR, floating=terms), NOW)
    assert made.floating == terms and act(server, "show_policy", "shop").floating == terms
    vendor.sell("pool", policy="shop")
    with server.database.read() as session:
        row = seats.one(session, "pool", NOW)
        kinds = [each.kind for each in events.listed(session, 0, 100)]
    assert (row.site, row.seats, row.mode, row.lease, row.grace, row.idle) == ("s-1", 2, "soft", HOUR_S, 7 * DAY_S, HOUR_S)
    assert "license.seats" in kinds and [each.event for each in server.audit.tail(2)] == ["license.issued", "license.seats"]
    vendor.sell("pool", policy="shop", now=NOW + 1)
    for wish in ({"site": None}, {"site": None, "customer": "c-1"}, {"agent": vendor.agents[0]}):
        with pytest.raises(Conflict, match="are shared by the tills of a site: name a site, and no agent"):
            vendor.sell("other", policy="shop", **wish)
    act(server, "change_policy", "shop", PolicyPlan(floating=Terms(5)), NOW)
    vendor.sell("later", policy="shop")
    with server.database.read() as session:
        assert [seats.one(session, each, NOW).seats for each in ("pool", "later")] == [2, 5]
    for plan in (PolicyPlan("x", duration=YEAR, floating=Terms(0)), PolicyPlan("x", duration=YEAR, floating=Terms(1, lease=1))):
        with pytest.raises(Invalid):
            act(server, "create_policy", "x", "till", plan, NOW)
    with pytest.raises(Invalid, match="a trial belongs to one machine: it has no seats"):
        act(server, "create_policy", "x", "till", PolicyPlan("x", duration=YEAR, floating=terms), NOW, trial=True)
    with pytest.raises(Invalid, match="a trial belongs to one machine: it has no seats"):
        act(server, "change_policy", "try", PolicyPlan(floating=terms), NOW)


def test_what_is_retired_sells_nothing_more(server: ServerSide) -> None:
    vendor = Vendor(server, agents=0)
    vendor.sell("l")
    act(server, "retire_policy", "year", NOW)
    assert act(server, "retire_policy", "year", NOW + 5).retired_at == NOW
    with pytest.raises(Conflict, match="is retired: no license is issued by it"):
        vendor.sell("m")
    assert vendor.do("renew", "l") == NOW + 2 * YEAR, "what was sold can be renewed"
    act(server, "retire_product", "till", NOW)
    with pytest.raises(Conflict, match="is retired"):
        vendor.sell("m", policy="pro")
    with pytest.raises(Conflict, match="gets no new policies"):
        act(server, "create_policy", "p", "till", PolicyPlan("x"), NOW)


@pytest.mark.parametrize(
    ("name", "arguments", "named", "kind", "text"),
    [
        ("create_product", ("till", "x"), {}, Conflict, "there is a product 'till' already"),
        ("create_product", ("-x", "x"), {}, Invalid, "is not an id"),
        ("create_product", ("x", ""), {}, Invalid, "the name must have 1 to 128"),
        ("create_set", ("x", "x", tuple(map(str, range(65)))), {}, Invalid, "at most 64 features, not 65"),
        ("create_policy", ("x", "nix", PolicyPlan("x")), {}, NotFound, "'license-server products list' lists them"),
        ("create_policy", ("x", "till", PolicyPlan("x", "nix")), {}, NotFound, "'license-server entitlements list'"),
        ("create_policy", ("x", "till", PolicyPlan("x")), {"trial": True}, Invalid, "a trial needs a duration"),
        ("create_policy", ("x", "till", PolicyPlan("x", duration=59)), {}, Invalid, "lasts 60 seconds to 100 years"),
        ("create_policy", ("x", "till", PolicyPlan("x", metadata={"a": "x" * 257})), {}, Invalid, "the metadata a must have"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_words(
    server: ServerSide, name: str, arguments: tuple[Any, ...], named: dict[str, Any], kind: type[Exception], text: str
) -> None:
    Vendor(server, agents=0)
    with pytest.raises(kind, match=text):
        act(server, name, *arguments, NOW, **named)


def test_an_order_says_when_its_license_ends_or_its_policy_does(server: ServerSide) -> None:
    Vendor(server, agents=0)
    assert order(server, policy="year", not_before=NOW + 5).expires == NOW + 5 + YEAR
    assert order(server, policy="year", expires=NOW + 7).expires == NOW + 7
    assert order(server, duration=9).expires == NOW + 9
    made = order(server, expires=NOW + 9)
    assert (made.subject, made.policy, made.customer) == ("unnamed", None, None) and len(made.jti) == 36
    with pytest.raises(Invalid, match="when does the license end"):
        order(server)


@pytest.mark.parametrize("metadata", [{}, {"a": "x"}, {"n": "\u00e9\u4e16\U0001f600"}, {str(n): "x" * 200 for n in range(30)}])
@pytest.mark.parametrize("agent", ["a", "pos-000001", "x" * 64])
def test_the_length_of_a_token_is_known_before_it_is_made(metadata: dict[str, str], agent: str) -> None:
    made = claims_of(Order("id", "shop", ("f",), metadata, NOW, NOW + 9), "https://license.example", agent, NOW)
    claims = check_claims(made)
    for version in (1, MAX_VERSION):
        assert len(issue_token(claims, b"s" * 32, version, new_signing_key())) == token_chars(claims, version)
