"""Thousands of virtual machines at a real server: a bad build that a rollout stops, and an outage from which all come back.

Some machines are enrolled over the wire; the others get their rows and certificates from the server's own CA, at once. All of
them ask over the public wire, at the Unix socket where a proxy speaks for clients, with their own signatures.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select, text

from server.fleet.rollouts import lifecycle
from server.fleet.rollouts.policy import policy_of
from server.fleet.rollouts.rows import Plan as Rollout
from server.keys.pki import fingerprint_of, make_client_certificate, pem_of
from server.ota import publishing
from server.ota.packages import Package
from server.ota.words import RELEASES
from server.registry import agentcounts
from server.registry.database import next_number
from server.registry.models.core import Agent, Certificate
from server.registry.models.fleets import Device
from server.registry.models.fleets import Fleet as FleetRow
from server.registry.models.rollouts import RolloutDevice
from server.registry.models.updates import UpdateDirective
from standfleet.enrolling import enroll, key_set
from standfleet.fleet import Fleet, Plan
from standfleet.machine import Machine, jwk_of, key_of, make
from standfleet.profiles import Profile, of_machine
from standfleet.summary import Summary, quantile
from standfleet.wire import Target, Wire
from tests.server.ota.vendor import target_of
from tests.support.apiserver import ApiServer
from tests.support.serverside import ServerSide

OLD, NEW = ("1.0.0", "b1"), ("1.1.0", "b2")
SHARES = {Profile.SLOW: 0.02, Profile.CLOCK: 0.02, Profile.LIES: 0.005, Profile.CLONED: 0.005, Profile.OUTAGE: 0.01}
BAD_GROUP = 3
HOUR = 3600.0
DAY = 86_400
_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Size:
    """How large a run is.

    Attributes:
        machines: all of them.
        enrolled: of them, over the wire.
        groups: of the rollout, before the one that takes the rest; the third has the bad build.
        connections: at once.
        asking: machines that contact the server in the outage, and of the last group when the rollout has stopped; None for
            all of them. What the registry holds is looked at for all machines in any case.
    """

    machines: int
    enrolled: int
    groups: tuple[int, int, int]
    connections: int
    asking: int | None = None


class ManyMachines:
    """A fleet in the registry and at the wire.

    Args:
        server: serves on a Unix socket.
        size: of the fleet.
        seed: of the machines.
    """

    def __init__(self, server: ApiServer, size: Size, seed: int = 7) -> None:
        self.server, self.size, self.seed = server, size, seed
        numbers = range(1, size.machines + 1)
        self.machines = [make(seed, number, of_machine(seed, number, SHARES), OLD) for number in numbers]
        self.by_id = {each.agent_id: each for each in self.machines}
        self.twins: list[Machine] = []

    # Make

    async def enter(self) -> None:
        """Makes all machines agents."""
        with self.server.server_side() as side:
            self._put_rows(side)
            now = int(time.time())
            tokens = [side.enrollment_tokens.create(None, False, 3600, now) for _ in range(self.size.enrolled)]
        wire = self._wire()
        keys = await key_set(wire, self.machines[0])
        for machine, token in zip(self.machines, tokens, strict=False):
            await enroll(wire, keys, machine, token)
        wire.close()

    def _put_rows(self, side: ServerSide) -> None:
        now, others = int(time.time()), self.machines[self.size.enrolled :]
        common = {"created_at": now, "updated_at": now, "revision": 1}
        with side.database.write() as session:
            publishing.record(session, [Package(RELEASES, target_of(*each)) for each in (OLD, NEW)], now)
            session.add(FleetRow(id="all", name="", tags="[]", selection="kind=agent", rank=1, policy="{}", **common))
            issuer = side.keys.issuing_ca(session)
            first = next_number(session, "serial", count=len(others))
        for begin in range(0, len(others), _BATCH):
            # Outside of a transaction: the database ends one that does nothing for a minute, as on a machine that is busy.
            rows = _rows_of(others[begin : begin + _BATCH], first + begin, issuer, now)
            with side.database.write() as session:
                for model, values in rows.items():
                    _put(session, model.__tablename__, model, values, copies=not side.database.is_sqlite)
                agentcounts.add(session, {"active": len(rows[Agent])})
        if not side.database.is_sqlite:
            with side.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql("VACUUM ANALYZE")

    # Run

    def _wire(self) -> Wire:
        assert self.server.unix is not None
        return Wire(Target(f"unix:{self.server.unix}"), self.size.connections)

    async def run(self, machines: Sequence[Machine], plan: Plan, until_settled: str | None = None) -> Summary:
        """Lets machines contact the server; ends early when a rollout has ended."""
        wire = self._wire()
        fleet = Fleet(machines, wire, self.size.connections)
        count = 0

        def settled() -> bool:
            nonlocal count
            count += 1
            if until_settled is None or count % 20:
                return False
            return self.state(until_settled) not in ("announced", "running", "paused")

        try:
            summary = await fleet.run(plan, settled)
        finally:
            wire.close()
        self.twins = [each for each in fleet.machines if each.twin]
        return summary

    # Look

    def write(self, act: Any) -> Any:
        with self.server.server_side() as side, side.database.write() as session:
            return act(session)

    def state(self, rollout_id: str) -> str:
        with self._side.database.read() as session:
            return str(session.scalar(text("SELECT state FROM rollout WHERE id = :id"), {"id": rollout_id}))

    def rows(self, rollout_id: str) -> dict[str, tuple[int, str]]:
        """Group and state of each device of a rollout."""
        columns = RolloutDevice.device_id, RolloutDevice.group_number, RolloutDevice.state
        with self._side.database.read() as session:
            found = session.execute(select(*columns).where(RolloutDevice.rollout_id == rollout_id))
            return {device_id: (number, state) for device_id, number, state in found}

    def directives_of(self, agents: Sequence[str]) -> int:
        """How many directives were ever made for these agents."""
        with self._side.database.read() as session:
            wanted, found = set(agents), session.scalars(select(UpdateDirective.agent_id))
            return sum(agent_id in wanted for agent_id in found)

    _side: ServerSide

    def shown(self, rollout_id: str, *more: str) -> dict[str, Any]:
        """What an operator sees."""
        found: dict[str, Any] = json.loads(self.server.run("rollouts", "show", rollout_id, "--json", *more))
        return found


def _rows_of(
    machines: Sequence[Machine], first: int, issuer: tuple[Any, Any], now: int
) -> dict[type[Any], list[dict[str, Any]]]:
    """The rows of machines that are agents, with certificates that the server's CA has issued; serial numbers from one on."""
    rows: dict[type[Any], list[dict[str, Any]]] = {Agent: [], Device: [], Certificate: []}
    ca, ca_key = issuer
    for serial, each in enumerate(machines, first):
        tls, until = key_of(each.seed, each.number, "tls"), now + 20 * DAY
        made = make_client_certificate(tls.public_key(), ca, ca_key, each.agent_id, serial, now, until)
        each.certificates = pem_of(made) + pem_of(ca)
        identity = json.dumps(jwk_of(each.identity))
        rows[Agent].append(
            {
                "id": each.agent_id, "serial": serial, "hw_id": each.hw_id, "status": "active", "attestation": "software",
                "backend": "software", "identity_key": identity, "agreement_key": identity, "attestation_key": identity,
                "urgent": False, "created_at": now, "updated_at": now, "audit_turns": 0,
            }
        )  # fmt: skip
        rows[Device].append(
            {"id": each.agent_id, "kind": "agent", "name": "", "created_at": now, "updated_at": now, "revision": 1}
        )
        rows[Certificate].append(
            {
                "fingerprint": fingerprint_of(made), "agent_id": each.agent_id, "number": f"{made.serial_number:x}",
                "state": "active", "issued_at": now, "not_after": until,
            }
        )  # fmt: skip
    return rows


