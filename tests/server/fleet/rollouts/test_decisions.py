"""What the counters of a rollout's groups decide: no order of reports starts a group early, and a stop reaches nobody else."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.statetable import Table, UnknownTransition
from server.fleet.rollouts.decisions import NOTHING, Counts, Decision, decide
from server.fleet.rollouts.states import (
    COUNTER,
    DEVICE_STATES,
    GROUP_STATES,
    LIVE,
    OPEN,
    ORDERED,
    ROLLOUT_STATES,
    Device,
    DeviceEvent,
    Group,
    of_directive,
)
from server.ota.directive_states import State as Directive
from server.registry.models import rollouts as tables


def group(number: int, state: Group = Group.RUNNING, **changed: Any) -> Counts:
    members: dict[str, Any] = {"success_percent": 90, "failure_percent": 10, "failure_count": None, "total": 10}
    members |= {"waiting": 10} if state is Group.WAITING else {}
    return Counts(number, state, **(members | changed))


WAITS = group(2, Group.WAITING)


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (group(1, waiting=10), NOTHING),
        (group(1, waiting=2, proved=8), NOTHING),
        (group(1, waiting=1, proved=9), Decision(succeeded=1, start=2)),
        (group(1, under_way=9, failed=1), "1 of 10 devices have failed"),
        (group(1, under_way=8, failed=2, failure_percent=50, failure_count=2), "2 devices have failed, and 2 are the limit"),
        (group(1, under_way=8, failed=2, failure_percent=50), "cannot become 90 %"),
        (group(1, left_out=10), "each of its 10 devices was left out"),
        (group(1, left_out=9, proved=1), Decision(succeeded=1, start=2)),
        (group(1, Group.SUCCEEDED, proved=9, failed=1), "1 of 10 devices have failed"),
        (group(1, Group.SUCCEEDED, proved=9, waiting=1), Decision(start=2)),
        (group(1, Group.FAILED, proved=10), NOTHING),
        (group(1, Group.WAITING), NOTHING),
    ],
)
def test_what_the_first_of_two_groups_decides(first: Counts, expected: Decision | str) -> None:
    found = decide([first, WAITS])
    if isinstance(expected, Decision):
        assert found == expected
    else:
        assert found.failed == 1 and expected in found.reason and found.start is None and not found.finish


def test_a_paused_rollout_starts_no_group_and_stops_all_the_same() -> None:
    assert decide([group(1, proved=10), WAITS], may_start=False) == NOTHING
    assert decide([group(1, failed=10), WAITS], may_start=False).failed == 1


def test_a_rollout_is_finished_when_nothing_is_to_come_in_any_group() -> None:
    done, straggler = group(2, proved=10), group(1, Group.SUCCEEDED, proved=9, waiting=1)
    assert decide([straggler, done]) == Decision(succeeded=2)
    assert decide([replace(straggler, waiting=0, left_out=1), done]) == Decision(succeeded=2, finish=True)
    assert decide([group(1, left_out=10)]) == Decision(succeeded=1, finish=True), "the last group may be left out as a whole"


def test_each_state_of_a_device_is_in_one_counter_and_the_indexes_know_the_open_ones() -> None:
    assert set(COUNTER) == set(Device) and set(ORDERED) < set(OPEN)
    assert tuple(tables._OPEN.right.value) == tuple(each.value for each in OPEN)
    assert set(LIVE) < set(ROLLOUT_STATES.states) and GROUP_STATES.step(Group.WAITING, GROUP_STATES.events[0]) is Group.RUNNING


@pytest.mark.parametrize("table", [ROLLOUT_STATES, GROUP_STATES, DEVICE_STATES])
def test_a_table_knows_each_of_its_states_and_events(table: Table[Any, Any]) -> None:
    found = {(state, event) for state, event, _ in table}
    for state in table.states:
        for event in table.events:
            if (state, event) not in found:
                with pytest.raises(UnknownTransition):
                    table.step(state, event)


def test_a_device_is_proved_only_by_what_runs_after_its_restart() -> None:
    leads = {(event, after) for _, event, after in DEVICE_STATES if after is Device.PROVED}
    assert leads == {(DeviceEvent.PROVE, Device.PROVED)}
    assert [each for each in Directive if of_directive(each, "") is DeviceEvent.PROVE] == [Directive.PROVED]
    assert of_directive(Directive.UNDER_WAY, "window") is None, "an agent that waits for its window can still be stopped"
    assert of_directive(Directive.UNDER_WAY, "switched") is DeviceEvent.BEGIN
    assert of_directive(Directive.UNDER_WAY, "a step of a later release") is DeviceEvent.BEGIN


class World:
    """A rollout of which every device reports what it likes, in any order."""

    def __init__(self, sizes: list[int], success: int, failure: int) -> None:
        self.groups = [
            Counts(number + 1, Group.WAITING, success, failure, None, size, waiting=size) for number, size in enumerate(sizes)
        ]
        self.devices = [(number, Device.WAITING) for number, size in enumerate(sizes) for _ in range(size)]
        self.stopped = self.finished = False
        self.start(1)

    def start(self, number: int) -> None:
        self.groups[number - 1] = replace(self.groups[number - 1], state=Group.RUNNING)

    def happens(self, device: int, event: DeviceEvent) -> None:
        number, before = self.devices[device]
        counts = self.groups[number]
        if event is DeviceEvent.ORDER and (self.stopped or counts.state is Group.WAITING):
            return
        if before is Device.WAITING and counts.state is Group.WAITING:
            return  # nobody has asked it anything
        try:
            after = DEVICE_STATES.step(before, event)
        except UnknownTransition:
            return
        self.devices[device] = number, after
        changed = {COUNTER[before]: getattr(counts, COUNTER[before]) - 1}
        counts = replace(counts, **changed)
        self.groups[number] = replace(counts, **{COUNTER[after]: getattr(counts, COUNTER[after]) + 1})
        if not self.stopped and not self.finished:
            self.decide(self.groups[number].decides)

    def decide(self, expected: bool) -> None:
        found = decide(self.groups)
        assert expected or found == NOTHING, "one group's counters say whether there is anything to decide"
        if found.failed is not None:
            self.stopped = True
            self.groups[found.failed - 1] = replace(self.groups[found.failed - 1], state=Group.FAILED)
        if found.succeeded is not None:
            counts = self.groups[found.succeeded - 1]
            assert counts.met or not counts.counted
            self.groups[found.succeeded - 1] = replace(counts, state=Group.SUCCEEDED)
        if found.start is not None:
            before = self.groups[found.start - 2]
            assert before.proved * 100 >= before.success_percent * before.counted and before.proved
            self.start(found.start)
        self.finished = self.finished or found.finish


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.integers(1, 100),
    st.integers(1, 100),
    st.lists(st.tuples(st.integers(0, 23), st.sampled_from(list(DeviceEvent))), max_size=120),
)
def test_no_order_of_reports_starts_a_group_early_or_touches_anybody_after_a_stop(
    sizes: list[int], success: int, failure: int, reports: list[tuple[int, DeviceEvent]]
) -> None:
    world = World(sizes, success, failure)
    untouched: set[int] = set()
    for device, event in reports:
        was = world.stopped
        world.happens(device % len(world.devices), event)
        if world.stopped and not was:
            untouched = {number for number, counts in enumerate(world.groups) if counts.state is Group.WAITING}
        for number, counts in enumerate(world.groups):
            mine = [state for where, state in world.devices if where == number]
            assert counts.waiting == mine.count(Device.WAITING) and counts.proved == mine.count(Device.PROVED)
            assert counts.total == counts.waiting + counts.under_way + counts.proved + counts.failed + counts.left_out
        assert all(state is Device.WAITING for where, state in world.devices if where in untouched)
    begun = [counts.state is not Group.WAITING for counts in world.groups]
    assert begun == sorted(begun, reverse=True), "groups start in their order"
