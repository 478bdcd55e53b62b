"""The table of an update: what it knows, what it does not, what counts as an attempt, and where a journal is taken up."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.ota.table import (
    DEADLINES,
    IN_TRIAL,
    MAX_FAILED,
    MAX_STARTS,
    RETRY_S,
    TRANSITIONS,
    Event,
    Failure,
    Installed,
    Order,
    Step,
    Update,
    advance,
    concluded,
    failed,
    offered,
    overdue,
    taken_up,
    undone,
    unlocked,
)
from common.statetable import UnknownTransition

ORDER = Order(number=7, product="pos", version="2.0.0", build_id="b2", sha256="ab" * 32, not_after=10_000_000)
BAD = Failure(code="unproved", text="the health command failed")
OLD = Installed(version="1.0.0", build_id="b1")
NEW = Installed(version="2.0.0", build_id="b2", previous="1.0.0")
TRIAL = msgspec.structs.replace(NEW, in_trial=True)
EVERY = [(step, event) for step in Step for event in Event]


def at(step: Step, **more: object) -> Update:
    return msgspec.structs.replace(Update(step=step, order=ORDER, before="1.0.0"), **more)


@pytest.mark.parametrize(("step", "event"), EVERY, ids=[f"{step}-{event}" for step, event in EVERY])
def test_every_step_knows_its_events_and_no_others(step: Step, event: Event) -> None:
    if event in TRANSITIONS[step]:
        assert advance(at(step), event).step is TRANSITIONS[step][event]
    else:
        with pytest.raises(UnknownTransition):
            advance(at(step), event)


def test_an_update_goes_through_all_steps() -> None:
    update = offered(Update(), ORDER, 100)
    assert (update.step, update.before, update.since) == (Step.OFFERED, "", 100)
    path = [update.step]
    for event in ("checked", "saved", "fetched", "prepared", "switched", "started", "proved"):
        update = advance(update, Event(event))
        path.append(update.step)
    assert path == [step for step in Step if step not in (Step.IDLE, Step.ROLLED_BACK, Step.LOCKED)]
    update = concluded(update, 200)
    assert (update.step, update.done, update.attempts) == (Step.IDLE, 7, 0)


def test_from_every_step_the_machine_can_end() -> None:
    ends = {Step.IDLE}
    while True:
        more = {step for step in Step if any(following in ends for following in TRANSITIONS[step].values())}
        if more <= ends:
            break
        ends |= more
    assert ends == set(Step)


def test_nothing_that_is_switched_is_withdrawn_or_left_without_a_way_back() -> None:
    for step in IN_TRIAL:
        assert Event.WITHDRAWN not in TRANSITIONS[step]
        assert TRANSITIONS[step][Event.FAILED] is Step.ROLLED_BACK


def test_every_step_that_something_else_must_end_has_a_deadline() -> None:
    assert set(DEADLINES) == set(Step)
    free = {step for step, most in DEADLINES.items() if most is None}
    assert free == {Step.IDLE, Step.COMMITTED, Step.ROLLED_BACK, Step.LOCKED}
    for step, most in DEADLINES.items():
        assert overdue(at(step, spent=most or 0), 1) is (most is not None)
        assert not overdue(at(step), 1)
        if most is not None:
            assert Event.FAILED in TRANSITIONS[step]


def test_the_third_failed_attempt_locks_and_only_unlocking_leads_out() -> None:
    update = Update()
    for count in range(1, MAX_FAILED + 2):
        update = concluded(failed(offered(update, ORDER, 0), BAD), 50)
        assert update.attempts == count
        assert update.step is (Step.LOCKED if count > MAX_FAILED else Step.IDLE)
    with pytest.raises(UnknownTransition):
        offered(update, ORDER, 0)
    free = unlocked(update)
    assert (free.step, free.attempts, free.retry_at) == (Step.IDLE, 0, 0)


def test_network_errors_and_an_operators_will_never_lock() -> None:
    update = Update()
    for _ in range(20):
        update = concluded(failed(offered(update, ORDER, 0), Failure(code="network", text="-", counted=False)), 50)
    assert (update.step, update.attempts) == (Step.IDLE, 0)


def test_a_success_forgives_the_failures_before_it() -> None:
    update = concluded(at(Step.COMMITTED, attempts=2), 9)
    assert update.attempts == 0


@pytest.mark.parametrize("step", [step for step in Step if Event.FAILED in TRANSITIONS[step]])
def test_a_directive_is_tried_again_only_if_nothing_was_switched(step: Step) -> None:
    after = concluded(failed(at(step), BAD), 50)
    if step in IN_TRIAL:
        assert (after.retry_at, after.done) == (0, 7)
    else:
        assert (after.retry_at, after.done) == (50 + RETRY_S, 0)
        final = concluded(failed(at(step), msgspec.structs.replace(BAD, final=True)), 50)
        assert (final.retry_at, final.done) == (0, 7)


def test_an_operators_way_back_ends_idle_and_counts_nothing() -> None:
    back = undone(Update(attempts=1), ORDER, Failure(code="operator", text="-", counted=False), 5)
    assert (back.step, back.reached) == (Step.ROLLED_BACK, Step.COMMITTED)
    after = concluded(back, 6)
    assert (after.step, after.attempts, after.retry_at) == (Step.IDLE, 1, 0)


def test_a_withdrawn_directive_is_done() -> None:
    after = advance(at(Step.WINDOW), Event.WITHDRAWN)
    assert (after.step, after.done) == (Step.IDLE, 7)


@pytest.mark.parametrize(
    ("step", "installed", "expected"),
    [
        (Step.STAGED, OLD, Step.STAGED),
        (Step.STAGED, TRIAL, Step.SWITCHED),
        (Step.SWITCHED, TRIAL, Step.SWITCHED),
        (Step.PROVING, TRIAL, Step.PROVING),
        (Step.SWITCHED, OLD, Step.ROLLED_BACK),
        (Step.PROVING, OLD, Step.ROLLED_BACK),
        (Step.PROVING, NEW, Step.COMMITTED),
        (Step.SWITCHED, NEW, Step.COMMITTED),
        (Step.PROVING, None, Step.ROLLED_BACK),
        (Step.DOWNLOADED, OLD, Step.DOWNLOADED),
        (Step.WINDOW, None, Step.WINDOW),
        (Step.COMMITTED, NEW, Step.COMMITTED),
        (Step.COMMITTED, TRIAL, Step.PROVING),
        (Step.COMMITTED, OLD, Step.COMMITTED),
        (Step.ROLLED_BACK, TRIAL, Step.ROLLED_BACK),
        (Step.LOCKED, OLD, Step.LOCKED),
    ],
)
def test_where_the_journal_is_behind_the_installer_decides(step: Step, installed: Installed | None, expected: Step) -> None:
    assert taken_up(at(step), installed).step is expected


def test_an_agent_that_is_started_again_and_again_in_a_trial_goes_back() -> None:
    update = at(Step.PROVING)
    for count in range(1, MAX_STARTS + 1):
        update = taken_up(update, TRIAL)
        assert (update.step, update.starts) == (Step.PROVING, count)
    update = taken_up(update, TRIAL)
    assert (update.step, update.failure and update.failure.code) == (Step.ROLLED_BACK, "restarts")


updates = st.builds(
    Update,
    step=st.sampled_from(list(Step)),
    order=st.none() | st.just(ORDER),
    reached=st.sampled_from(list(Step)),
    failure=st.none() | st.just(BAD),
    attempts=st.integers(0, 4),
    starts=st.integers(0, 5),
)
installations = st.none() | st.builds(
    Installed, version=st.sampled_from(["", "1.0.0", "2.0.0"]), build_id=st.sampled_from(["b1", "b2"]), in_trial=st.booleans()
)


@given(updates, installations)
def test_what_is_taken_up_never_claims_a_version_that_is_not_active(update: Update, installed: Installed | None) -> None:
    after = taken_up(update, installed)
    if update.order is not None and after.step in IN_TRIAL:
        assert installed is not None and installed.in_trial and installed.version == update.order.version
    if after.step is not update.step and after.step is Step.ROLLED_BACK:
        assert after.failure is not None
    assert msgspec.json.decode(msgspec.json.encode(after), type=Update) == after


@given(st.lists(st.sampled_from(list(Event)), max_size=60))
def test_attempts_never_pass_the_limit_without_a_lock(events: list[Event]) -> None:
    update = Update(order=ORDER)
    for event in events:
        try:
            if event is Event.OFFER:
                update = offered(update, ORDER, 0)
            elif event is Event.FAILED:
                update = failed(update, BAD)
            elif event in (Event.LOGGED, Event.EXHAUSTED):
                update = concluded(update, 0)
            elif event is Event.UNDO:
                update = undone(update, ORDER, BAD, 0)
            elif event is Event.UNLOCKED:
                update = unlocked(update)
            else:
                update = advance(update, event)
        except UnknownTransition:
            continue
        assert update.attempts <= MAX_FAILED or update.step is Step.LOCKED