def _put(session: Any, table: str, model: type[Any], values: list[dict[str, Any]], *, copies: bool) -> None:
    if not values:
        return
    if not copies:
        session.execute(insert(model), values)
        return
    names = list(values[0])
    with session.connection().connection.cursor().copy(f"COPY {table} ({', '.join(names)}) FROM STDIN") as copy:
        for row in values:
            copy.write_row([row[name] for name in names])


def a_bad_build_is_stopped(world: ManyMachines, say: Any) -> None:
    """A rollout whose build is bad on the machines of group 3 stops there, and all machines that it has hit go back."""
    with world.server.server_side() as side:
        world._side = side
        asyncio.run(_a_bad_build_is_stopped(world, say))


async def _a_bad_build_is_stopped(world: ManyMachines, say: Any) -> None:
    now, groups = int(time.time()), [str(each) for each in world.size.groups]
    policy = {"groups": [*groups, "rest"], "notice": 0, "success_percent": 80, "failure_percent": 10}

    def begin(session: Any) -> None:
        lifecycle.create(session, Rollout("r1", "all", target_of(*NEW).path, None, policy_of(policy)), "olga", now)
        lifecycle.start(session, "r1", now)

    before = time.perf_counter()
    world.write(begin)
    say(f"rollout over {world.size.machines} machines made and started in {time.perf_counter() - before:.2f} s")
    of_group: dict[int, list[Machine]] = {}
    for device_id, (number, _state) in world.rows("r1").items():
        of_group.setdefault(number, []).append(world.by_id[device_id])
    assert [len(of_group[number]) for number in (1, 2, 3)] == list(world.size.groups)
    for machine in of_group[BAD_GROUP]:
        machine.profile = Profile.ROLLS_BACK
    concerned = [each for number in (1, 2, 3) for each in of_group[number]]
    beside = of_group[4][: max(50, len(concerned) // 10)]
    summary = await world.run([*concerned, *beside], Plan(lasts=24 * HOUR), "r1")
    _say(say, summary)

    # It has stopped by its threshold, in group 3.
    shown = world.shown("r1")
    assert shown["state"] == "stopped" and f"group {BAD_GROUP}" in shown["detail"] and "10 % are the limit" in shown["detail"]
    assert [each["state"] for each in shown["groups"]] == ["succeeded", "succeeded", "failed", "waiting"]
    failed = shown["groups"][BAD_GROUP - 1]["failed"]
    assert failed >= len(of_group[BAD_GROUP]) / 10 and shown["groups"][3]["waiting"] == len(of_group[4])
    assert failed <= summary.ended["rolled-back"] <= world.size.groups[2]

    # Nobody beyond is touched: every other machine asks, and is given nothing.
    asking = of_group[4][: world.size.asking]
    rest = await world.run(asking, Plan(lasts=0.55 * HOUR))
    _say(say, rest)
    everybody = [*of_group[4], *world.twins]
    assert rest.contacts >= len(asking) and rest.ordered == 0
    assert world.directives_of([each.agent_id for each in of_group[4]]) == 0
    assert all(each.had == [] and each.runs == OLD for each in everybody)
    assert {state for number, state in world.rows("r1").values() if number == 4} == {"waiting"}

    # The fleet goes back: whoever has the new build runs the old one again.
    hit = [each for each in concerned if each.runs == NEW]
    assert len(hit) > 0.7 * (len(of_group[1]) + len(of_group[2]))
    back = {"groups": ["rest"], "notice": 0, "success_percent": 90, "failure_percent": 100}
    world.write(lambda session: lifecycle.roll_back(session, "r1", "back", policy_of(back), "olga", int(time.time())))
    for machine in of_group[BAD_GROUP]:
        machine.profile = Profile.SOUND
    returned = await world.run(concerned, Plan(lasts=4 * HOUR), "back")
    _say(say, returned)
    assert world.shown("back")["groups"][0]["state"] == "succeeded" and world.state("back") == "finished"
    assert world.state("r1") == "rolled-back"
    sound = [each for each in hit if each.profile not in (Profile.LIES, Profile.CLONED)]
    assert sum(each.runs == OLD for each in sound) >= 0.9 * len(sound)
    world.server.run("audit", "--verify")


def all_come_back_from_an_outage(world: ManyMachines, say: Any) -> None:
    """An hour without a network for all machines: they come back one after the other, and the server keeps up."""
    with world.server.server_side() as side:
        world._side = side
        interval = int(2.5 * HOUR)
        plan = Plan(lasts=1.5 * HOUR, interval=interval, outage=(0.1 * HOUR, 1.1 * HOUR))
        asking = world.machines[: world.size.asking]
        summary = asyncio.run(world.run(asking, plan))
    _say(say, summary)
    met = len(summary.returns)
    assert met > 0.25 * len(asking) and summary.unreachable > met
    assert summary.failed == {}
    assert max(summary.returns) < 0.4 * HOUR, "an agent tries again within a quarter of an hour"
    # Who has just begun to try again comes within the first minute, the others over a quarter of an hour: about a sixth is in
    # the busiest minute, and by chance more if they are few.
    assert summary.busiest <= 0.22 * met + 10, f"{summary.busiest} of {met} machines came in one minute"
    assert quantile(summary.waits, 0.99) < 5


def _say(say: Any, summary: Summary) -> None:
    for line in summary.lines():
        say(line)


def socket_of(directory: Path) -> Path:
    """A socket for a server, in a short path."""
    return directory / "api.sock"
