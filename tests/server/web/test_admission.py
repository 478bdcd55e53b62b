"""Which connections are held: table by table, without sockets, and with a clock that stands still."""

import pytest

from server.base.limits import (
    HANDSHAKE_RATE,
    MAX_AGENT_CONNECTIONS,
    MAX_ANONYMOUS,
    MAX_ANONYMOUS_ADDRESS,
    MAX_CONNECTIONS,
    MAX_HANDSHAKES,
    MAX_HANDSHAKES_ADDRESS,
)
from server.web.admission import Admission, Entry


class World:
    """An admission, and what it has closed."""

    def __init__(self) -> None:
        self.now = 0.0
        self.admission = Admission(lambda: self.now)
        self.closed: list[int] = []
        self._count = 0

    def arrive(self, address: str) -> Entry | None:
        self._count += 1
        number = self._count
        return self.admission.arrive(address, lambda: self.closed.append(number))

    def several(self, count: int, network: int = 0) -> list[Entry]:
        """Connections, each from an address of its own."""
        found = [self.arrive(f"10.{network}.{number // 250}.{number % 250}") for number in range(count)]
        assert None not in found
        return [entry for entry in found if entry is not None]


@pytest.fixture
def world() -> World:
    return World()


def test_an_address_has_few_handshakes_and_the_oldest_makes_room(world: World) -> None:
    for _ in range(MAX_HANDSHAKES_ADDRESS + 2):
        assert world.arrive("192.0.2.1") is not None
    assert world.closed == [1, 2]
    assert world.admission.count("handshakes", "192.0.2.1") == MAX_HANDSHAKES_ADDRESS
    assert world.arrive("192.0.2.2") is not None and world.closed == [1, 2]


def test_an_ipv6_network_is_one_address(world: World) -> None:
    for number in range(MAX_HANDSHAKES_ADDRESS + 1):
        world.arrive(f"2001:db8::{number:x}")
    assert world.closed == [1]


def test_an_address_connects_at_a_limited_rate(world: World) -> None:
    admitted = 0
    while (entry := world.arrive("192.0.2.1")) is not None:
        admitted += 1
        world.admission.leave(entry)
    assert admitted == HANDSHAKE_RATE.burst
    world.now = 1.0
    assert sum(world.arrive("192.0.2.1") is not None for _ in range(100)) == HANDSHAKE_RATE.per_second
    assert world.arrive("192.0.2.2") is not None


def test_without_a_certificate_an_address_holds_few_connections(world: World) -> None:
    for _ in range(MAX_ANONYMOUS_ADDRESS + 3):
        entry = world.arrive("192.0.2.1")
        assert entry is not None
        world.admission.settle(entry, None)
    assert world.closed == [1, 2, 3]
    assert world.admission.count("anonymous", "192.0.2.1") == MAX_ANONYMOUS_ADDRESS == world.admission.count()


def test_agents_behind_one_address_keep_their_connections(world: World) -> None:
    for number in range(390):
        entry = world.arrive("192.0.2.1")
        assert entry is not None
        world.admission.settle(entry, f"pos-{number}")
    assert world.closed == []


def test_an_agent_has_few_connections(world: World) -> None:
    for entry in world.several(MAX_AGENT_CONNECTIONS + 1):
        world.admission.settle(entry, "pos-1")
    assert world.closed == [1]


def test_whoever_has_no_certificate_never_takes_the_room_of_agents(world: World) -> None:
    for network in (0, 1):
        for entry in world.several(MAX_ANONYMOUS // 2 + 2 + network, network):
            world.admission.settle(entry, None)
    assert len(world.closed) == 5 and world.admission.count("anonymous") == MAX_ANONYMOUS
    for network in range(2, 6):
        for number, entry in enumerate(world.several(1024, network)):
            world.admission.settle(entry, f"pos-{network}-{number}")
    assert world.admission.count() == MAX_CONNECTIONS and world.admission.count("anonymous") == 0
    assert world.arrive("192.0.2.1") is None, "all belong to agents"


def test_handshakes_of_many_addresses_have_a_limit(world: World) -> None:
    world.several(MAX_HANDSHAKES + 7)
    assert world.closed == [1, 2, 3, 4, 5, 6, 7]


def test_a_handshake_that_ends_after_its_place_was_taken_gets_none_back(world: World) -> None:
    entry = world.several(1)[0]
    world.several(MAX_HANDSHAKES, 1)
    assert world.closed == [1]
    world.admission.settle(entry, "pos-1")
    assert world.closed == [1, 1] and world.admission.count("agent", "pos-1") == 0


def test_what_has_ended_is_forgotten(world: World) -> None:
    for entry in world.several(20):
        world.admission.settle(entry, "pos-1")
        world.admission.leave(entry)
        world.admission.leave(entry)
    assert world.closed == [] and world.admission.count() == 0 and world.admission.count("agent", "pos-1") == 0
