"""The policy of a rollout as people write it: groups, windows, frozen days."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.base.errors import Invalid
from server.fleet.rollouts.policy import (
    Policy,
    Take,
    decoded,
    encoded,
    ends_of_freeze,
    frozen_at,
    next_freeze,
    policy_of,
    size_of,
    split,
    takes_of,
    window_of,
)
from server.ota.windows import parse_window


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def test_groups_are_shares_numbers_selections_and_the_rest() -> None:
    assert takes_of(split("5%, 10,tag=beta,rest")) == (
        Take("5%", share=5), Take("10", count=10), Take("tag=beta", selection="tag=beta"), Take("rest"),
    )  # fmt: skip
    assert [size_of(take, 60) for take in takes_of(split("5%,10,rest"))] == [3, 10, None]
    assert size_of(Take("1%", share=1), 3) == 1, "the first group of a small fleet is not empty"


@pytest.mark.parametrize("groups", ["5%", "rest,5%", "rest,rest", "60%,50%,rest", "0%,rest", "5.5%,rest", ",rest", "101%,rest"])
def test_groups_that_do_not_fit_together_are_refused(groups: str) -> None:
    with pytest.raises(Invalid):
        takes_of(split(groups))


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"success_percent": 0}, "success_percent"),
        ({"zone": "Europe/Atlantis"}, "no time zone 'Europe/Atlantis'"),
        ({"zone": "device"}, "cannot be 'device'"),
        ({"freeze": ["2026-13-01"]}, "is not a day or days"),
        ({"freeze": ["2026-12-24..2026-12-20"]}, "is not a day or days"),
        ({"wait": 5}, "wait"),
        ({"batch": 5}, "batch"),
        ({"window": {"zone": "Nowhere/Else", "days": ["mon"], "start": "22:00", "end": "05:00"}}, "no time zone"),
    ],
)
def test_a_policy_that_cannot_be_kept_is_refused(members: dict[str, object], said: str) -> None:
    with pytest.raises(Invalid, match=said):
        policy_of(members)


def test_a_policy_is_read_as_it_was_written() -> None:
    policy = policy_of({"groups": ["10", "rest"], "freeze": ["2026-12-24"], "failure_count": 3})
    assert decoded(encoded(policy)) == policy and policy_of({}) == Policy()


def test_frozen_days_begin_and_end_in_their_zone() -> None:
    policy = policy_of({"freeze": ["2026-12-24..2026-12-26", "2026-12-27", "2027-01-05"], "zone": "Europe/Berlin"})
    assert not frozen_at(policy, at("2026-12-23T22:59:59")) and frozen_at(policy, at("2026-12-23T23:00:00"))
    assert next_freeze(policy, at("2026-12-01T00:00:00")) == at("2026-12-23T23:00:00")
    assert ends_of_freeze(policy, at("2026-12-25T12:00:00")) == at("2026-12-27T23:00:00"), "days that follow each other"
    assert next_freeze(policy, at("2027-01-06T00:00:00")) is None
    assert ends_of_freeze(policy, at("2026-12-01T00:00:00")) == at("2026-12-01T00:00:00")


@given(st.integers(at("2026-01-01T00:00:00"), at("2027-12-31T00:00:00")))
def test_what_is_not_frozen_stays_so_until_the_next_freeze(now: int) -> None:
    policy = policy_of({"freeze": ["2026-03-28..2026-03-30", "2026-10-25"], "zone": "Europe/Berlin"})
    end, begin = ends_of_freeze(policy, now), next_freeze(policy, now)
    assert not frozen_at(policy, end) and (end > now) == frozen_at(policy, now)
    if begin is not None:
        assert frozen_at(policy, begin) and (frozen_at(policy, now) or not frozen_at(policy, begin - 1))


def test_a_window_may_be_in_the_time_of_each_device() -> None:
    policy = Policy(window=parse_window("daily 22:00-05:00 device"))
    here, unknown = window_of(policy, "Asia/Tokyo"), window_of(policy, None)
    assert here is not None and here.zone == "Asia/Tokyo" and unknown is not None and unknown.zone == "UTC"
    assert window_of(Policy(), "Asia/Tokyo") is None
