"""Seats of floating licenses: three agents and their server, each stopped, cut off and restarted at any time.

The law that everything here serves: in hard mode no more tills than there are seats can validate, at any instant.
"""

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from agentd.licenses.choice import Held
from agentd.licenses.holdings import Holdings
from agentd.licenses.seats import REFUSED_PAUSE_S
from agentd.sync import seats as seat_sync
from agentd.sync.cycle import SEAT_PAUSE_S
from agentd.uplink.transport import Response
from contracts.contact.configuration import CONFIGURATION
from contracts.contact.seats import LEASE, MAX_SEAT_S
from ipc.answers import LicenseReason
from server.licensing.licenses.licenses import Order
from server.licensing.sales import seats
from server.licensing.sales.seats import CLOCK_MARGIN_S, DAY_S, HOUR_S, Mode, Terms
from server.registry.models.core import Agent
from tests.hwsec.memory_backend import MemoryBackend, MemoryDevice
from tests.support.licensing import suspend
from tests.support.pair import AGENT, START, Fate, Pair, Server, Truth, enroll, first_pair
from tests.support.serverside import open_server

POOL = "pool"
NAMES = (AGENT, "pos-002", "pos-003")
TERMS = Terms(2, Mode.HARD, HOUR_S, 6 * HOUR_S, 2 * HOUR_S)


class Shop:
    """A site with three tills, in one place of the disk."""

    def __init__(self, place: Path, devices: dict[str, MemoryDevice], peers: dict[str, Any]) -> None:
        server = Server(place / "server", Truth())
        self.server = server
        self.tills = [Pair(place / name, devices[name], peers[name], "", server, name) for name in NAMES]

    def act(self, change: Callable[..., object], *arguments: object) -> None:
        with self.server.server_side.database.write() as session:
            change(session, *arguments, self.server.now)

    def taken(self) -> int:
        with self.server.server_side.database.read() as session:
            return seats.one(session, POOL, self.server.now).taken

    def passes(self, seconds: float) -> None:
        self.server.truth.seconds += seconds

    def close(self) -> None:
        for till in self.tills:
            till.agent.end()
        self.server.server_side.close()


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Shop]:
    """Makes a shop once, and returns what copies it."""
    base = tmp_path_factory.mktemp("shop")
    device = MemoryDevice()
    first = first_pair(base, MemoryBackend(device), device, 365 * DAY_S, 30 * DAY_S)
    first.agent.end()
    template = base / "template"
    side = open_server(template / "server")
    devices, peers = {AGENT: device}, {AGENT: first.wire.peer}
    (template / AGENT).mkdir()
    for name in ("state", "log"):
        shutil.move(template / name, template / AGENT / name)
    for name in NAMES[1:]:
        devices[name], peers[name] = enroll(side, template / name, START, name)
    with side.database.write() as session:
        side.server.customers.create(session, "c-1", {}, START)
        side.server.customers.create_site(session, "s-1", "c-1", {}, START)
        order = Order(POOL, "shop", ("kiosk",), {"product": "till"}, START, START + 300 * DAY_S, customer="c-1", site="s-1")
        side.server.licenses.stock(session, order, START)
        for name in NAMES:
            seats.assign_site(session, name, "s-1", START)
        seats.set_terms(session, POOL, TERMS, START)
    side.close()
    settings = template / "server" / "settings.toml"
    made = Shop(template, devices, peers)
    for till in made.tills:
        till.until_settled()
    made.close()
    snapshots = {name: MemoryDevice(**vars(each)) for name, each in devices.items()}
    peers = {till.config.agent.id: till.wire.peer for till in made.tills}

    def copy(place: Path) -> Shop:
        shutil.copytree(template, place)
        text = settings.read_text().replace(str(template), str(place))
        (place / "server" / "settings.toml").write_text(text)
        (place / "server" / "settings.toml").chmod(0o600)
        made = Shop(place, {name: MemoryDevice(**vars(each)) for name, each in snapshots.items()}, peers)
        # Later than anything that the template has seen, in the same run of the machines.
        made.passes(60)
        for till in made.tills:
            till.restart_agent()
        return made

    return copy


@pytest.fixture
def shop(make: Callable[[Path], Shop], tmp_path: Path) -> Iterator[Shop]:
    made = make(tmp_path / "shop")
    yield made
    made.close()


def asks(till: Pair) -> Held | None:
    """What a POS application gets that asks for the feature of the pool; does what the POS service does."""
    validator, now = till.agent.validator, till.clock.now()
    held = Holdings(validator).at(now).choose("kiosk", None)
    if held is not None and held.valid:
        validator.seats.use(held.license_id, now)
    elif held is not None and held.reason is LicenseReason.NO_SEAT:
        validator.seats.want(held.license_id, now)
    return held


def reason(till: Pair) -> str:
    held = asks(till)
    return "no_license" if held is None else held.reason.value


