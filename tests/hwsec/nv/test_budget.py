"""The budget of NV writes, with times of the tests' own."""

import pytest

from hwsec.nv.budget import BURST, WRITES_PER_DAY, NvBudget

DAY = 86_400.0


def test_a_burst_is_there_at_once_and_no_more() -> None:
    budget = NvBudget(0.0)
    assert budget.left(0.0) == BURST
    for spent in range(1, BURST + 1):
        budget.spend(0.0)
        assert budget.left(0.0) == BURST - spent
    assert budget.left(0.0) == 0


def test_writes_come_back_evenly_over_the_day() -> None:
    budget = NvBudget(1000.0)
    budget.spend(1000.0, BURST)
    half_an_hour = DAY / WRITES_PER_DAY
    assert budget.left(1000.0 + half_an_hour - 1) == 0
    assert budget.left(1000.0 + half_an_hour) == 1
    assert budget.left(1000.0 + 10 * half_an_hour) == 10


def test_looking_often_loses_nothing() -> None:
    budget = NvBudget(0.0)
    budget.spend(0.0, BURST)
    for second in range(int(DAY / 4)):
        budget.left(float(second))
    assert budget.left(DAY / 4) == WRITES_PER_DAY // 4


@pytest.mark.parametrize("days", [1, 7, 1000])
def test_idle_days_save_up_no_more_than_a_burst(days: int) -> None:
    budget = NvBudget(0.0)
    assert budget.left(days * DAY) == BURST


def test_a_debt_is_paid_before_anything_is_left() -> None:
    budget = NvBudget(0.0)
    budget.spend(0.0, BURST + WRITES_PER_DAY)
    assert budget.left(0.0) == 0
    assert budget.left(DAY) == 0
    assert budget.left(DAY * (1 + 1 / WRITES_PER_DAY)) == 1


def test_a_steady_48_a_day_never_runs_dry() -> None:
    budget = NvBudget(0.0)
    for write in range(1, 10 * WRITES_PER_DAY):
        now = write * DAY / WRITES_PER_DAY
        assert budget.left(now) > 0
        budget.spend(now)
    assert budget.left(10 * DAY) >= BURST - 1


def test_a_clock_that_goes_back_gives_nothing() -> None:
    budget = NvBudget(DAY)
    budget.spend(DAY, BURST)
    assert budget.left(0.0) == 0
    assert budget.left(DAY) == 0
