"""`ota rollback license-agent`, from the administrator's act to dpkg: the core's own runner and the installer's orders.

Only the sockets between them are left out: each order is encoded, answered and decoded as it goes through them. The core is
started anew where dpkg would restart it.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.base.errors import Refused
from agentd.ota.installerclient import InstallerClient
from agentd.ota.register import INSTALLED, ROLLED_BACK
from agentd.ota.runner import UpdateRunner
from agentd.ota.table import Order, Step
from installer.agentpackage.packages import PACKAGE
from installer.agentpackage.trial import DEADLINE_S
from installer.orders import answer
from ipc.installermessages import Progress, encode_installer, from_installer_decoder
from ipc.messages import Request
from tests.agentd.ota.machine import NOW, UpdatedMachine
from tests.installer.test_deb_orders import Till
from tests.support.debs import deb

pytestmark = pytest.mark.system


class Wire:
    """Carries an order to the installer and its answer back, as the sockets do."""

    def __init__(self, till: Till) -> None:
        self.till = till
        self.orders: list[str] = []

    async def order(self, order: Request, _silence_s: float = 0, progress: Any = None, descriptor: int | None = None) -> Any:
        assert descriptor is None
        self.orders.append(str(order.__struct_config__.tag))

        def report(message: Progress) -> None:
            if progress is not None:
                progress(message.done, message.total)

        answered = answer(encode_installer(order)[4:], self.till.machine(), report)
        return from_installer_decoder().decode(encode_installer(answered)[4:])


class Site:
    """A machine whose agent 1.0 came from apt, and was updated to 2.0 by a directive."""

    def __init__(self, top: Path) -> None:
        self.till = Till(top)
        self.core = UpdatedMachine(top)
        self.wire = Wire(self.till)
        client = InstallerClient(top / "installer.sock")
        client._orders = self.wire  # type: ignore[assignment]
        self.core.installer = client  # type: ignore[assignment]

    def start(self) -> UpdateRunner:
        """The agent, as dpkg restarts it."""
        return self.core.start()

    async def update(self, version: str, number: int) -> None:
        data = deb(f"{version}+b{version}")
        sha256 = self.till.stage(version, data, number)
        self.core.updater.staged.add(sha256)
        order = Order(
            number=number, product=PACKAGE, version=version, build_id=f"b{version}", sha256=sha256, length=len(data),
            directive="d", key_set="k", received=NOW, not_before=NOW - 10, not_after=NOW + 30 * 86_400,
        )  # fmt: skip
        offered = self.core.updater.offer
        self.core.updater.offer = type(offered)(PACKAGE, version, order.build_id, sha256, len(data))
        runner = self.start()
        await runner.hear(order, None, paused=False)
        await self.core.settle(runner)

    async def rollback(self) -> str:
        """What `license-agent-cli ota rollback license-agent` asks for, and the agent that dpkg starts then."""
        runner = self.start()
        version = await self.core.acts.roll_back(PACKAGE, "Eva", {"uid": 1})
        await runner.stop()
        await self.core.settle(self.start())
        return version


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.core.close()


def test_the_agent_goes_back_once_to_the_package_before_and_stays_there(site: Site) -> None:
    async def story() -> None:
        await site.update("2.0", 7)
        assert site.till.box.installed() == ("2.0+b2.0", "2.0+b2.0")
        assert await site.rollback() == "1.0"

    asyncio.run(story())
    assert site.till.box.installed() == ("1.0+b1.0", "1.0+b1.0")
    assert site.core.runner.update.step is Step.IDLE and site.core.runner.update.attempts == 0
    entries = [(each.outcome, each.version, each.before, each.operator) for each in site.core.register.entries]
    assert [entry[0] for entry in entries] == [INSTALLED, ROLLED_BACK] and entries[1][3] == "Eva"
    assert site.wire.orders.count("roll_back") == 1
    # No trial is left that the rescue would end, and there is no second way back.
    site.till.box.now += DEADLINE_S
    site.till.box.rescue().tick()
    assert (site.till.shown().state, site.till.box.installed()) == ("idle", ("1.0+b1.0", "1.0+b1.0"))
    with pytest.raises(Refused, match="has no version of license-agent before 1"):
        asyncio.run(site.rollback())


def test_without_a_package_before_there_is_no_way_back(site: Site) -> None:
    with pytest.raises(Refused, match=r"has no version of license-agent before 1\.0"):
        asyncio.run(site.rollback())
    assert site.till.box.installed() == ("1.0+b1.0", "1.0+b1.0")