def could_validate(till: Pair) -> bool:
    """Whether any token that the till ever got of a seat is valid there now, changing nothing."""
    validator, now = till.agent.validator, till.clock.now()
    texts = [text for jti, text in validator.inventory.tokens() if jti.startswith(POOL)]
    return any(validator.validate(text, now).verdict.valid for text in texts)


def contact(till: Pair) -> list[str]:
    before = len(till.wire.seen)
    till.clock.seconds += 1
    assert till.contact() is None
    return [each for each in till.wire.seen[before:] if each != CONFIGURATION]  # which is asked at each contact


def takes(till: Pair) -> str:
    reason(till)
    contact(till)
    return reason(till)


def test_a_till_without_a_seat_says_so_and_gets_one_with_the_next_contact(shop: Shop) -> None:
    contact_needed = [takes(till) for till in shop.tills]
    assert contact_needed == ["ok", "ok", "no_seat"] and shop.taken() == 2
    assert contact(shop.tills[0]) == ["secret-status"]  # nothing is due, so nothing is asked


def test_a_wanted_seat_makes_a_contact_due_and_a_flood_of_questions_makes_no_flood_of_contacts(shop: Shop) -> None:
    first, second, third = shop.tills
    contact(third)
    assert third.agent.cycle.wait_s() > SEAT_PAUSE_S
    assert reason(third) == "no_seat"
    assert 0 < third.agent.cycle.wait_s() <= SEAT_PAUSE_S
    shop.passes(SEAT_PAUSE_S)
    assert third.agent.cycle.wait_s() <= 0
    assert takes(first) == takes(second) == "ok"
    contact(third)  # refused
    for _ in range(100):
        assert reason(third) == "no_seat"
    assert third.agent.cycle.wait_s() > SEAT_PAUSE_S
    shop.passes(REFUSED_PAUSE_S)
    assert reason(third) == "no_seat" and third.agent.cycle.wait_s() <= SEAT_PAUSE_S


def test_a_seat_in_use_is_renewed_and_one_that_is_idle_floats_to_another_till(shop: Shop) -> None:
    first, second, third = shop.tills
    assert takes(first) == takes(second) == "ok"
    shop.passes(TERMS.lease)
    assert reason(first) == "ok"
    assert LEASE in contact(first)
    shop.passes(TERMS.idle - TERMS.lease)
    assert reason(first) == "ok"
    assert LEASE in contact(second)
    assert reason(second) == "no_seat" and shop.taken() == 1
    assert takes(third) == "ok" and [could_validate(till) for till in shop.tills] == [True, False, True]


def test_a_seat_works_offline_until_its_grace_ends_across_restarts(shop: Shop) -> None:
    first = shop.tills[0]
    assert takes(first) == "ok"
    first.wire.cut = True
    shop.passes(TERMS.lease + TERMS.grace - 10)
    first.restart_agent()
    assert reason(first) == "ok"
    shop.passes(20)
    assert reason(first) == "no_seat"


@pytest.mark.parametrize("lost", ["request_lost", "reply_lost", "duplicated", "delayed"])
def test_a_seat_is_taken_once_whatever_is_lost(shop: Shop, lost: str) -> None:
    first = shop.tills[0]
    reason(first)
    first.wire.fate = Fate(message=(LEASE, lost))
    first.clock.seconds += 1
    first.contact()
    shop.passes(60)
    assert takes(first) == "ok" and shop.taken() == 1


@pytest.mark.parametrize("lost", ["request_lost", "reply_lost", "delayed"])
def test_a_seat_that_was_given_back_never_comes_back_although_the_server_tells_of_it(shop: Shop, lost: str) -> None:
    first = shop.tills[0]
    assert takes(first) == "ok"
    token = next(text for jti, text in first.agent.validator.inventory.tokens() if jti.startswith(POOL))
    shop.passes(TERMS.idle)
    first.wire.fate = Fate(message=(LEASE, lost))
    assert first.contact() is not None
    assert not first.valid(token)
    # Reinstated, the server names the seat with a token again; and the file that says what was given back is lost.
    suspend(shop.server.server_side, POOL, shop.server.now)
    suspend(shop.server.server_side, POOL, shop.server.now, on=False)
    first.config.inventory_file.unlink(missing_ok=True)
    first.restart_agent()
    assert not first.valid(token)
    contact(first)
    contact(first)
    assert not first.valid(token) and shop.taken() == 0


def test_a_file_of_the_inventory_that_is_set_back_brings_no_seat_back(shop: Shop) -> None:
    first = shop.tills[0]
    assert takes(first) == "ok"
    before = first.config.inventory_file.read_bytes()
    kept = json.loads(before)["seats"]["floating"][POOL]
    first.restart_agent()  # of an earlier run, nothing but the file says when the seat ends
    page = json.loads(before)
    page["seats"]["floating"][POOL] = {**kept, "grace_until": 1, "used": 0}
    first.config.inventory_file.write_text(json.dumps(page))
    first.restart_agent()
    contact(first)
    assert shop.taken() == 0
    seat = kept["seat"]
    assert first.agent.store.record.withheld.given_back[seat] >= shop.server.now + MAX_SEAT_S - 60
    first.config.inventory_file.write_bytes(before)
    first.restart_agent()
    assert reason(first) != "ok" and not could_validate(first)


