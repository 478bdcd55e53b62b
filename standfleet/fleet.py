"""Runs a fleet: each machine contacts the server when its own schedule says, by a clock that goes as fast as is wished.

When an agent comes and when it tries again is decided by the agent's own code. Machines' time runs ahead of the server's; what
the server does by its own clock, such as ending orders that took too long, comes no earlier for that.
"""

import asyncio
import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from agentd.uplink.retry import delay
from agentd.uplink.schedule import contact_delay
from contracts.contact.updates import UpdatesReply
from contracts.exchange import Refusal
from contracts.jose import b64decode

from .machine import Machine
from .profiles import Profile, share
from .summary import Summary
from .wire import NoAnswer, Wire

CONTACT_S = 1800
"""Between two contacts of a machine, about: the agent comes up to a fifth earlier."""
SOON_S = (20.0, 100.0)
"""Between an order and the contact that reports what became of it."""
TOLD_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How a fleet runs. Times are seconds of the machines' time from the begin on.

    Attributes:
        lasts: until then.
        interval: between two contacts of a machine.
        outage: begin and end of an outage for all machines; None for none.
        speed: seconds of the machines' time in one second; None for as fast as the server answers.
    """

    lasts: float
    interval: int = CONTACT_S
    outage: tuple[float, float] | None = None
    speed: float | None = None


class Fleet:
    """Machines that contact a server.

    Args:
        machines: enrolled ones. Those of the profile `cloned` get a twin.
        wire: to the server.
        at_once: contacts at the same time, at most.
        wall: seconds since 1970 UTC, at the begin.
        steady: seconds of a clock that never goes back.
        say: is given the progress, now and then.
    """

    def __init__(
        self,
        machines: Sequence[Machine],
        wire: Wire,
        at_once: int,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        say: Callable[[Summary, float], None] = lambda _summary, _part: None,
    ) -> None:
        self.machines = list(machines)
        self._wire, self._at_once, self._steady, self._say = wire, at_once, steady, say
        self.began = wall()
        self.summary = Summary()
        self.now = 0.0
        self._count()
        self._missed: set[int] = set()
        self._told = steady()

    def _count(self) -> None:
        twins = [each.clone() for each in self.machines if each.profile is Profile.CLONED and not each.twin]
        self.machines += twins
        self.summary.machines = len(self.machines)
        self.summary.profiles.update(each.profile.value for each in self.machines)

    async def run(self, plan: Plan, until: Callable[[], bool] = lambda: False) -> Summary:
        """Runs until the plan's end, or until something is true. May be called again: time goes on.

        Args:
            plan: how the fleet runs; `lasts` and `outage` count from this call.
            until: is asked after each contact.
        """
        begin, started = self.now, self._steady()
        due = [
            (begin + plan.interval * share(each.seed, each.number, f"first {each.twin} {begin}"), place)
            for place, each in enumerate(self.machines)
        ]
        heapq.heapify(due)

        async def work() -> None:
            while due and not until():
                at, place = heapq.heappop(due)
                if at > begin + plan.lasts:
                    return
                if plan.speed is not None:
                    await asyncio.sleep(max(0.0, started + (at - begin) / plan.speed - self._steady()))
                self.now = max(self.now, at)
                following = await self._visit(self.machines[place], place, at, begin, plan)
                heapq.heappush(due, (following, place))
                self._tell(begin, plan)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._at_once, len(self.machines))):
                group.create_task(work())
        self.now = max(self.now, begin + plan.lasts)
        self.summary.seconds += self._steady() - started
        self.summary.virtual_s = self.now
        return self.summary

    async def _visit(self, machine: Machine, place: int, at: float, begin: float, plan: Plan) -> float:
        """A contact, or the attempt; returns when the machine comes again."""
        out = plan.outage is not None and begin + plan.outage[0] <= at < begin + plan.outage[1]
        if out or machine.is_out(at):
            self.summary.unreachable += 1
            self._missed.update({place} if out else ())
            return at + self._backoff(machine, None)
        try:
            worked, wait = await self.contact(machine, self.began + at)
        except NoAnswer as problem:
            self.summary.failed[str(problem)[:80]] += 1
            worked, wait = False, None
        if not worked:
            return at + self._backoff(machine, wait)
        machine.failures = 0
        machine.contacts += 1
        self.summary.contacts += 1
        if place in self._missed and plan.outage is not None:
            self._missed.discard(place)
            self.summary.returns.append(at - begin - plan.outage[1])
        if machine.order is not None or machine.outcomes:
            least, most = SOON_S
            return at + least + (most - least) * share(machine.seed, machine.number, f"soon {machine.contacts}")
        return at + contact_delay(f"{machine.agent_id} {machine.twin}", machine.contacts, plan.interval)

    def _backoff(self, machine: Machine, wait: float | None) -> float:
        machine.failures += 1
        drawn = share(machine.seed, machine.number, f"retry {machine.twin} {machine.contacts} {machine.failures}")
        return max(delay(machine.failures, drawn), wait or 0.0, 1.0)

    async def contact(self, machine: Machine, now: float) -> tuple[bool, float | None]:
        """One contact: a challenge, then the report and the question. Returns whether it worked, and how long to wait if not.

        Raises:
            NoAnswer: the server did not answer.
        """
        machine.work(now)
        async with self._wire.line(machine) as line:
            asked = await line.post("challenge", {})
            challenge = asked.read().challenge
            if asked.status != 200 or not challenge:
                return self._refused(asked.status, asked.read().error.code), asked.retry_after_s
            answer = await line.post("updates", {"request": machine.ask(challenge, now)[1]})
        body = answer.read()
        if not body.reply:
            return self._refused(answer.status, body.error.code), answer.retry_after_s
        content = msgspec.json.decode(b64decode(body.reply.split(".")[1]), type=UpdatesReply | Refusal)
        if isinstance(content, Refusal):
            return self._refused(answer.status, content.code.value), answer.retry_after_s
        before = len(machine.had)
        said = {number: outcome for number, outcome in machine.outcomes.items() if outcome.state.value != "progress"}
        machine.answered(content)
        self.summary.ended.update(each.state.value for number, each in said.items() if number not in machine.outcomes)
        self.summary.ordered += len(machine.had) - before
        self.summary.waits += [asked.seconds, answer.seconds]
        return True, None

    def _refused(self, status: int, code: str) -> bool:
        self.summary.refused[code or f"status {status}"] += 1
        return False

    def _tell(self, begin: float, plan: Plan) -> None:
        if self._steady() - self._told >= TOLD_EVERY_S:
            self._told = self._steady()
            self._say(self.summary, min(1.0, (self.now - begin) / plan.lasts) if plan.lasts else 1.0)
