"""What a fleet sets over the machine's file: what is accepted, held within bounds, refused, and what is said of it."""

from datetime import date, time
from typing import Any

import msgspec
import pytest

from agentd.base.config.config import Config, known_keys, parse_config
from agentd.base.config.fleetconfig import DEFAULT_ACCEPT, DEFAULT_LIMITS
from agentd.base.config.live import overlaid, value_of
from agentd.base.config.updatesconfig import WindowConfig
from contracts.contact.configuration import BOUNDS, NAMES, Members, digest_of, values_of
from settings.errors import ConfigError

NIGHT = {"zone": "Europe/Berlin", "days": ["mon", "sun"], "start": "22:00", "end": "04:00"}
WANTED: dict[str, Any] = {
    "updates.window": NIGHT, "updates.freeze": ["2026-12-20..2027-01-06", "2027-05-01"], "updates.notice_h": 72,
    "updates.rate_kib_s": 512, "backup.overdue_hours": 36, "agent.contact_interval": 1800, "agent.metrics_interval": 60,
    "certificates.renew_days_before": 10, "certificates.stagger_days": 5,
}  # fmt: skip
ALL = f"[fleet]\naccept = {list(NAMES)}\n"


def members(values: dict[str, Any]) -> Members:
    return msgspec.convert(values, Members)


def file(text: str = "") -> Config:
    return parse_config(text, "config.toml", user=int, group=int)


def test_each_member_is_a_key_of_the_file_with_at_least_its_bounds() -> None:
    keys = {f"{section}.{key}" for section, keys in known_keys().items() for key in keys}
    assert set(NAMES) < keys
    for name, bounds in BOUNDS.items():
        section, _, key = name.partition(".")
        needed = 'directory = "/b"\nrecipients = "age1' + "q" * 58 + '"\n' if section == "backup" else ""
        for value in bounds:
            assert value_of(file(f"[{section}]\n{needed}{key} = {value}\n"), name) == value
        assert bounds[0] <= DEFAULT_LIMITS[name][0] < DEFAULT_LIMITS[name][1] <= bounds[1]


def test_what_a_fleet_sets_is_in_force_and_has_the_digest_that_the_server_expects() -> None:
    found = overlaid(file(), members(WANTED))
    updates = found.config.updates
    assert updates.window == WindowConfig("Europe/Berlin", time(22), time(4), ("mon", "sun"))
    assert updates.freeze == ((date(2026, 12, 20), date(2027, 1, 6)), (date(2027, 5, 1), date(2027, 5, 1)))
    assert (updates.notice_h, updates.rate_kib_s, found.config.backup.overdue_hours) == (72, 512, 36)
    assert (found.config.agent.contact_interval, found.config.agent.metrics_interval) == (1800, 60)
    assert (found.config.certificates.renew_days_before, found.config.certificates.stagger_days) == (10, 5)
    assert found.set_by_fleet == WANTED.keys() and found.limited == ()
    assert found.digest == digest_of(values_of(members(WANTED)))
    assert {name: value_of(found.config, name) for name in WANTED} == WANTED


def test_a_document_without_members_leaves_the_file_as_it_is() -> None:
    config = file("[updates]\nnotice_h = 1\n")
    found = overlaid(config, Members())
    assert found.config == config and not found.set_by_fleet and found.digest == digest_of({})


@pytest.mark.parametrize("name", sorted(set(NAMES) - DEFAULT_ACCEPT))
def test_what_takes_the_shops_word_or_hides_an_alert_has_to_be_named(name: str) -> None:
    value = {"updates.consent": "quiet", "updates.consent_last": "03:00", "alerts.min_severity": "high"}[name]
    wanted = members({name: value, "updates.window": NIGHT})
    found = overlaid(file(), wanted)
    assert found.limited == (f"{name}: this machine accepts it only if [fleet] accept names it",)
    assert value_of(found.config, name) == value_of(Config(), name) and found.set_by_fleet == {"updates.window"}
    assert found.digest != digest_of(values_of(wanted)), "the server sees that it is not in force"
    named = overlaid(file(ALL), wanted)
    assert value_of(named.config, name) == value and named.limited == ()


def test_the_file_counts_where_it_has_a_value_unless_accept_names_the_key() -> None:
    text = "[updates]\nnotice_h = 30\n"
    found = overlaid(file(text), members({"updates.notice_h": 72, "updates.rate_kib_s": 100}))
    assert found.limited == ("updates.notice_h: this machine's own file sets it",)
    assert (found.config.updates.notice_h, found.config.updates.rate_kib_s) == (30, 100)
    named = overlaid(file(text + '[fleet]\naccept = ["updates.notice_h"]\n'), members({"updates.notice_h": 72}))
    assert named.config.updates.notice_h == 72 and named.set_by_fleet == {"updates.notice_h"}


