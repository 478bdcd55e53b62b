"""New releases go to a fleet without a person where two people have wanted that; on both databases."""

from typing import Any

import pytest

from server.accounts.roles import Role
from server.acts.approvals import ApprovalNeeded
from server.base.errors import Conflict, Invalid, NotAllowed, NotFound
from server.fleet.fleets import fleets
from server.fleet.rollouts import automatic, lifecycle
from server.ota import publishing
from server.ota.packages import Package
from server.ota.words import CANDIDATE, RELEASES
from server.registry.models.rollouts import AutomaticRollout, Rollout
from tests.server.acts.operators import Desk, account
from tests.server.devices import NOW
from tests.server.fleet.rollouts.machines import DAY, FLEET, NEW, OLD, QUICK, World
from tests.server.ota.vendor import target_of
from tests.support.serverside import ServerSide

NEXT = ("1.2.0", "b3")


@pytest.fixture
def world(server: ServerSide) -> World:
    return World(server, 6)


def wish(**changed: Any) -> automatic.Wish:
    members = {"fleet_id": FLEET, "product": "pos", "selection": None, **changed}
    policy = members.pop("policy", {**QUICK, "groups": ["2", "rest"]})
    return automatic.Wish(**members, policy=automatic.decoded(automatic.encoded(automatic.Policy(**policy))))


def on(world: World, **changed: Any) -> None:
    world.write(lambda session: automatic.turn_on(session, wish(**changed), "olga", world.now))


def publish(world: World, *packages: Package) -> None:
    """These are published now, and nothing else is any more."""
    with world.server.database.write() as session:
        publishing.record(session, list(packages), world.now)


def release(version: str, build: str, **changed: Any) -> Package:
    return Package(RELEASES, target_of(version, build, **changed))


PRESENT = (release(*OLD), release(*NEW))


def start(world: World) -> list[str]:
    return automatic.start_new(world.server.database, world.now)


def standing(world: World) -> AutomaticRollout:
    with world.server.database.read() as session:
        (row,) = automatic.listed(session)
        return row


def test_a_release_that_is_published_later_is_rolled_out_to_the_end(world: World) -> None:
    assert not automatic.any_on(world.server.database)
    on(world)
    assert automatic.any_on(world.server.database)
    assert start(world) == [], "what was published before is nobody's wish"
    publish(world, *PRESENT, release(*NEXT))
    assert start(world) == ["shops-b3"]
    assert start(world) == [], "once"
    row = world.rollout("shops-b3")
    assert (row.state, row.created_by, row.version) == ("running", automatic.BY, "1.2.0")
    assert [group.total for group in world.groups("shops-b3")] == [2, 4]
    for _ in range(4):
        world.round()
    assert world.rollout("shops-b3").state == "finished"
    assert {machine.runs for machine in world.machines.values()} == {NEXT}
    assert (standing(world).newest, standing(world).state) == ("1.2.0", "on")
    assert "rollout.started_automatically" in world.kinds()


def test_only_the_highest_release_and_nothing_on_trial(world: World) -> None:
    on(world)
    publish(world, *PRESENT, Package(CANDIDATE, target_of("2.0.0", "b9")), release("1.0.5", "b4"))
    assert start(world) == []
    publish(world, *PRESENT, release("1.3.0", "b5"), release("1.2.0", "b3"))
    assert start(world) == ["shops-b5"]
    publish(world, *PRESENT, release("1.2.0", "b3"))
    assert start(world) == [], "a release that was withdrawn does not bring an older one"
    publish(world, *PRESENT, release("1.3.0", "b5"), release("1.3.0", "b6", hardware=("till-mk9",), path="pos/mk9"))
    assert start(world) == ["shops-b6"], "another kind of hardware has its own package"
    publish(world, *PRESENT, release("1.4.0", "b7"), release("9.0.0", "b8", product="other", path="other/9"))
    assert start(world) == ["shops-b7"]


