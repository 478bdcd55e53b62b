"""What operators do with rollouts: two people, the policy of a fleet, the rehearsal, what is shown; on both databases."""

from typing import Any

import pytest

from server.accounts.roles import Role
from server.acts.approvals import ApprovalNeeded
from server.acts.caller import Caller
from server.api.metrics import Facts, Metrics
from server.base.errors import Conflict, Invalid, NotAllowed
from server.fleet.rollouts import lifecycle, rehearsal, views
from server.ota import directives
from server.registry.models.core import Agent
from server.registry.models.fleets import Device
from server.registry.models.rollouts import Rollout
from tests.server.acts.operators import Desk, account
from tests.server.devices import NOW
from tests.server.fleet.rollouts.machines import DAY, FLEET, NEW, PACKAGE, QUICK, World
from tests.support.serverside import ServerSide


@pytest.fixture
def world(server: ServerSide) -> World:
    return World(server, 12)


class Office:
    """Two security officers and somebody of the support."""

    def __init__(self, world: World) -> None:
        self.desk, self.world = Desk(world.server), world
        self.olga, self.otto = (account(world.server, name, Role.SECURITY_OFFICER) for name in ("olga", "otto"))
        self.sam = account(world.server, "sam", Role.SUPPORT)

    def do(self, act: str, caller: Caller | None = None, /, **body: Any) -> Any:
        return self.desk.do(f"rollouts.{act}", caller or self.olga, self.world.now, **body)

    def by_two(self, act: str, **body: Any) -> Any:
        with pytest.raises(ApprovalNeeded) as needed:
            self.do(act, **body)
        approval = needed.value.approval.approval_id
        self.desk.do("approvals.approve", self.otto, self.world.now, approval_id=approval)
        return self.do(act, **body, approval=approval)


@pytest.fixture
def office(world: World) -> Office:
    return Office(world)


def test_two_people_start_a_rollout_and_take_it_back(office: Office) -> None:
    policy = {"notice": 0, "groups": ["2", "rest"]}
    row = office.do("create", rollout_id="r1", fleet_id=FLEET, target=PACKAGE, policy=policy)
    assert (row.state, [group.total for group in row.groups], row.policy.groups) == ("draft", [2, 10], ["2", "rest"])
    with pytest.raises(NotAllowed):
        office.do("create", office.sam, rollout_id="r2", fleet_id=FLEET, target=PACKAGE)
    row = office.by_two("start", rollout_id="r1")
    assert (row.state, row.groups[0].state, row.notice_until) == ("running", "running", office.world.now)
    with pytest.raises(Conflict, match="a draft can be started"):
        office.do("start", rollout_id="r1")
    assert office.do("pause", office.sam, rollout_id="r1").state == "paused"
    with pytest.raises(NotAllowed):
        office.do("resume", office.sam, rollout_id="r1")
    assert office.do("resume", rollout_id="r1").state == "running"
    office.world.round()
    office.do("create", rollout_id="r2", fleet_id=FLEET, target=PACKAGE)
    with pytest.raises(Conflict, match="is draft: there is nothing to take back"):
        office.do("roll_back", rollout_id="r2", back_id="b")
    row = office.by_two("roll_back", rollout_id="r1", back_id="back")
    assert (row.rolls_back, row.target, row.groups[0].total, row.state) == ("r1", "", 2, "running")
    assert office.do("show", rollout_id="r1").state == "stopped"
    with pytest.raises(Conflict, match="takes 'r1' back: "):
        office.do("rehearse", rollout_id="back")
    with pytest.raises(Conflict, match="takes 'r1' back already"):
        office.do("roll_back", rollout_id="r1", back_id="again")
    for _ in range(3):
        office.world.round()
    assert office.do("show", rollout_id="r1").state == "rolled-back"
    listed = office.do("list", fleet_id=FLEET)
    assert [each.rollout_id for each in listed.items] == ["back", "r1", "r2"]


def test_a_package_that_was_replaced_is_not_what_was_approved(office: Office) -> None:
    office.do("create", rollout_id="r1", fleet_id=FLEET, target=PACKAGE)
    office.world.write(lambda session: setattr(session.get(Rollout, "r1"), "build_id", "another"))
    with pytest.raises(Conflict, match="is build b2, and the rollout is for build another"):
        office.do("start", rollout_id="r1")


def test_a_fleet_has_a_policy_for_its_rollouts(office: Office) -> None:
    window = {"zone": "Europe/Berlin", "days": ["mon"], "start": "22:00", "end": "05:00"}
    office.do("set_policy", fleet_id=FLEET, policy={"success_percent": 50, "window": window, "groups": ["1", "rest"]})
    assert office.do("show_policy", office.sam, fleet_id=FLEET).policy.success_percent == 50
    row = office.do("create", rollout_id="r1", fleet_id=FLEET, target=PACKAGE, policy={"failure_count": 3})
    assert (row.policy.success_percent, row.policy.failure_count, row.policy.notice) == (50, 3, 2 * DAY)
    assert row.policy.window is not None and row.policy.window.zone == "Europe/Berlin" and len(row.groups) == 2
    with pytest.raises(Invalid, match="end with 'rest'"):
        office.do("set_policy", fleet_id=FLEET, policy={"groups": ["5%"]})