def test_accept_without_a_name_lets_a_fleet_set_nothing() -> None:
    found = overlaid(file("[fleet]\naccept = []\n"), members(WANTED))
    assert found.config.updates == Config().updates and len(found.limited) == len(WANTED) and not found.set_by_fleet
    assert all(text.endswith("[fleet] accept of this machine does not name it") for text in found.limited)


@pytest.mark.parametrize(("wanted", "held"), [(1, 24), (24, 24), (720, 720)])
def test_a_number_is_held_within_the_bounds_that_are_safe(wanted: int, held: int) -> None:
    found = overlaid(file(), members({"updates.notice_h": wanted}))
    assert found.config.updates.notice_h == held and bool(found.limited) is (wanted != held)


def test_the_file_narrows_and_widens_bounds_and_never_beyond_the_contract() -> None:
    narrow = file('[fleet]\nlimits = { "updates.notice_h" = [48, 60], "backup.overdue_hours" = [1, 700] }\n')
    found = overlaid(narrow, members({"updates.notice_h": 72, "backup.overdue_hours": 700}))
    assert (found.config.updates.notice_h, found.config.backup.overdue_hours) == (60, 700)
    assert found.limited == ("updates.notice_h: 72 is not within this machine's bounds, 48 to 60: it is 60",)
    bad_limits = (
        '"updates.notice_h" = [0, 60]', '"updates.notice_h" = [60, 48]', '"updates.notice_h" = [48, 721]',
        '"updates.notice_h" = [48]', '"updates.notice_h" = [true, 60]', '"updates.window" = [1, 2]', '"x" = [1, 2]',
    )  # fmt: skip
    for bad in bad_limits:
        with pytest.raises(ConfigError, match=r"'limits' in \[fleet\] must be a table such as"):
            file(f"[fleet]\nlimits = {{ {bad} }}\n")
    for bad in ('["server.url"]', '["updates.enabled"]', '"updates.window"', '["updates.freeze", "updates.freeze"]'):
        with pytest.raises(ConfigError, match=r"'accept' in \[fleet\] must be a list, each once, of: updates.window,"):
            file(f"[fleet]\naccept = {bad}\n")


def test_a_zone_that_the_machine_does_not_know_leaves_its_own_window() -> None:
    config = file(ALL + '[updates]\nwindow = { zone = "UTC", start = "01:00", end = "02:00" }\n')
    found = overlaid(config, members({"updates.window": {**NIGHT, "zone": "Mars/Olympus"}, "updates.notice_h": 72}))
    assert found.config.updates.window == config.updates.window and found.config.updates.notice_h == 72
    assert found.limited[0].startswith("updates.window: names the time zone 'Mars/Olympus', which does not exist")


WINDOWED = '[updates]\nwindow = { zone = "UTC", start = "01:00", end = "05:00" }\n'


@pytest.mark.parametrize(
    ("text", "wanted", "in_force", "limited"),
    [
        (ALL, {"updates.consent_last": "03:00"}, (None, None), ["updates.consent_last"]),
        (ALL + WINDOWED, {"updates.consent_last": "03:00"}, ("01:00", "03:00"), []),
        (ALL + WINDOWED, {"updates.consent_last": "05:00"}, ("01:00", None), ["updates.consent_last"]),
        (ALL + WINDOWED + 'consent_last = "04:30"\n', {"updates.window": NIGHT}, ("01:00", "04:30"), ["updates.window"]),
        (ALL + WINDOWED + 'consent_last = "03:30"\n', {"updates.window": NIGHT}, ("22:00", "03:30"), []),
        (WINDOWED, {"updates.window": NIGHT, "updates.consent_last": "23:00"}, ("01:00", None),
         ["updates.consent_last", "updates.window"]),
    ],
)  # fmt: skip
def test_the_last_time_for_consent_lies_within_the_window_that_counts(
    text: str, wanted: dict[str, Any], in_force: tuple[str | None, str | None], limited: list[str]
) -> None:
    found = overlaid(file(text), members(wanted))
    window = value_of(found.config, "updates.window")
    assert (window and window["start"], value_of(found.config, "updates.consent_last")) == in_force
    assert [each.partition(":")[0] for each in found.limited] == limited


def test_nothing_but_the_members_changes() -> None:
    config = file('[pos]\nallowed_uids = [7]\n[alerts]\nwebhook = true\n[paths]\nstate_dir = "/var/lib/other"\n' + ALL)
    everything = {**WANTED, "updates.consent": "quiet", "updates.consent_last": "03:00", "alerts.min_severity": "high"}
    found = overlaid(config, members(everything)).config
    assert found.alerts.webhook is True and found.alerts.min_severity == "high"
    for name in ("server", "tpm", "pos", "management", "audit", "paths", "fleet"):
        assert getattr(found, name) == getattr(config, name)
    assert (found.updates.enabled, found.updates.trial_s) == (config.updates.enabled, config.updates.trial_s)
    assert (found.agent.id, found.agent.degraded_after) == (config.agent.id, config.agent.degraded_after)
