"""Rollouts from the first group to the last, over agents that ask and report; on both databases."""

from datetime import UTC, datetime

import pytest

from contracts.contact.updates import Outcome, OutcomeState, RunningVersion, UpdatesReply, UpdatesRequest
from contracts.directive import Directive, verify_directive
from server.base.errors import Conflict, NotFound
from server.fleet.rollouts import lifecycle
from server.fleet.rollouts.overdue import Overdue
from server.fleet.rollouts.policy import policy_of
from server.ota import directives
from server.ota.directives import Order
from server.registry import events
from server.registry.models.core import Agent
from tests.server.fleet.rollouts.machines import DAY, NEW, OLD, PACKAGE, World, add_agents
from tests.server.licensing.states.test_changes import make_till
from tests.support.serverside import ServerSide


@pytest.fixture
def world(server: ServerSide) -> World:
    return World(server, 60)


@pytest.fixture
def few(server: ServerSide) -> World:
    return World(server, 12)


def kinds(world: World) -> list[str]:
    with world.server.database.read() as session:
        return [row.kind for row in events.listed(session, 0, 500) if row.kind.startswith("rollout.")]


def test_a_bad_build_in_the_third_group_stops_the_rollout_and_everybody_goes_back(world: World) -> None:
    world.start()
    assert [(row.total, row.state) for row in world.groups()] == [
        (3, "running"), (9, "waiting"), (18, "waiting"), (30, "waiting"),
    ]  # fmt: skip
    third, last = world.of_group(3), world.of_group(4)
    for machine in third[:4]:
        machine.bad = True
    late = third[-1]
    for _ in range(6):
        world.round(name for name in world.machines if name != late.agent_id)
    assert world.rollout().state == "stopped" and "4 of 18 devices have failed" in world.rollout().detail
    assert world.states() == ["succeeded", "succeeded", "failed", "waiting"]
    assert all(machine.had == [] and machine.runs == OLD for machine in last), "nobody beyond the bad group is touched"
    assert {world.rows()[machine.agent_id].state for machine in last} == {"waiting"}
    world.contact(late)
    assert late.directive is None and world.rows()[late.agent_id].state == "waiting", (
        "an order after the stop would be one more"
    )
    world.require_counted()

    with pytest.raises(Conflict, match="is stopped already"):
        world.write(lambda session: lifecycle.stop(session, "r1", "", world.now))
    policy = policy_of({"groups": ["rest"], "notice": 0, "success_percent": 100, "failure_percent": 100})
    world.write(lambda session: lifecycle.roll_back(session, "r1", "r1-back", policy, "olga", world.now))
    for _ in range(3):
        world.round()
    assert world.rollout("r1-back").state == "finished" and world.rollout().state == "rolled-back"
    assert {row.state for row in world.rows("r1-back").values()} == {"proved"}
    assert all(machine.runs == OLD for machine in world.machines.values()), "who is back has proved it"
    assert len(world.rows("r1-back")) == len([each for each in world.machines.values() if "b2" in each.had])
    world.require_counted("r1-back")
    assert kinds(world) == [
        "rollout.started", "rollout.group_started", "rollout.group_started", "rollout.group_started", "rollout.stopped",
        "rollout.started", "rollout.group_started", "rollout.finished", "rollout.rolled_back",
    ]  # fmt: skip
    assert world.kinds() == [
        "rollout.created", "rollout.started", "rollout.stopped", "rollout.taken_back", "rollout.finished",
        "rollout.rolled_back",
    ]  # fmt: skip


def test_a_good_build_reaches_everybody_group_by_group(few: World) -> None:
    few.start(groups=["1", "2", "3", "rest"])
    begun = []
    for _ in range(8):
        few.round()
        begun.append(few.states().count("waiting"))
    assert begun == sorted(begun, reverse=True) and few.rollout().state == "finished"
    assert {machine.runs for machine in few.machines.values()} == {NEW}
    few.require_counted()
    assert all(row.before == "1.0.0" and row.deadline is None for row in few.rows().values())
    assert sum(group.seconds for group in few.groups()) == 0, "all at the same second"