def test_the_devices_of_a_rollout_and_the_reasons_are_shown(office: Office) -> None:
    world = office.world
    world.start(groups=["rest"], failure_percent=100, success_percent=1)
    for machine in list(world.machines.values())[:3]:
        machine.bad = True
    world.machines["pos-00005"].hardware = "till-mk9"
    for _ in range(2):
        world.round()
    shown = office.do("show", rollout_id="r1")
    reasons = {(each.state, each.devices, each.example) for each in shown.reasons}
    assert reasons == {("failed", 3, "pos-00000"), ("left-out", 1, "pos-00005")}
    assert shown.reasons[0].text == "health check failed"
    found = office.do("devices", rollout_id="r1", state="failed", limit=2)
    assert [each.device_id for each in found.items] == ["pos-00000", "pos-00001"] and found.after == "pos-00001"
    assert [each.device_id for each in office.do("devices", rollout_id="r1", state="failed", after="pos-00001").items] == [
        "pos-00002"
    ]
    with world.server.database.read() as session:
        counted = views.figures(session)
    assert (counted.proved, counted.failed, counted.done) == (8, 0, 0), "the rollout is at its end"
    text = Metrics(lambda: Facts({}, {}, rollouts=counted), lambda: 0.0).text().decode()
    assert "fleet_update_duration_count 8.0" in text and "fleet_update_error_rate 0.0" in text and "pos-0" not in text


def test_a_rehearsal_says_what_the_rollout_then_does_and_changes_nothing(office: Office) -> None:
    world = office.world
    names = sorted(world.machines)
    world.machines[names[1]].hardware, world.machines[names[2]].runs = "till-mk9", NEW
    world.machines[names[3]].runs = ("2.0.0", "b9")
    world.round()
    with world.server.database.write() as session:
        for number, name in enumerate(names):
            device = session.get(Device, name)
            assert device is not None
            device.site_id, device.zone = ("shop-1" if number < 6 else None), ("Europe/Berlin" if number < 10 else None)
        agent = session.get(Agent, names[4])
        assert agent is not None
        agent.status = "revoked"
        directives.pause(session, names[5], NOW, paused=True)
        session.get_one(Agent, names[7]).capabilities = "updates-hardware"
        directives.assign(session, names[6], directives.Order(PACKAGE), NOW)
    window = {"zone": "device", "days": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"], "start": "22:00", "end": "05:00"}
    policy = {**QUICK, "groups": ["id=pos-0000*", "rest"], "window": window, "failure_percent": 100, "success_percent": 1}
    office.do("create", rollout_id="r1", fleet_id=FLEET, target=PACKAGE, policy=policy)
    before = {name: (row.state, row.detail) for name, row in world.rows().items()}
    found = office.do("rehearse", office.sam, rollout_id="r1")
    assert {name: (row.state, row.detail) for name, row in world.rows().items()} == before
    first, last = found.groups
    assert (first.devices, first.hit, first.already) == (10, 3, 1) and (last.devices, last.hit) == (2, 2)
    why = {each.example: (each.reason, each.for_good, each.devices) for each in first.obstacles}
    assert why == {
        names[1]: ("the package is for till-mk1, and the device is a till-mk9", True, 1),
        names[3]: ("the device runs 2.0.0, and 1.1.0 is lower", True, 1),
        names[4]: (rehearsal.REVOKED, True, 1),
        names[5]: (rehearsal.PAUSED, False, 1),
        names[6]: (rehearsal.OTHER, False, 1),
        names[7]: (rehearsal.UNABLE, False, 1),
    }
    assert [(each.zone, each.devices) for each in first.openings] == [("Europe/Berlin", 3)]
    assert [(each.zone, each.devices) for each in last.openings] == [(None, 2)], "devices without a zone go by UTC"
    assert {(each.site, each.devices, each.bytes) for each in found.sites} == {("shop-1", 1, 1), (None, 4, 4)}
    world.write(lambda session: lifecycle.start(session, "r1", world.now))
    for name in (names[0], names[1], names[2], names[3], names[5], names[6]):
        world.contact(world.machines[name])
    rows = world.rows()
    assert [rows[name].state for name in names[:7]] == [
        "ordered", "left-out", "proved", "left-out", "left-out", "waiting", "waiting",
    ]  # fmt: skip
    assert rows[names[1]].detail == why[names[1]][0] and rows[names[3]].detail == why[names[3]][0]