def test_a_rollout_that_stops_halts_it_until_two_people_want_it_again(world: World) -> None:
    on(world)
    publish(world, *PRESENT, release(*NEXT))
    assert start(world) == ["shops-b3"]
    for machine in world.machines.values():
        machine.bad = True
    for _ in range(2):
        world.round()
    assert world.rollout("shops-b3").state == "stopped"
    publish(world, *PRESENT, release(*NEXT), release("1.3.0", "b5"))
    assert start(world) == []
    row = standing(world)
    assert (row.state, row.detail) == ("halted", "rollout shops-b3 was stopped or taken back")
    assert not automatic.any_on(world.server.database) and start(world) == []
    assert world.kinds().count("rollout.automatic_halted") == 1
    on(world)
    assert start(world) == [], "1.3.0 was there when they wanted it again"
    publish(world, *PRESENT, release("1.4.0", "b7"))
    assert start(world) == ["shops-b7"]


def test_one_that_was_taken_back_halts_it(world: World) -> None:
    on(world)
    publish(world, *PRESENT, release(*NEXT))
    start(world)
    for _ in range(4):
        world.round()
    policy = world.write(lambda session: automatic.decoded(session.get(Rollout, "shops-b3").policy))
    world.write(lambda session: lifecycle.roll_back(session, "shops-b3", "back", policy, "olga", world.now))
    for _ in range(4):
        world.round()
    assert world.rollout("shops-b3").state == "rolled-back"
    assert start(world) == [] and standing(world).state == "halted"


def test_one_that_is_being_taken_back_after_its_end_halts_it_at_once(world: World) -> None:
    on(world)
    publish(world, *PRESENT, release(*NEXT))
    start(world)
    for _ in range(4):
        world.round()
    assert world.rollout("shops-b3").state == "finished"
    policy = world.write(lambda session: automatic.decoded(session.get(Rollout, "shops-b3").policy))
    world.write(lambda session: lifecycle.roll_back(session, "shops-b3", "back", policy, "olga", world.now))
    publish(world, *PRESENT, release(*NEXT), release("1.3.0", "b5"))
    assert world.rollout("shops-b3").state == "finished", "its devices are on their way back"
    assert start(world) == [] and standing(world).state == "halted"


@pytest.mark.parametrize("correction", [-DAY, DAY])
def test_a_clock_that_is_corrected_hides_no_failure_and_invents_none(world: World, correction: int) -> None:
    on(world)
    world.now += correction
    publish(world, *PRESENT, release(*NEXT))
    assert start(world) == ["shops-b3"]
    world.write(lambda session: lifecycle.stop(session, "shops-b3", "printers", world.now))
    publish(world, *PRESENT, release(*NEXT), release("1.3.0", "b5"))
    assert start(world) == [] and standing(world).state == "halted"
    world.now -= 2 * DAY
    on(world)
    publish(world, *PRESENT, release(*NEXT), release("1.3.0", "b5"), release("1.4.0", "b7"))
    assert start(world) == ["shops-b7"] and standing(world).state == "on"


def test_what_cannot_start_is_said_and_tried_again(world: World) -> None:
    on(world, selection="tag=beta")
    publish(world, *PRESENT, release(*NEXT))
    assert start(world) == []
    assert "would have no device" in standing(world).detail
    with world.server.database.read() as session:
        assert session.get(Rollout, "shops-b3") is None, "nothing is left of it"
    on(world)
    publish(world, *PRESENT, release(*NEXT), release("1.3.0", "b5"))
    assert start(world) == ["shops-b5"] and standing(world).detail == ""


def test_an_id_that_is_taken_is_not_waited_for(world: World) -> None:
    on(world)
    world.create("shops-b3")
    publish(world, *PRESENT, release(*NEXT))
    (started,) = start(world)
    assert started.startswith("automatic-") and world.rollout(started).build_id == "b3"


def test_a_rollout_that_somebody_has_made_of_the_build_is_enough(world: World) -> None:
    on(world)
    publish(world, *PRESENT, release(*NEXT))
    world.create("by-hand", path="pos/pos-1.2.0-b3")
    assert start(world) == []
    assert "has rollout by-hand, which" in standing(world).detail and "(draft)" in standing(world).detail
    world.write(lambda session: lifecycle.stop(session, "by-hand", "a mistake", world.now))
    assert start(world) == ["shops-b3"] and standing(world).detail == "", "a draft that was given up is none"


def test_a_candidate_that_a_few_have_tried_reaches_the_fleet_once_it_is_a_release(world: World) -> None:
    on(world)
    publish(world, *PRESENT, release(*NEXT))
    world.create("trial", path="pos/pos-1.2.0-b3", selection="id=pos-00001")
    world.write(lambda session: lifecycle.start(session, "trial", world.now))
    for _ in range(2):
        world.round()
    assert world.rollout("trial").state == "finished"
    assert start(world) == ["shops-b3"]
    assert [group.total for group in world.groups("shops-b3")] == [2, 4]


