"""Machines of a fleet for the tests: agents that ask for directives and report, without the network and its signatures."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from contracts.contact.updates import Outcome, OutcomeState, RunningVersion, UpdatesRequest
from contracts.directive import Directive
from contracts.jose import b64decode
from server.fleet.devices.registry import note_contact
from server.fleet.rollouts import contact, lifecycle
from server.fleet.rollouts.policy import policy_of
from server.fleet.rollouts.rows import Plan
from server.ota import publishing
from server.ota.packages import Package
from server.ota.reports import Directives
from server.ota.words import RELEASES
from server.registry.later import Records
from server.registry.models.core import Agent
from server.registry.models.fleets import Device, Fleet
from server.registry.models.rollouts import Rollout, RolloutDevice, RolloutGroup
from tests.server.devices import NOW
from tests.server.ota.vendor import HARDWARE, target_of
from tests.support.serverside import ServerSide

FLEET, DAY = "shops", 86_400
OLD, NEW = ("1.0.0", "b1"), ("1.1.0", "b2")
PACKAGE = "pos/pos-1.1.0-b2"
QUICK: dict[str, Any] = {"notice": 0, "groups": ["3", "9", "18", "rest"], "success_percent": 75, "failure_percent": 20}


@dataclass
class Machine:
    """An agent. `runs`: version and build; `bad`: whether updates fail on it."""

    agent_id: str
    runs: tuple[str, str] = OLD
    bad: bool = False
    hardware: str = HARDWARE[0]
    known: int = 0
    directive: Directive | None = None
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    had: list[str] = field(default_factory=list)

    def says(self, state: OutcomeState, detail: str = "") -> None:
        assert self.directive is not None
        number = self.directive.number
        self.outcomes[number] = Outcome(number=number, state=state, detail=detail, at=NOW)

    def work(self) -> None:
        """Does what it is ordered to do, to the end."""
        order, self.directive = self.directive, self.directive
        if order is None or order.withdraws is not None:
            self.directive = None
            return
        if self.bad and not order.downgrade:
            self.says(OutcomeState.ROLLED_BACK, "health check failed")
        else:
            self.runs = order.version, order.build_id
            self.says(OutcomeState.COMMITTED)
        self.directive = None


class World:
    """A server with a fleet of machines, two packages, and rollouts.

    Args:
        server: an open one.
        count: machines.
    """

    def __init__(self, server: ServerSide, count: int) -> None:
        self.server, self.now = server, NOW
        self.directives = Directives(server.keys)
        self.machines = {name: Machine(name) for name in (f"pos-{number:05}" for number in range(count))}
        with server.database.write() as session:
            publishing.record(session, [Package(RELEASES, target_of(*each)) for each in (OLD, NEW)], NOW)
            add_agents(session, self.machines)
            session.add(
                Fleet(
                    id=FLEET, name="", tags="[]", selection="kind=agent", rank=1, policy="{}", configuration=None,
                    created_at=NOW, updated_at=NOW, revision=1,
                )
            )  # fmt: skip

    fleet = Fleet

    @classmethod
    def beside(cls, world: "World", server: ServerSide) -> "World":
        """The same machines at another process of the same registry."""
        made = cls.__new__(cls)
        made.server, made.now, made.machines = server, world.now, world.machines
        made.directives = Directives(server.keys)
        return made

    def visit(self, name: str) -> None:
        """A machine asks in a transaction of its own, and does what it is ordered to."""
        self.contact(self.machines[name])
        self.machines[name].work()

    def write(self, act: Callable[[Session], Any]) -> Any:
        with self.server.database.write() as session:
            return act(session)

    def create(self, rollout_id: str = "r1", path: str = PACKAGE, selection: str | None = None, **policy: Any) -> Rollout:
        plan = Plan(rollout_id, FLEET, path, selection, policy_of({**QUICK, **policy}))
        made: Rollout = self.write(lambda session: lifecycle.create(session, plan, "olga", self.now))
        return made

    def start(self, rollout_id: str = "r1", **more: Any) -> None:
        self.create(rollout_id, **more)
        self.write(lambda session: lifecycle.start(session, rollout_id, self.now))

    def contact(self, machine: Machine) -> Directive | None:
        return self.write(lambda session: self.ask(session, machine))  # type: ignore[no-any-return]

    def ask(self, session: Session, machine: Machine) -> Directive | None:
        """A contact, as the exchange has it."""
        version, build = machine.runs
        asked = UpdatesRequest(
            agent_id=machine.agent_id, request_id="0" * 32, challenge="c" * 16, timestamp=self.now,
            running=(RunningVersion(product="pos", version=version, build_id=build),), directive=machine.known,
            outcomes=tuple(machine.outcomes.values()), hardware=machine.hardware,
        )  # fmt: skip
        records = Records()
        self.server.database.keep_read(session)
        session.get(Agent, machine.agent_id, with_for_update=True)
        note_contact(session, machine.agent_id, asked.running, machine.hardware, self.now)
        changed = self.directives.note(session, machine.agent_id, asked, self.now, records)
        contact.after_reports(session, machine.agent_id, changed, self.now, records)
        contact.before_directive(session, machine.agent_id, self.now, records)
        given = self.directives.answer(session, machine.agent_id, asked, self.now, records)
        records.write(session)
        machine.outcomes.clear()
        machine.directive = None
        if given.directive is not None:
            machine.directive = msgspec.json.decode(b64decode(given.directive.split(".")[1]), type=Directive)
            machine.known = max(machine.known, machine.directive.number)
            if machine.directive.withdraws is None:
                machine.had.append(machine.directive.build_id)
        return machine.directive

    def round(self, names: Iterable[str] | None = None) -> None:
        """Each machine asks, and does what it is ordered to. One transaction, since commits take most of the time."""
        with self.server.database.write() as session:
            for name in list(self.machines if names is None else names):
                self.ask(session, self.machines[name])
                self.machines[name].work()

    # Look

    def rollout(self, rollout_id: str = "r1") -> Rollout:
        with self.server.database.read() as session:
            row = session.get(Rollout, rollout_id)
            assert row is not None
            return row

    def groups(self, rollout_id: str = "r1") -> list[RolloutGroup]:
        with self.server.database.read() as session:
            query = select(RolloutGroup).where(RolloutGroup.rollout_id == rollout_id).order_by(RolloutGroup.number)
            return list(session.scalars(query))

    def states(self, rollout_id: str = "r1") -> list[str]:
        return [row.state for row in self.groups(rollout_id)]

    def rows(self, rollout_id: str = "r1") -> dict[str, RolloutDevice]:
        with self.server.database.read() as session:
            rows = session.scalars(select(RolloutDevice).where(RolloutDevice.rollout_id == rollout_id))
            return {row.device_id: row for row in rows}

    def of_group(self, number: int, rollout_id: str = "r1") -> list[Machine]:
        return [self.machines[name] for name, row in sorted(self.rows(rollout_id).items()) if row.group_number == number]

    def require_counted(self, rollout_id: str = "r1") -> None:
        """Every counter is what the rows say."""
        rows = self.rows(rollout_id).values()
        under_way = ("ordered", "under-way", "installed")
        for group in self.groups(rollout_id):
            mine = [row.state for row in rows if row.group_number == group.number]
            assert group.total == len(mine)
            assert (group.waiting, group.proved) == (mine.count("waiting"), mine.count("proved"))
            assert group.under_way == sum(mine.count(each) for each in under_way)
            assert group.failed == mine.count("failed") + mine.count("refused")
            assert group.left_out == mine.count("left-out")

    def kinds(self) -> Sequence[str]:
        return [each.event for each in self.server.audit.tail(500) if each.event.startswith("rollout.")]


def add_agents(session: Session, names: Iterable[str], status: str = "active") -> None:
    """Agents and their devices as rows: to enroll thousands takes too long."""
    agent = {
        "status": status, "attestation": "factory", "backend": "software", "agreement_key": "{}", "urgent": False,
        "created_at": NOW, "updated_at": NOW, "audit_turns": 0, "capabilities": "announce updates",
    }  # fmt: skip
    device = {"kind": "agent", "name": "", "created_at": NOW, "updated_at": NOW, "revision": 1}
    every = list(names)
    if not every:
        return
    session.execute(insert(Agent), [{"id": name, **agent} for name in every])
    session.execute(insert(Device), [{"id": name, **device} for name in every])


def fields(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found
