"""Schedules: within their bounds, the same for the same agent, and spread over a fleet."""

from hypothesis import given
from hypothesis import strategies as st

from agentd.base.config.config import parse_config
from agentd.rotation.table import rotation_time
from agentd.uplink.schedule import contact_delay, renewal_policy
from contracts.contact.renewal import RenewalPolicy, share

DAY = 86_400


@given(st.text(max_size=20), st.integers(0, 2**32), st.integers(0, 10**10), st.integers(60, 10**8))
def test_a_rotation_is_begun_before_it_is_due_and_not_much_before(agent: str, version: int, start: int, length: int) -> None:
    when = rotation_time(agent, version, start, start + length)
    assert start + 0.85 * length - 1 <= when <= start + 0.95 * length + 1
    assert when == rotation_time(agent, version, start, start + length)


def test_a_fleet_of_a_thousand_spreads_out() -> None:
    times = sorted(rotation_time(f"pos-{number:04}", 1, 0, DAY) for number in range(1000))
    busiest = max(sum(start <= time < start + 600 for time in times) for start in range(0, DAY, 600))
    assert times[-1] - times[0] > 0.09 * DAY and busiest < 120


def test_contacts_come_no_later_than_the_server_wants() -> None:
    delays = [contact_delay("pos-1", count, 3600) for count in range(200)]
    assert all(0.8 * 3600 <= delay <= 3600 for delay in delays) and len(set(delays)) == 200


def test_shares_do_not_run_into_each_other() -> None:
    assert share("a", "bc") != share("ab", "c") and 0 <= share("") < 1


def test_the_policy_for_certificates_is_what_the_configuration_says() -> None:
    assert renewal_policy(parse_config("", "config.toml")) == RenewalPolicy()
    text = "[agent]\ncontact_interval = 7200\n[certificates]\nrenew_days_before = 10\nstagger_days = 5\n"
    assert renewal_policy(parse_config(text, "config.toml")) == RenewalPolicy(10, 5, 7200)
