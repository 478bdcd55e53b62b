"""When certificates are renewed: within bounds whatever a policy says, and spread over a fleet that was enrolled at once."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.contact.configuration import BOUNDS
from contracts.contact.renewal import CONTACTS_LEFT, DAY_S, RenewalPolicy, renewal_time, window

LENGTH = 30 * DAY_S
POLICIES = st.builds(
    RenewalPolicy,
    st.none() | st.integers(*BOUNDS["certificates.renew_days_before"]),
    st.none() | st.integers(*BOUNDS["certificates.stagger_days"]),
    st.integers(*BOUNDS["agent.contact_interval"]),
)


@given(st.text(max_size=20), st.integers(0, 2**160))
def test_without_a_policy_a_certificate_is_renewed_well_before_its_end(agent: str, serial: int) -> None:
    when = renewal_time(RenewalPolicy(), agent, serial, 0, LENGTH)
    assert 18 * DAY_S <= when <= 22.5 * DAY_S + 1


def test_without_a_policy_agents_renew_when_those_of_release_0_1_0_do() -> None:
    times = [renewal_time(RenewalPolicy(), f"pos-{number}", number << 40 | 77, 1000, 1000 + LENGTH) for number in range(3)]
    assert times == [1736018, 1658416, 1773550]


@pytest.mark.parametrize(
    ("policy", "first", "last"),
    [
        (RenewalPolicy(10, 5), 15, 20),
        (RenewalPolicy(10), 15.5, 20),
        (RenewalPolicy(None, 10), 12.5, 22.5),
        (RenewalPolicy(365, 5), 3, 8),  # a tenth of its time has passed
        (RenewalPolicy(25, 5), 3, 8),
        (RenewalPolicy(1, 90, 86_400), 3, 28),  # two contacts are left
        (RenewalPolicy(1, 1, 86_400), 27, 28),
    ],
)
def test_the_window_lies_where_the_policy_says_within_its_bounds(policy: RenewalPolicy, first: float, last: float) -> None:
    found = window(policy, 0, LENGTH)
    assert (found.first / DAY_S, found.last / DAY_S) == (pytest.approx(first, abs=1e-4), pytest.approx(last, abs=1e-4))


@given(POLICIES, st.text(max_size=20), st.integers(0, 2**160), st.integers(60, 400 * DAY_S), st.integers(0, 2**33))
def test_each_certificate_is_renewed_in_its_window_and_never_at_each_contact_or_too_late(
    policy: RenewalPolicy, agent: str, serial: int, length: int, begin: int
) -> None:
    found = window(policy, begin, begin + length)
    when = renewal_time(policy, agent, serial, begin, begin + length)
    assert begin + length // 10 - 1 <= found.first <= when <= found.last <= begin + length
    assert found.last <= begin + length - min(CONTACTS_LEFT * policy.contact_s, int(length * 0.45)) + 1
    assert when == renewal_time(policy, agent, serial, begin, begin + length)


@given(POLICIES, st.integers(0, 2**64))
def test_a_fleet_that_was_enrolled_in_one_minute_does_not_renew_in_one_hour(policy: RenewalPolicy, seed: int) -> None:
    """The narrowest window is a day: of 240 agents, no hour has a fifth, and each quarter of the window has its share."""
    found = window(policy, 0, LENGTH)
    assert found.last - found.first >= DAY_S - 1
    times = sorted(renewal_time(policy, f"pos-{seed}-{number:04}", seed + number, 0, LENGTH) for number in range(240))
    assert max(sum(start <= time < start + 3600 for time in times) for start in times) < 48
    width = (found.last - found.first) / 4
    quarters = [
        sum(found.first + part * width <= time < found.first + (part + 1) * width for time in times) for part in range(4)
    ]
    assert min(quarters) >= 25


@given(POLICIES, POLICIES)
def test_a_policy_that_changes_does_not_bring_a_fleet_together(before: RenewalPolicy, after: RenewalPolicy) -> None:
    """Agents keep their order: their shares do not depend on the policy."""
    agents = [f"pos-{number}" for number in range(20)]
    first, second = ([renewal_time(each, agent, 7, 0, LENGTH) for agent in agents] for each in (before, after))
    ordered = [later for _, later in sorted(zip(first, second, strict=True))]
    assert all(one <= other + 1 for one, other in pairwise(ordered)) and len(set(second)) > 15
