"""Agents in every phase of their life, and the one server that all of them contact. In one process; time is the test's.

Each phase prepares its agents so that they are in it at `WRONG`, the minute in which the server's clock is wrong.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from contracts.exchange import Cause
from server.licensing.licenses.licenses import Order
from server.wiring import Plan, create_server
from tests.support.pair import DAY, START, Pair, Server, Truth, enroll

HOUR = 3600
WRONG = 45 * DAY
"""The minute, in seconds since `START`."""
LICENSE_S = 100 * DAY
"""How long licenses are valid after that minute."""

Step = tuple[float, Callable[["Member"], None]]


@dataclass
class Member:
    """One agent.

    Attributes:
        name: its id.
        phase: what it is in at the minute.
        pair: the agent, with the server of all.
        refused: valid licenses that it refused, as texts.
    """

    name: str
    phase: str
    directory: Path
    server: Server
    pair: Pair | None = None
    token: str = ""

    def join(self) -> None:
        """Becomes an agent now, and has not contacted its server yet."""
        side = self.server.server_side
        self.directory.mkdir()
        device, peer = enroll(side, self.directory, self.server.now, self.name)
        self.pair = Pair(self.directory, device, peer, "", self.server, self.name)

    @property
    def agent(self) -> Pair:
        assert self.pair is not None
        return self.pair

    def contact(self, cause: Cause | None = None) -> BaseException | None:
        """One contact; what it ended with. A license is issued once there is a secret."""
        error = self.agent.contact(cause)
        if error is None and not self.token:
            begin = min(self.server.truth.now, self.server.now) - 60
            order = Order(f"license-{self.name}", "shop", ("till",), {}, begin, START + WRONG + LICENSE_S)
            self.token = self.server.server_side.licenses.issue(self.name, order, self.server.now)
        return error

    def works(self) -> None:
        """One contact that must succeed, in ordinary times."""
        error = self.contact()
        assert error is None, f"{self.name}: {error!r}"
        assert self.valid(), f"{self.name}: {self.reason()}"

    def reason(self) -> str:
        return self.agent.agent.validator.validate(self.token, self.agent.clock.now()).verdict.reason.value

    def valid(self) -> bool:
        """Whether a POS application would be served, with the token that it has or the newer one that it is offered."""
        validator, now = self.agent.agent.validator, self.agent.clock.now()
        if validator.validate(self.token, now).verdict.valid:
            return True
        newer = validator.refreshed_token(self.token, now)
        if newer is None or not validator.validate(newer, now).verdict.valid:
            return False
        self.token = newer
        return True

    def rests(self) -> None:
        """The process ends, as a stop ends it: the daemon has written the inventory."""
        asyncio.run(self.agent.agent.validator.inventory.save())
        self.agent.agent.end()

    def restarts(self) -> None:
        """Another process on the machine that goes on running."""
        self.rests()
        self.agent.clock._restarted()
        self.agent.agent = self.agent._start()

    def comes_back(self, battery: bool = True) -> None:
        """The machine is started; without a battery its clock begins at 1970."""
        clock = self.agent.clock
        clock.starts()
        clock.off = 0.0 if battery else -float(self.server.truth.now)
        clock._restarted()
        self.agent.agent = self.agent._start()

    def second(self) -> None:
        """What the daemon does each second."""
        clock, validator = self.agent.clock, self.agent.agent.validator
        clock.notice_sleep()
        validator.ahead = clock.latest() - clock.now()


def _nothing(_member: Member) -> None:
    pass


def _sleeps(member: Member) -> None:
    member.agent.clock.slept += 8 * HOUR


PHASES: dict[str, tuple[Step, ...]] = {
    "first contact": ((WRONG, Member.join),),
    "idle": ((WRONG - 5 * HOUR, Member.join), (WRONG - 5 * HOUR, Member.works), (WRONG - HOUR, Member.works)),
    "rotation due": ((WRONG - DAY, Member.join), (WRONG - DAY + 600, Member.works)),
    "renewal due": (
        (WRONG - 24 * DAY, Member.join), (WRONG - 6 * HOUR, Member.works), (WRONG - HOUR, Member.works),
    ),
    "just restarted": (
        (WRONG - 5 * HOUR, Member.join), (WRONG - HOUR, Member.works), (WRONG - 5, Member.restarts),
    ),
    "off for 40 days": (
        (WRONG - 41 * DAY, Member.join), (WRONG - 41 * DAY + 60, Member.works), (WRONG - 40 * DAY, Member.rests),
        (WRONG - 20, Member.comes_back),
    ),
    "battery dead": (
        (WRONG - 2 * DAY, Member.join), (WRONG - 2 * DAY + 60, Member.works), (WRONG - 2 * DAY + 120, Member.rests),
        (WRONG - 20, lambda member: member.comes_back(battery=False)),
    ),
    "battery dead, off for 40 days": (
        (WRONG - 41 * DAY, Member.join), (WRONG - 41 * DAY + 60, Member.works), (WRONG - 40 * DAY, Member.rests),
        (WRONG - 20, lambda member: member.comes_back(battery=False)),
    ),
    "battery dead, first contact": (
        (WRONG - 1, Member.join), (WRONG - 1, Member.rests), (WRONG - 1, lambda member: member.comes_back(battery=False)),
    ),
    "after sleep": ((WRONG - 12 * HOUR, Member.join), (WRONG - 9 * HOUR, Member.works), (WRONG - 1, _sleeps)),
}  # fmt: skip
"""What happens to the agents of a phase before the minute, each at its time."""
LICENSED_LATER = frozenset({"first contact", "battery dead, first contact"})
"""Agents of these phases have no license before the minute."""
SECRET_OVER = frozenset({"off for 40 days"})
"""Grace of their secret has ended before the minute, by a clock that is right."""


class Fleet:
    """The agents of all phases, at the minute.

    Args:
        directory: of all; empty.
        each: how many agents of each phase.
    """

    def __init__(self, directory: Path, each: int) -> None:
        truth = Truth()
        create_server(directory / "server", Plan("server", ("localhost",), directory / "root.key", None), START)
        self.server = Server(directory / "server", truth)
        self.members = [
            Member(f"pos-{number:03}-{place:02}", phase, directory / f"pos-{number}-{place}", self.server)
            for place, phase in enumerate(PHASES)
            for number in range(each)
        ]
        steps = [(at, place, act, member) for member in self.members for place, (at, act) in enumerate(PHASES[member.phase])]
        self._steps = sorted(steps, key=lambda step: (step[0], step[3].name, step[1]))

    def prepare(self, before: float) -> None:
        """Everything that happens before a time."""
        later = [step for step in self._steps if step[0] >= before]
        for at, _place, act, member in self._steps:
            if at < before:
                self.server.truth.seconds = at
                act(member)
        self._steps = later

    def close(self) -> None:
        for member in self.members:
            if member.pair is not None:
                member.agent.agent.end()
        self.server.server_side.close()
