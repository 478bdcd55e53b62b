"""Where a webhook may connect to: judged by the addresses that its name has at that moment."""

import asyncio
import socket
from collections.abc import Sequence

import pytest

from common.addresses import networks
from ipc.linkmessages import FailCode
from link.upstreams import FetchError
from link.webhook import MOST_ADDRESSES, judged, resolved


def outcome(*addresses: str, listed: Sequence[str] = ()) -> Sequence[str] | tuple[FailCode, str]:
    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return addresses

    try:
        return asyncio.run(judged("ops.example", 443, networks(listed), resolve))
    except FetchError as error:
        return error.code, error.text


def test_public_addresses_are_tried_and_not_too_many() -> None:
    many = [f"198.51.99.{number}" for number in range(1, 9)]
    assert outcome(*many) == tuple(many[:MOST_ADDRESSES])


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fe80::1%eth0", "::ffff:10.0.0.1", "x"])
def test_one_address_that_is_neither_public_nor_listed_refuses_the_name(address: str) -> None:
    found = outcome("198.51.99.1", address)
    assert found[0] is FailCode.NOT_ALLOWED
    assert found[1].startswith(f"ops.example has the address {address}, which is not public; list its network in")


def test_listed_networks_are_allowed() -> None:
    assert outcome("10.1.2.3", "::1", listed=["10.1.0.0/16", "::1/128"]) == ("10.1.2.3", "::1")
    assert outcome("10.2.2.3", listed=["10.1.0.0/16"])[0] is FailCode.NOT_ALLOWED


def test_a_name_without_an_address_is_unreachable() -> None:
    assert outcome() == (FailCode.UNREACHABLE, "the name ops.example has no address")

    async def fails(_host: str, _port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(FetchError, match="cannot be resolved: Name or service not known"):
        asyncio.run(judged("ops.example", 443, (), fails))


def test_the_systems_resolver_knows_numbers() -> None:
    assert asyncio.run(resolved("127.0.0.1", 443)) == ["127.0.0.1"]