def test_a_suspended_license_suspends_its_seats_and_a_revoked_one_ends_them(shop: Shop) -> None:
    first = shop.tills[0]
    assert takes(first) == "ok"
    suspend(shop.server.server_side, POOL, shop.server.now)
    contact(first)
    assert reason(first) == "suspended" and shop.taken() == 1
    suspend(shop.server.server_side, POOL, shop.server.now, on=False)
    contact(first)
    assert reason(first) == "ok"
    shop.act(lambda session, now: shop.server.server_side.server.licenses.revoke(session, POOL, now))
    contact(first)
    assert reason(first) == "revoked"


def test_a_till_that_moves_to_another_site_gives_its_seat_back_within_one_contact(shop: Shop) -> None:
    first = shop.tills[0]
    assert takes(first) == "ok"
    shop.act(seats.assign_site, AGENT, None)
    assert contact(first).count(LEASE) == 2
    assert reason(first) == "no_license" and shop.taken() == 0


def test_the_till_refuses_a_seat_that_an_operator_has_freed(shop: Shop) -> None:
    first = shop.tills[0]
    assert takes(first) == "ok"
    (text,) = [text for jti, text in first.agent.validator.inventory.tokens() if jti.startswith(POOL)]
    shop.act(lambda session, now: seats.free(session, seats.held(session, POOL, now)[0].seat, now))
    contact(first)
    assert not first.valid(text)


def test_a_rotation_keeps_the_seat(shop: Shop) -> None:
    first = shop.tills[0]
    assert takes(first) == "ok"
    with shop.server.server_side.database.write() as session:
        session.get_one(Agent, AGENT).urgent = True
    contact(first)
    assert first.until_settled() and reason(first) == "ok" and shop.taken() == 1


def test_too_many_seats_given_back_in_a_short_time_end_by_themselves(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    first = shop.tills[0]
    assert takes(first) == "ok"
    monkeypatch.setattr(seat_sync, "MAX_GIVEN_BACK", 0)
    shop.passes(TERMS.idle)
    contact(first)
    assert could_validate(first) and shop.taken() == 1


def test_a_server_without_the_capability_is_not_asked(shop: Shop) -> None:
    first = shop.tills[0]
    assert LEASE in first.agent.cycle.capabilities
    asyncio.run(first.agent.cycle._negotiation.forget(LEASE))
    first.wire.capabilities = Response(404, b"")
    reason(first)
    assert LEASE not in contact(first)


STEPS = 60
EVENTS = (*["use"] * 4, *["contact"] * 4, "time", "time", "restart", "cut", "lose", "stop", "file", "tell")


@pytest.mark.parametrize("seed", range(6))
def test_never_more_tills_than_seats_can_validate_whatever_happens(
    make: Callable[[Path], Shop], tmp_path: Path, seed: int
) -> None:
    random = Random(seed)
    shop = make(tmp_path / "shop")
    fates = ("request_lost", "reply_lost", "duplicated", "delayed")
    used, held_all = set(), 0
    try:
        assert takes(shop.tills[0]) == takes(shop.tills[1]) == "ok"
        for _step in range(STEPS):
            till = random.choice(shop.tills)
            match random.choice(EVENTS):
                case "use":
                    used.add(reason(till))
                case "contact":
                    till.wire.cut = False
                    till.contact()
                case "time":
                    shop.passes(random.choice((60, 1800, HOUR_S, 2 * HOUR_S, 5 * HOUR_S, 8 * HOUR_S, CLOCK_MARGIN_S)))
                case "restart":
                    till.restart_agent()
                case "cut":
                    till.wire.cut = True
                case "lose":
                    till.wire.fate = Fate(message=(LEASE, random.choice(fates)))
                    till.contact()
                case "stop":
                    till.wire.fate = Fate(server_stops=(LEASE, random.choice(("before", "acted", "kept"))))
                    till.contact()
                case "file":
                    till.config.inventory_file.unlink(missing_ok=True)
                    till.restart_agent()
                case "tell":
                    suspend(shop.server.server_side, POOL, shop.server.now)
                    suspend(shop.server.server_side, POOL, shop.server.now, on=False)
            able = [could_validate(each) for each in shop.tills]
            assert sum(able) <= TERMS.seats
            assert sum(able) <= shop.taken() <= TERMS.seats
            held_all += sum(able) == TERMS.seats
        # It is no law about nothing: seats were taken, and sometimes all of them.
        assert "ok" in used and held_all
    finally:
        shop.close()