def test_installed_is_not_proved(few: World) -> None:
    few.start(groups=["rest"])
    machine = few.machines["pos-00007"]
    few.contact(machine)
    machine.says(OutcomeState.PROGRESS, "window")
    few.contact(machine)
    assert few.rows()["pos-00007"].state == "ordered", "it waits for its window, and can still be stopped"
    machine.says(OutcomeState.PROGRESS, "switched")
    few.contact(machine)
    assert few.rows()["pos-00007"].state == "under-way"
    machine.says(OutcomeState.COMMITTED)
    few.contact(machine)
    assert few.rows()["pos-00007"].state == "installed" and few.groups()[0].proved == 0
    few.now += 60
    machine.runs = NEW
    few.contact(machine)
    assert few.rows()["pos-00007"].state == "proved" and few.groups()[0].proved == 1
    assert few.groups()[0].seconds == 60
    few.require_counted()


def test_a_stop_changes_one_row_and_withdraws_what_has_not_begun_at_the_next_contact(few: World) -> None:
    few.start(groups=["rest"])
    waits, begun, untouched = (few.machines[f"pos-0000{number}"] for number in range(3))
    for machine in (waits, begun):
        few.contact(machine)
    begun.says(OutcomeState.PROGRESS, "switched")
    few.contact(begun)
    before = {name: (row.state, row.updated_at) for name, row in few.rows().items()}
    few.now += 5
    few.write(lambda session: lifecycle.stop(session, "r1", "it is slow", few.now))
    assert {name: (row.state, row.updated_at) for name, row in few.rows().items()} == before
    for machine in (waits, begun, untouched):
        few.contact(machine)
    assert waits.directive is not None and waits.directive.withdraws is not None
    assert begun.directive is not None and begun.directive.withdraws is None, "what has switched is finished"
    assert untouched.directive is None and untouched.had == []
    states = few.rows()
    assert [states[each.agent_id].state for each in (waits, begun, untouched)] == ["left-out", "under-way", "waiting"]
    # One that had switched before it heard of the withdrawal: the truth counts.
    waits.runs = NEW
    waits.outcomes.clear()
    number = states[waits.agent_id].number
    assert number is not None
    begun.says(OutcomeState.COMMITTED)
    waits.outcomes[number] = begun.outcomes[begun.known].__class__(
        number=number, state=OutcomeState.COMMITTED, detail="", at=few.now
    )
    for _ in range(2):
        few.contact(waits)
    assert few.rows()[waits.agent_id].state == "proved"
    few.require_counted()


def test_notice_and_prestage(few: World) -> None:
    few.start(notice=2 * DAY, groups=["rest"])
    machine, late = few.machines["pos-00001"], few.machines["pos-00002"]
    found = few.contact(machine)
    assert few.rollout().state == "announced" and found is not None and found.notice_until == few.now + 2 * DAY
    few.now += DAY
    found = few.contact(late)
    assert found is not None and found.notice_until == few.now + DAY, "the notice is that of the rollout"
    few.now += DAY
    few.contact(few.machines["pos-00003"])
    assert few.rollout().state == "running"
    few.write(lambda session: lifecycle.stop(session, "r1", "", few.now))
    few.start("r2", notice=DAY, prestage=False, groups=["rest"])
    assert few.contact(few.machines["pos-00004"]) is None and few.states("r2") == ["waiting"]
    few.now += DAY
    Overdue(few.server.database).run(few.now)
    assert few.rollout("r2").state == "running" and few.contact(few.machines["pos-00004"]) is not None


def test_a_pause_orders_nothing_and_a_resumption_goes_on(few: World) -> None:
    few.start(groups=["1", "2", "3", "rest"])
    few.round()
    few.write(lambda session: lifecycle.pause(session, "r1", few.now))
    few.round()
    assert few.states() == ["running", "waiting", "waiting", "waiting"] and few.groups()[0].proved == 1
    few.write(lambda session: lifecycle.resume(session, "r1", few.now))
    assert few.rollout().state == "running" and few.states()[:2] == ["succeeded", "running"]
    with pytest.raises(Conflict, match="'resume' cannot happen"):
        few.write(lambda session: lifecycle.resume(session, "r1", few.now))


