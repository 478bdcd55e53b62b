"""The deadline of a trial, as a table: running time and boots count, and no clock that somebody can set."""

import json
from dataclasses import replace

import pytest

from installer.agentpackage.trial import DEADLINE_S, MAX_BOOTS, BadTrial, Trial, counted, decode, encode, overdue

BEGUN = Trial("b", "2.0", "1" * 64, "a", "1.0", "boot-1", 1000.0)

# Boot and CLOCK_BOOTTIME at each tick of the timer; seconds and boots that count at the end; whether it is over.
LIVES: dict[str, tuple[list[tuple[str, float]], float, int, bool]] = {
    "no tick yet": ([], 0, 0, False),
    "a minute": ([("boot-1", 1060)], 60, 0, False),
    "just before": ([("boot-1", 1000 + DEADLINE_S - 1)], DEADLINE_S - 1, 0, False),
    "to the second": ([("boot-1", 1000 + DEADLINE_S)], DEADLINE_S, 0, True),
    "in small steps": ([("boot-1", 1000 + step) for step in range(0, DEADLINE_S + 1, 60)], DEADLINE_S, 0, True),
    "asleep over night, which runs": ([("boot-1", 40_000)], 39_000, 0, True),
    "off over night, which does not": ([("boot-1", 1060), ("boot-2", 30)], 90, 1, False),
    "a day in one later boot": ([("boot-2", 86_400)], 86_400, 1, True),
    "boots add up": ([("boot-1", 1400), ("boot-2", 300), ("boot-3", 199)], 899, 2, False),
    "and end it": ([("boot-1", 1400), ("boot-2", 300), ("boot-3", 200)], 900, 2, True),
    "as many boots as allowed": ([(f"boot-{number}", 5) for number in range(2, 2 + MAX_BOOTS)], 15, MAX_BOOTS, False),
    "one more": ([(f"boot-{number}", 5) for number in range(2, 3 + MAX_BOOTS)], 20, MAX_BOOTS + 1, True),
    "boots that never saw a tick do not count": ([("boot-9", 10)], 10, 1, False),
    "a clock that goes back takes nothing away": ([("boot-1", 1500), ("boot-1", 1400), ("boot-1", 1500)], 500, 0, False),
}


@pytest.mark.parametrize("name", LIVES)
def test_running_time_and_boots_end_a_trial(name: str) -> None:
    ticks, ran, boots, over = LIVES[name]
    trial = BEGUN
    for boot, now in ticks:
        trial = decode(encode(counted(trial, boot, now)))  # each tick is a process of its own
    assert (trial.ran_s, trial.boots, bool(overdue(trial))) == (ran, boots, over)


def test_a_return_that_has_begun_is_finished_at_once() -> None:
    assert "interrupted" in overdue(replace(BEGUN, going_back=True))


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2}, {"place": "c"}, {"back": "b"}, {"ran_s": -1}, {"ran_s": "1"}, {"boots": True}, {"going_back": 1},
        {"version": None}, {"more": 1}, {"at_s": float("nan")},
    ],
)  # fmt: skip
def test_a_marker_of_another_form_is_no_marker(change: dict[str, object]) -> None:
    with pytest.raises(BadTrial):
        decode(json.dumps(json.loads(encode(BEGUN)) | change).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{}", b'{"v":1}', b"\xff"])
def test_what_is_no_marker_is_refused(data: bytes) -> None:
    with pytest.raises(BadTrial):
        decode(data)
