"""DDI over the rollouts of the registry, on both databases: what is ordered, taken back and proved, and what is counted."""

from pathlib import Path
from typing import Any

import pytest

from server.fleet.ddi import devices
from server.fleet.ddi.rollouts import RolloutQueue
from server.fleet.ddi.seen import Seen
from server.fleet.rollouts import lifecycle
from server.fleet.rollouts.policy import policy_of
from server.fleet.rollouts.rows import Plan, groups_of
from server.registry.models.rollouts import Rollout, RolloutDevice
from tests.server.devices import NOW
from tests.server.hawkbit.conftest import PATH, World
from tests.support.serverside import ServerSide


@pytest.fixture
def world(server: ServerSide, tmp_path: Path) -> World:
    found = World(server, tmp_path / "updates", RolloutQueue())
    found.fleet("shops")
    for device in ("till-1", "till-2"):
        found.add(device, "shops")
    found.publish()
    return found


def start(world: World, rollout: str = "r1", path: str = PATH, **policy: Any) -> None:
    plan = Plan(
        rollout, "shops", path, None, policy_of({"notice": 0, "groups": ["1", "rest"], "success_percent": 100, **policy})
    )
    with world.server.database.write() as session:
        lifecycle.create(session, plan, "olga", int(world.now))
        session.flush()
        lifecycle.start(session, rollout, int(world.now))


def act(world: World, do: Any, *arguments: Any) -> None:
    with world.server.database.write() as session:
        do(session, *arguments)


def states(world: World) -> dict[str, str]:
    with world.server.database.read() as session:
        return {row.device_id: row.state for row in session.query(RolloutDevice)}


def first_and_second(world: World) -> tuple[str, str]:
    with world.server.database.read() as session:
        found = {row.group_number: row.device_id for row in session.query(RolloutDevice)}
    return found[1], found[2]


def install(world: World, device: str) -> int:
    number = world.offered(device)
    world.ask("GET", f"{device}/deploymentBase/{number}", device)
    assert world.feedback(device, number, "proceeding").status == 200
    assert world.feedback(device, number, "closed", "success").status == 200
    return number


def test_the_next_group_starts_when_the_first_has_proved_and_not_when_it_has_installed(world: World) -> None:
    start(world)
    first, second = first_and_second(world)
    install(world, first)
    assert states(world) == {first: "installed", second: "waiting"}
    assert "deploymentBase" not in world.poll(second)["_links"], "what is installed is not proved"
    assert world.attributes(first, pos__version="2.1").status == 200
    assert states(world)[first] == "proved"
    install(world, second)
    world.attributes(second, pos__version="2.1")
    with world.server.database.read() as session:
        rollout = session.get(Rollout, "r1")
        assert rollout is not None and rollout.state == "finished"
        assert [(group.state, group.proved, group.total) for group in groups_of(session, "r1")] == [("succeeded", 1, 1)] * 2


def test_a_failure_stops_the_rollout_and_a_stopped_one_is_canceled_at_the_devices(world: World) -> None:
    start(world, groups=["rest"], failure_count=1)
    number = world.offered("till-1")
    world.ask("GET", f"till-1/deploymentBase/{number}", "till-1")
    other = world.offered("till-2")
    assert world.feedback("till-2", other, "closed", "failure", details=["no space"]).status == 200
    assert "cancelAction" in world.poll("till-1")["_links"]
    stopped = {"status": {"execution": "closed", "result": {"finished": "success"}}}
    assert world.ask("POST", f"till-1/cancelAction/{number}/feedback", "till-1", stopped).status == 200
    assert states(world) == {"till-1": "left-out", "till-2": "failed"}
    assert world.poll("till-1")["_links"].keys() <= {"configData"}


def test_the_server_keeps_the_window_of_the_policy_and_a_pause(world: World) -> None:
    hours = {"zone": "UTC", "days": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"], "start": "02:00", "end": "03:00"}
    start(world, groups=["rest"], window=hours)
    assert "deploymentBase" not in world.poll("till-1")["_links"]
    world.now = float((NOW // 86_400 + 1) * 86_400 + 2 * 3600)
    number = world.offered("till-1")
    act(world, lifecycle.pause, "r1", int(world.now))
    assert "deploymentBase" not in world.poll("till-1")["_links"]
    act(world, lifecycle.resume, "r1", int(world.now))
    assert world.offered("till-1") == number


def test_a_package_for_another_kind_of_machine_or_installer_is_not_offered(world: World) -> None:
    world.publish("pos/pos-2.2.deb", "2.2", "deb", b"deb")
    start(world, path="pos/pos-2.2.deb", groups=["rest"], failure_percent=100)
    assert "deploymentBase" not in world.poll("till-1")["_links"]
    assert states(world)["till-1"] == "refused"


def test_a_device_that_comes_later_is_taken_in(world: World) -> None:
    start(world, groups=["rest"])
    world.add("till-3", "shops")
    assert world.offered("till-3")
    world.fleet("others", 2)
    world.add("till-4", "others")
    assert "deploymentBase" not in world.poll("till-4")["_links"]


def test_who_was_seen_is_written_in_batches(world: World) -> None:
    seen = Seen(world.server.database, lambda: world.now)
    for device in ("till-1", "till-2", "till-1"):
        seen.note(device)
    assert seen.write() == 2
    world.now += 60
    seen.note("till-1")
    assert (seen.write(), seen.write()) == (1, 0)
    with world.server.database.read() as session:
        assert {row.device_id: row.seen_at for row in devices.listed(session, "", 9)} == {"till-1": NOW + 60, "till-2": NOW}
