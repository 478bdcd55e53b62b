"""The rotation's table: what it knows, what it does not, and where a journal is taken up after a restart."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.rotation.table import TRANSITIONS, Event, Rotation, Step, advance, begun, taken_up, unconfirmed
from common.statetable import UnknownTransition
from contracts.exchange import Cause

EVERY = [(step, event) for step in Step for event in Event]


@pytest.mark.parametrize(("step", "event"), EVERY, ids=[f"{step}-{event}" for step, event in EVERY])
def test_every_step_knows_its_events_and_no_others(step: Step, event: Event) -> None:
    rotation = Rotation(step=step, before=3, version=4)
    if event in TRANSITIONS[step]:
        assert advance(rotation, event).step is TRANSITIONS[step][event]
    else:
        with pytest.raises(UnknownTransition):
            advance(rotation, event)


def test_a_rotation_goes_through_all_steps_and_knows_its_version() -> None:
    rotation = begun(Cause.FORCED, 3, 100)
    assert (rotation.step, rotation.before, rotation.cause) == (Step.REQUESTED, 3, Cause.FORCED)
    for event, step in (
        (Event.DELIVERED, Step.SEALED),
        (Event.ACKNOWLEDGED, Step.CONFIRMED),
        (Event.REISSUED, Step.ACTIVATED),
        (Event.LOGGED, Step.IDLE),
    ):
        rotation = advance(rotation, event, 4 if event is Event.DELIVERED else None)
        assert (rotation.step, rotation.version) == (step, 4)


@given(st.sampled_from(list(Step)), st.integers(0, 20), st.integers(0, 20), st.integers(0, 20))
def test_what_is_taken_up_never_names_a_version_that_is_not_the_newest(
    step: Step, before: int, version: int, newest: int
) -> None:
    rotation = taken_up(Rotation(step=step, before=before, version=version), newest)
    if rotation.step in (Step.SEALED, Step.CONFIRMED, Step.ACTIVATED):
        assert rotation.version == newest
    if rotation.step is Step.REQUESTED:
        assert newest <= rotation.before


def test_a_version_that_was_sealed_unnoticed_is_confirmed_and_not_asked_for_again() -> None:
    assert taken_up(begun(Cause.DUE, 3, 1), 4) == msgspec.structs.replace(begun(Cause.DUE, 3, 1), step=Step.SEALED, version=4)
    assert taken_up(begun(Cause.DUE, 3, 1), 3).step is Step.REQUESTED


def test_after_a_restored_store_the_present_version_is_told_to_the_server() -> None:
    assert taken_up(Rotation(step=Step.CONFIRMED, before=3, version=4), 2) == unconfirmed(2, 0)
    assert taken_up(Rotation(step=Step.CONFIRMED, before=3, version=4), 0).step is Step.IDLE


def test_a_version_that_the_server_lost_is_followed_by_another_one() -> None:
    lost = advance(Rotation(step=Step.SEALED, before=3, version=4), Event.LOST)
    assert (lost.step, lost.before, lost.version) == (Step.REQUESTED, 4, 0)


def test_from_every_step_the_machine_can_end() -> None:
    ends = {Step.IDLE}
    while True:
        more = {step for step in Step if any(following in ends for following in TRANSITIONS[step].values())}
        if more <= ends:
            break
        ends |= more
    assert ends == set(Step)