def test_a_build_that_failed_in_its_trial_does_not_reach_the_fleet(world: World) -> None:
    on(world)
    publish(world, *PRESENT, release(*NEXT))
    world.create("trial", path="pos/pos-1.2.0-b3", selection="id=pos-00001")
    world.write(lambda session: lifecycle.start(session, "trial", world.now))
    world.write(lambda session: lifecycle.stop(session, "trial", "printers", world.now))
    assert start(world) == [] and "rollout trial" in standing(world).detail


def test_a_fleet_that_is_deleted_takes_it_along(world: World) -> None:
    on(world)
    world.write(lambda session: fleets.remove(session, FLEET, world.now))
    assert not automatic.any_on(world.server.database)
    with world.server.database.read() as session:
        assert automatic.listed(session) == []


class Office:
    """Two security officers and somebody of the support, with what acts say."""

    def __init__(self, world: World) -> None:
        self.desk, self.world = Desk(world.server), world
        self.olga, self.otto = (account(world.server, name, Role.SECURITY_OFFICER) for name in ("olga", "otto"))
        self.sam = account(world.server, "sam", Role.SUPPORT)

    def do(self, act: str, who: Any = None, **body: Any) -> Any:
        return self.desk.do(f"rollouts.{act}", who or self.olga, self.world.now, **body)


def test_two_people_turn_it_on_and_one_turns_it_off(world: World) -> None:
    office, asked = Office(world), {"fleet_id": FLEET, "product": "pos", "policy": {"success_percent": 70}}
    with pytest.raises(NotAllowed):
        office.do("automatic_on", office.sam, **asked)
    with pytest.raises(ApprovalNeeded) as needed:
        office.do("automatic_on", **asked)
    approval = needed.value.approval.approval_id
    assert office.do("automatic").items == (), "nothing before the second person"
    office.desk.do("approvals.approve", office.otto, NOW, approval_id=approval)
    with pytest.raises(Conflict):
        office.do("automatic_on", **{**asked, "policy": {"success_percent": 1}}, approval=approval)
    found = office.do("automatic_on", **asked, approval=approval)
    assert (found.state, found.floor, found.set_by) == ("on", "1.1.0", "olga")
    assert (found.policy.success_percent, found.policy.notice) == (70, 2 * DAY), "the documented policy fills the rest"
    office.do("set_policy", fleet_id=FLEET, policy={"success_percent": 1, "notice": 0})
    publish(world, *PRESENT, release(*NEXT))
    (rollout,) = start(world)
    shown = office.do("show", rollout_id=rollout)
    assert (shown.state, shown.policy.success_percent) == ("announced", 70), "what two people wanted, whatever the fleet says"
    assert [(each.product, each.newest) for each in office.do("automatic", fleet_id=FLEET).items] == [("pos", "1.2.0")]
    assert office.do("automatic", fleet_id="other").items == ()
    office.do("automatic_off", office.sam, fleet_id=FLEET, product="pos")
    assert office.do("automatic").items == ()
    with pytest.raises(NotFound, match="has no automatic rollouts of 'pos'"):
        office.do("automatic_off", fleet_id=FLEET, product="pos")


def test_what_cannot_be_wanted_is_refused_before_anybody_approves_it(world: World) -> None:
    office = Office(world)
    with pytest.raises(Invalid, match="automatic rollouts are of releases"):
        office.do("automatic_on", fleet_id=FLEET, product="pos", policy={"candidate": True})
    with pytest.raises(NotFound, match="no fleet 'nowhere'"):
        office.do("automatic_on", fleet_id="nowhere", product="pos")
    with pytest.raises(Invalid):
        office.do("automatic_on", fleet_id=FLEET, product="pos", selection="tag=")
    with pytest.raises(Invalid, match="end with 'rest'"):
        office.do("automatic_on", fleet_id=FLEET, product="pos", policy={"groups": ["5%"]})


def test_a_fleet_has_a_bounded_number_of_them(world: World) -> None:
    for number in range(automatic.MAX_PRODUCTS):
        on(world, product=f"p{number}")
    with pytest.raises(Conflict, match="which is the limit"):
        on(world, product="more")
    on(world, product="p0")
