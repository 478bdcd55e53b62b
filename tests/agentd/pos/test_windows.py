"""A nonce is used once, and forgotten in the end."""

from hypothesis import given
from hypothesis import strategies as st

from agentd.pos.nonces import NonceOutcome, NonceWindow

DAY = 86_400


def nonce(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_a_nonce_is_fresh_once_for_each_user() -> None:
    window = NonceWindow()
    assert window.use(1, nonce(1), 0.0) is NonceOutcome.FRESH
    assert window.use(1, nonce(1), 0.0) is NonceOutcome.REPLAYED
    assert window.use(2, nonce(1), 0.0) is NonceOutcome.FRESH


def test_a_full_window_refuses_and_forgets_nothing() -> None:
    window = NonceWindow(window=10.0, per_uid=3)
    for number in range(3):
        window.use(1, nonce(number), 0.0)
    assert window.use(1, nonce(9), 5.0) is NonceOutcome.FULL
    assert [window.use(1, nonce(number), 9.0) for number in range(3)] == [NonceOutcome.REPLAYED] * 3
    assert window.use(2, nonce(9), 5.0) is NonceOutcome.FRESH
    assert window.use(1, nonce(9), 10.0) is NonceOutcome.FRESH
    assert window.use(1, nonce(0), 10.0) is NonceOutcome.REPLAYED


@given(st.lists(st.tuples(st.integers(1, 2), st.integers(0, 5), st.floats(0, 7)), max_size=60))
def test_a_nonce_stays_used_for_a_window_and_is_forgotten_in_the_end(steps: list[tuple[int, int, float]]) -> None:
    window, now = NonceWindow(window=10.0), 0.0
    used: dict[tuple[int, int], float] = {}
    for uid, number, wait in steps:
        now += wait
        window.forget_idle(now)
        outcome = window.use(uid, nonce(number), now)
        age = now - used.get((uid, number), -1000.0)
        if age < 10.0:
            assert outcome is NonceOutcome.REPLAYED
        if age >= 40.0:
            assert outcome is NonceOutcome.FRESH
        if outcome is NonceOutcome.FRESH:
            used[uid, number] = now


def test_idle_users_cost_no_memory() -> None:
    window = NonceWindow(window=10.0)
    for uid in range(50):
        window.use(uid, nonce(1), 0.0)
    window.forget_idle(19.9)
    assert len(window._users) == 50
    window.forget_idle(20.0)
    assert window._users == {}