def test_the_rollout_that_was_started_first_counts_and_the_later_one_waits_and_says_so(few: World) -> None:
    few.start("older", groups=["1", "rest"])
    few.now += 1
    few.start("later", groups=["rest"])
    machine = few.of_group(2, "older")[0]
    assert few.contact(machine) is None, "its group of the older rollout has not started"
    assert few.rows("later")[machine.agent_id].detail == "rollout older counts first"
    few.write(lambda session: lifecycle.stop(session, "older", "", few.now))
    found = few.contact(machine)
    assert found is not None and found.rollout == "later"


def test_who_cannot_take_the_package_is_left_out_and_says_why(few: World) -> None:
    other, newer, runs, by_hand = (few.machines[f"pos-0000{number}"] for number in range(4))
    other.hardware, newer.runs, runs.runs = "till-mk9", ("2.0.0", "b9"), NEW
    few.start(groups=["rest"])
    few.round(each.agent_id for each in (other, newer, runs, by_hand))
    rows = few.rows()
    assert rows[other.agent_id].state == "left-out" and "the device is a till-mk9" in rows[other.agent_id].detail
    assert rows[newer.agent_id].state == "left-out" and "runs 2.0.0, and 1.1.0 is lower" in rows[newer.agent_id].detail
    assert (rows[runs.agent_id].state, rows[runs.agent_id].detail) == ("proved", "it runs this build already")
    assert rows[by_hand.agent_id].state == "ordered"
    few.require_counted()


def test_revoked_agents_are_left_out_from_the_start_and_an_empty_rollout_is_refused(world: World) -> None:
    world.write(lambda session: setattr(session.get(Agent, "pos-00009"), "status", "revoked"))
    world.start(groups=["rest"])
    assert (world.rows()["pos-00009"].state, world.groups()[0].left_out) == ("left-out", 1)
    with pytest.raises(Conflict, match="would have no device"):
        world.create("r2", selection="id=nobody*")
    with pytest.raises(NotFound, match="no package"):
        world.create("r3", path="pos/pos-9.9.9-b9")
    with pytest.raises(Conflict, match="a draft can be started"):
        world.write(lambda session: lifecycle.start(session, "r1", world.now))


def test_groups_by_selection_number_and_share_take_each_device_once(world: World) -> None:
    world.create(groups=["id=pos-0000*", "5", "25%", "rest"])
    assert [group.total for group in world.groups()] == [10, 5, 15, 30]
    assert {each.agent_id[:-1] for each in world.of_group(1)} == {"pos-0000"}
    first = {name: row.group_number for name, row in world.rows().items()}
    world.create("r2", groups=["id=pos-0000*", "5", "25%", "rest"])
    assert {name: row.group_number for name, row in world.rows("r2").items()} != first, "not always the same ones are first"


def test_a_device_that_comes_later_is_taken_into_the_last_group(few: World) -> None:
    few.start(groups=["1", "2", "3", "rest"])
    few.write(lambda session: add_agents(session, ["pos-90000"]))
    late = few.machines["pos-90000"] = type(few.machines["pos-00001"])("pos-90000")
    assert few.contact(late) is None
    row = few.rows()["pos-90000"]
    assert (row.group_number, row.state, few.groups()[3].total) == (4, "waiting", 7)
    for _ in range(8):
        few.round()
    assert few.rollout().state == "finished" and late.runs == NEW
    few.require_counted()


