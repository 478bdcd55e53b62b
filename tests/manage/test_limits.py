"""Who asks too often waits, and nobody waits for somebody else."""

from manage.limits import ALL, EACH, FAILED, Limits


def test_each_certificate_has_a_limit_of_its_own() -> None:
    limits = Limits()
    assert [limits.wait("ann", 0.0) for _time in range(EACH.burst)] == [0] * EACH.burst
    assert limits.wait("ann", 0.0) == 1
    assert limits.wait("bob", 0.0) == 0
    assert limits.wait("ann", 1.0) == 0


def test_who_is_over_their_own_limit_uses_up_nothing_of_all() -> None:
    limits = Limits()
    for _time in range(10 * ALL.burst):
        limits.wait("ann", 0.0)
    assert limits.wait("bob", 0.0) == 0


def test_all_together_have_one_too() -> None:
    limits = Limits()
    waits = [limits.wait(f"{number}", 0.0) for number in range(ALL.burst + 1)]
    assert waits == [0] * ALL.burst + [1]


def test_signatures_that_do_not_count_are_counted_for_their_sender() -> None:
    limits = Limits()
    for _time in range(FAILED.burst):
        assert limits.wait_to_sign("ann", 0.0) == 0
        limits.failed("ann", 0.0)
    assert limits.wait_to_sign("ann", 0.0) == 20
    assert limits.wait_to_sign("bob", 0.0) == 0
    assert limits.wait_to_sign("ann", 20.0) == 0
