"""What refused attempts of provisioning write: bounded for each address and in all, and counted."""

from server.base.limits import RECORDED_REFUSAL_RATE, RECORDED_REFUSALS_RATE
from server.enrollment.refusals import RecordedRefusals


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_of_one_address_a_few_are_recorded_and_the_others_counted() -> None:
    clock = Clock()
    refusals = RecordedRefusals(clock)
    taken = [refusals.take("192.0.2.1") for _ in range(60)]
    assert taken == [0] * RECORDED_REFUSAL_RATE.burst + [None] * (60 - RECORDED_REFUSAL_RATE.burst)
    assert refusals.take("192.0.2.2") == 60 - RECORDED_REFUSAL_RATE.burst
    clock.now = 1 / RECORDED_REFUSAL_RATE.per_second
    assert refusals.take("192.0.2.1") == 0


def test_of_many_addresses_a_bounded_number_is_recorded() -> None:
    refusals = RecordedRefusals(Clock())
    taken = [refusals.take(f"10.0.{number // 250}.{number % 250}") for number in range(1000)]
    assert sum(each is not None for each in taken) == RECORDED_REFUSALS_RATE.burst