def test_what_lasts_too_long_ends_and_the_clock_is_believed_an_hour_at_a_time(world: World) -> None:
    world.start(groups=["rest"], installed=DAY, wait=3 * DAY, success_percent=90, failure_percent=60)
    silent, waiting = world.machines["pos-00001"], world.machines["pos-00002"]
    for machine in (silent, waiting):
        world.contact(machine)
    silent.says(OutcomeState.COMMITTED)
    world.contact(silent)
    job, start = Overdue(world.server.database), world.now
    assert job.run(start) == 0
    assert job.run(start + 400 * DAY) == 0, "a clock that is wrong once ends nothing"
    assert job.run(start) == 0
    hours = 0
    while world.rows()[silent.agent_id].state == "installed":
        hours += 1
        job.run(start + hours * 3600)
    assert hours == 24 and world.rows()[silent.agent_id].state == "failed"
    assert "whether it runs is not known" in world.rows()[silent.agent_id].detail
    world.now = start + 25 * 3600
    silent.runs = NEW
    world.contact(silent)
    assert world.rows()[silent.agent_id].state == "proved", "it was only silent"
    for hour in range(25, 73):
        job.run(start + hour * 3600)
    rows = world.rows()
    assert rows["pos-00033"].state == "left-out" and "has not asked" in rows["pos-00033"].detail
    assert world.groups()[0].left_out == 58 and rows[waiting.agent_id].state == "ordered"
    world.require_counted()


def test_frozen_days(few: World) -> None:
    first = datetime.fromtimestamp(few.now + 2 * DAY, UTC).date().isoformat()
    few.start(groups=["rest"], freeze=[first])
    found = few.contact(few.machines["pos-00001"])
    assert found is not None and found.not_after < few.now + 2 * DAY + 1, "the order ends before the frozen day"
    few.now = found.not_after + 1
    assert few.contact(few.machines["pos-00001"]) is None
    row = few.rows()["pos-00001"]
    assert (row.state, row.deadline) == ("waiting", None) and "nothing begins before" in row.detail
    few.now += DAY
    assert few.contact(few.machines["pos-00001"]) is not None
    few.require_counted()


def test_an_order_by_hand_has_the_right_of_way(few: World) -> None:
    machine = few.machines["pos-00001"]
    few.contact(machine)
    few.write(lambda session: directives.assign(session, machine.agent_id, Order(PACKAGE), few.now))
    few.start(groups=["rest"])
    found = few.contact(machine)
    assert found is not None and found.rollout == "" and "directive" in few.rows()[machine.agent_id].detail
    few.write(lambda session: directives.withdraw(session, machine.agent_id, few.now))
    found = few.contact(machine)
    assert found is not None and found.rollout == "r1"
    replaced = Order(PACKAGE, replace=True)
    few.write(lambda session: directives.assign(session, machine.agent_id, replaced, few.now))
    few.contact(machine)
    assert few.rows()[machine.agent_id].state == "left-out"
    few.require_counted()


def test_paused_updates_keep_an_agent_waiting(few: World) -> None:
    machine = few.machines["pos-00001"]
    few.contact(machine)
    few.write(lambda session: directives.pause(session, machine.agent_id, few.now, paused=True))
    few.start(groups=["rest"])
    assert few.contact(machine) is None and few.rows()[machine.agent_id].detail == "updates of the agent are paused"
    few.write(lambda session: directives.pause(session, machine.agent_id, few.now, paused=False))
    assert few.contact(machine) is not None


def test_an_agent_is_given_its_directive_in_the_answer_to_the_request_that_reports(server: ServerSide) -> None:
    """Over signed requests, as agents send them."""
    world, till = World(server, 0), make_till(server, 1)
    world.now = till.now
    world.start(groups=["rest"])

    def ask(runs: tuple[str, str], known: int, *outcomes: Outcome) -> Directive | None:
        running = (RunningVersion(product="pos", version=runs[0], build_id=runs[1]),)
        reply = till.ask(UpdatesRequest, UpdatesReply, running=running, directive=known, outcomes=outcomes)
        trust = till.agent.trust
        assert trust is not None
        return None if reply.directive is None else verify_directive(reply.directive, trust)

    found = ask(OLD, 0)
    assert found is not None and (found.rollout, found.target, found.build_id) == ("r1", PACKAGE, NEW[1])
    said = Outcome(number=found.number, state=OutcomeState.COMMITTED, detail="", at=till.now)
    assert ask(OLD, found.number, said) is None and world.rows()[till.agent.agent_id].state == "installed"
    assert ask(NEW, found.number) is None
    assert world.rows()[till.agent.agent_id].state == "proved" and world.rollout().state == "finished"
    records = [(each.event, each.actor) for each in server.audit.tail(12)]
    assert ("update.assigned", "server") in records and ("rollout.finished", "server") in records
