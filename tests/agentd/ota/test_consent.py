"""Whether the shop lets an installation begin: answers, their ends, the last time, and tills that do not answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.ota.consent import (
    MAX_BUSY_S,
    QUIET_S,
    READY_S,
    SHIFT_OVER_S,
    Answer,
    Mode,
    Said,
    Traffic,
    require_consent,
    said,
)
from agentd.ota.window import Wait

NOW = 100_000.0


def consents(mode: Mode, answer: Said | None, quiet_s: float, now: float = NOW, last: bool = False) -> bool:
    try:
        require_consent(mode, answer, quiet_s, now, last_passed=last)
    except Wait as wait:
        assert wait.code == "consent" and wait.text
        return False
    return True


@pytest.mark.parametrize(
    ("answer", "age_s", "quiet_s", "expected"),
    [
        (None, 0, QUIET_S - 1, False),
        (None, 0, QUIET_S, True),
        (Answer.READY, 0, 0, True),
        (Answer.READY, READY_S - 1, 0, True),
        (Answer.READY, READY_S, 0, False),  # a while ago: the till decides
        (Answer.READY, READY_S, QUIET_S, True),
        (Answer.BUSY, 0, 10 * QUIET_S, False),
        (Answer.BUSY, 600, QUIET_S, True),  # it was busy for 600 s
        (Answer.AFTER_SHIFT, 0, QUIET_S, False),
        (Answer.AFTER_SHIFT, 86_400, SHIFT_OVER_S - 1, False),
        (Answer.AFTER_SHIFT, 0, SHIFT_OVER_S, True),
    ],
)
def test_an_answer_counts_for_a_while_and_then_the_till_decides(
    answer: Answer | None, age_s: float, quiet_s: float, expected: bool
) -> None:
    given_then = None if answer is None else said(answer, 600, NOW - age_s)
    assert consents(Mode.ASK, given_then, quiet_s) is expected


def test_where_nobody_is_asked_answers_mean_nothing() -> None:
    busy = said(Answer.BUSY, 600, NOW)
    assert consents(Mode.NONE, busy, 0)
    assert not consents(Mode.QUIET, said(Answer.READY, 0, NOW), 0)
    assert consents(Mode.QUIET, busy, QUIET_S)


def test_nobody_is_busy_for_longer_than_the_limit() -> None:
    assert said(Answer.BUSY, 1e9, NOW).until == NOW + MAX_BUSY_S
    assert said(Answer.BUSY, -5, NOW).until == NOW


def test_traffic_is_what_was_counted_last() -> None:
    traffic = Traffic(10.0)
    traffic.note(0, 500.0)
    assert traffic.quiet_s(500.0) == 490.0
    traffic.note(3, 600.0)
    traffic.note(3, 900.0)
    assert traffic.quiet_s(1000.0) == 400.0


answers = st.none() | st.builds(said, st.sampled_from(list(Answer)), st.floats(0, 1e6), st.floats(0, NOW))


@given(st.sampled_from(list(Mode)), answers, st.floats(0, 1e6))
def test_once_the_last_time_has_come_nothing_postpones(mode: Mode, answer: Said | None, quiet_s: float) -> None:
    assert consents(mode, answer, quiet_s, last=True)


@given(answers, st.floats(0, 1e6))
def test_no_answer_postpones_for_ever(answer: Said | None, quiet_s: float) -> None:
    assert consents(Mode.ASK, answer, SHIFT_OVER_S + quiet_s, NOW + MAX_BUSY_S + 1)
