"""A vendor with a product, policies, a customer and agents, for tests of what happens to licenses."""

from collections.abc import Iterator
from typing import Any

from server.licensing.licenses import lifecycle
from server.licensing.lists.license_list import LicenseRow, one
from server.licensing.sales import products
from server.licensing.sales.orders import Wish, order_of
from server.licensing.sales.products import PolicyPlan
from server.licensing.states.history import history
from tests.server.devices import NOW, Device
from tests.support.serverside import ServerSide

YEAR = 365 * 86_400


class Vendor:
    """Acts of a vendor, each in a transaction of its own.

    Args:
        server: without agents.
        agents: how many it gets, with a confirmed secret each.
    """

    def __init__(self, server: ServerSide, agents: int = 2) -> None:
        self.server = server
        self.agents = tuple(Device(number).come(server).agent_id for number in range(1, agents + 1))
        for agent in self.agents:
            server.secrets.rotate_by_hand(agent, NOW)
        with server.database.write() as session:
            products.create_product(session, "till", "Till software", NOW)
            products.create_set(session, "base", "Base", ("sales",), NOW)
            products.create_policy(session, "year", "till", PolicyPlan("A year", "base", ("fuel",), {"tier": "1"}, YEAR), NOW)
            plan = PolicyPlan("Pro", "base", ("fuel", "kiosk"), {"tier": "2"}, YEAR)
            products.create_policy(session, "pro", "till", plan, NOW)
            products.create_policy(session, "try", "till", PolicyPlan("30 days", "base", duration=30 * 86_400), NOW, trial=True)
            server.server.customers.create(session, "c-1", {"name": "Ada Lovelace Ltd", "email": "ada@shop.example"}, NOW)
            server.server.customers.create_site(session, "s-1", "c-1", {"name": "Main street", "address": "1 Main St"}, NOW)

    def sell(self, license_id: str, agent: str | None = None, now: int = NOW, **wish: Any) -> str | None:
        """Issues a license, by policy `year` to the customer unless told otherwise; returns its token."""
        with self.server.database.write() as session:
            order = order_of(session, Wish(license_id, **{"policy": "year", "site": "s-1", **wish}), now)
            if agent is None:
                self.server.server.licenses.stock(session, order, now)
                return None
            return self.server.server.licenses.issue(session, agent, order, now)

    def do(self, act: str, license_id: str, *arguments: Any, now: int = NOW, **named: Any) -> Any:
        """An act of `lifecycle`, by its name."""
        with self.server.database.write() as session:
            return getattr(lifecycle, act)(session, license_id, *arguments, now, **named)

    def row(self, license_id: str, now: int = NOW) -> LicenseRow:
        with self.server.database.read() as session:
            return one(session, license_id, now)

    def past(self, license_id: str) -> Iterator[tuple[str, str]]:
        """Events and states of its history."""
        with self.server.database.read() as session:
            return iter([(row.event, row.state) for row in history(session, license_id)])
