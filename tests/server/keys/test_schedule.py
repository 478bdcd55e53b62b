"""When the server's keys are replaced, and when an administrator is asked for the next ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.keys.key_states import KEY_STATES, KeyEvent, KeyState
from server.keys.lifecycle import LIFETIMES, PREPARED
from server.keys.schedule import DAY_S, USE_AHEAD_S, WARN_AHEAD_S, Action, Due, Held, due, planned

NOW = 1_800_000_000
KINDS = tuple(USE_AHEAD_S)


def in_use(kind: str, end: int) -> Held:
    return Held(kind, f"{kind}-1", KeyState.ACTIVE, end)


def waiting(kind: str) -> Held:
    return Held(kind, f"{kind}-2", KeyState.NEXT, NOW + 400 * DAY_S)


def test_only_a_key_that_waits_or_is_retired_comes_in_use() -> None:
    assert {state for state, event, _ in KEY_STATES if event is KeyEvent.USE} == {KeyState.NEXT, KeyState.RETIRED}
    assert [after for state, _, after in KEY_STATES if state is KeyState.ACTIVE] == [KeyState.RETIRED]
    assert not [event for state, event, _ in KEY_STATES if state is KeyState.ENDED]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("makes_tls", [True, False])
def test_nothing_is_due_long_before_the_end(kind: str, makes_tls: bool) -> None:
    assert due([in_use(kind, NOW + WARN_AHEAD_S[kind] + 1)], NOW, makes_tls=makes_tls) == []


@pytest.mark.parametrize("kind", PREPARED)
def test_a_prepared_key_is_used_on_its_day_and_not_before(kind: str) -> None:
    end = NOW + USE_AHEAD_S[kind]
    keys = [in_use(kind, end), waiting(kind)]
    assert due(keys, NOW - 1, makes_tls=True) == []
    assert due(keys, NOW, makes_tls=True) == [Due(kind, Action.USE_NEXT, f"{kind}-1", end)]


@pytest.mark.parametrize("kind", PREPARED)
def test_a_missing_successor_is_asked_for_thirty_days_before_it_is_needed(kind: str) -> None:
    assert WARN_AHEAD_S[kind] - USE_AHEAD_S[kind] == 30 * DAY_S
    end = NOW + WARN_AHEAD_S[kind]
    assert due([in_use(kind, end)], NOW, makes_tls=True) == [Due(kind, Action.PREPARE, f"{kind}-1", end)]
    assert due([in_use(kind, end)], end + DAY_S, makes_tls=True)[0].action is Action.PREPARE


def test_a_tls_key_is_made_where_the_server_itself_serves_it() -> None:
    end = NOW + USE_AHEAD_S["tls"]
    assert due([in_use("tls", end)], NOW, makes_tls=True) == [Due("tls", Action.MAKE, "tls-1", end)]
    assert due([in_use("tls", end)], NOW, makes_tls=False) == [Due("tls", Action.PREPARE, "tls-1", end)]


@pytest.mark.parametrize("kind", ["license", "rotation"])
def test_no_key_that_signs_is_in_use_for_six_months(kind: str) -> None:
    assert LIFETIMES[kind] - USE_AHEAD_S[kind] < 181 * DAY_S


@given(
    st.lists(
        st.builds(
            Held,
            st.sampled_from(KINDS),
            st.sampled_from(["a", "b", "c"]),
            st.sampled_from([state.value for state in KeyState]),
            st.integers(NOW - 500 * DAY_S, NOW + 500 * DAY_S),
        ),
        max_size=12,
    ),
    st.booleans(),
)
def test_a_kind_has_one_thing_to_do_at_most(keys: list[Held], makes_tls: bool) -> None:
    found = due(keys, NOW, makes_tls=makes_tls)
    assert len({each.kind for each in found}) == len(found)
    plans = {plan.kind: plan for plan in planned(keys)}
    for each in found:
        assert each.ends_at == plans[each.kind].ends_at
        assert plans[each.kind].warn_at <= NOW
        assert (each.action is Action.USE_NEXT) == (
            plans[each.kind].next_kid is not None and each.kind != "operator-ca" and not (each.kind == "tls" and makes_tls)
        )
