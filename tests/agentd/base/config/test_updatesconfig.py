"""The section [updates]: what it takes, what it refuses and with which words, and what the runner makes of it."""

from datetime import date, datetime, time
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from agentd.base.config.updatesconfig import KEYS, UpdatesConfig, WindowConfig, check
from agentd.ota.consent import Mode
from agentd.ota.settings import settings_of, terms_of
from agentd.ota.sides import Declined
from agentd.ota.table import Order
from settings.errors import ConfigError
from settings.sections import Sections

BERLIN = ZoneInfo("Europe/Berlin")
WHOLE = """
[updates]
enabled = true
window = { zone = "Europe/Berlin", start = "23:00", end = "05:00", days = ["mon", "fri"] }
freeze = ["2026-12-20..2027-01-06", "2027-05-01"]
notice_h = 24
rate_kib_s = 512
consent = "quiet"
consent_last = "02:00"
trial_s = 600
test_bench = true
"""


def read(text: str) -> UpdatesConfig:
    found = Sections(text, "config.toml")
    values = found.section("updates", KEYS)
    check(found, values)
    found.check()
    return UpdatesConfig(**values)


def test_without_the_section_updates_ask_the_shop_and_give_two_days_notice() -> None:
    found = settings_of(read(""))
    assert (found.notice_s, found.consent, found.rate, found.calendar.window) == (48 * 3600, Mode.ASK, None, None)
    assert found == settings_of(read("[updates]"))


def test_a_whole_section_is_read() -> None:
    found = read(WHOLE)
    assert found.window == WindowConfig("Europe/Berlin", time(23), time(5), ("mon", "fri"))
    assert found.freeze == ((date(2026, 12, 20), date(2027, 1, 6)), (date(2027, 5, 1), date(2027, 5, 1)))
    made = settings_of(found)
    assert (made.rate, made.consent, made.notice_s, made.test_bench) == (512 * 1024, Mode.QUIET, 24 * 3600, True)
    assert (made.trial_s, settings_of(read("")).trial_s) == (600, 180)


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("2026-12-01T01:59", False),  # the night of a Monday
        ("2026-12-01T02:00", True),
        ("2026-12-01T05:00", False),
        ("2026-12-02T02:00", False),
        ("2026-11-30T23:30", False),
    ],
)
def test_the_last_time_is_of_the_night_in_which_the_window_opened(text: str, passed: bool) -> None:
    at = datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()
    assert settings_of(read(WHOLE)).last_passed(at) is passed


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ('window = "night"', "'window' in [updates] must be a table such as"),
        ('window = { zone = "Europe/Berlin", start = "23:00" }', "'window' in [updates] lacks 'end'"),
        ('window = { zone = "Europe/Berlin", start = "1:00", end = "02:00" }', "has a key 'start' that must be a time of day"),
        ('window = { zone = "Mars/Base", start = "01:00", end = "02:00" }', "which does not exist; write one such as"),
        ('window = { zone = "Europe/Berlin", start = "01:00", end = "01:00" }', "must have a start and an end that differ"),
        ('window = { zone = "Europe/Berlin", start = "01:00", end = "02:00", x = 1 }', "has the unknown key 'x'"),
        (
            'window = { zone = "Europe/Berlin", start = "01:00", end = "02:00", days = ["mo"] }',
            "has a key 'days' that must be a list of days, each once: mon,",
        ),
        ('freeze = ["2026-02-30"]', "has '2026-02-30', and there is no such day"),
        ('freeze = ["2026-02-03..2026-02-01"]', "which ends before it begins"),
        ('freeze = ["Christmas"]', "'Christmas' is neither"),
        ("notice_h = -1", "must be a whole number from 0 to 1440"),
        ('consent = "maybe"', "must be one of ask, quiet, none"),
        ('consent_last = "02:00"', "'consent_last' in [updates] needs a 'window'"),
        (
            'consent_last = "12:00"\nwindow = { zone = "Europe/Berlin", start = "23:00", end = "05:00" }',
            "'consent_last' in [updates] must lie within the window, 23:00 to 05:00",
        ),
        ("windows = 1", "unknown key 'windows' in [updates]; did you mean 'window'?"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(section: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(f"[updates]\n{section}\n")
    assert words in str(error.value) and "config.toml: " in str(error.value)


def test_a_section_without_time_zones_on_the_machine_is_refused(tmp_path: Path) -> None:
    import zoneinfo

    former = zoneinfo.TZPATH
    zoneinfo.reset_tzpath([str(tmp_path)])
    zoneinfo.ZoneInfo.clear_cache()
    try:
        with pytest.raises(
            ConfigError, match=r"'window' in \[updates\] has a key 'zone' that needs .* 'apt-get install tzdata'"
        ):
            read(WHOLE)
        assert settings_of(read("")).calendar.open_at(0)
    finally:
        zoneinfo.reset_tzpath(list(former))


ORDER = Order(number=1, product="pos", version="2", build_id="b", sha256="ab" * 32, received=1000, not_after=5000)


def test_the_later_notice_counts_and_a_package_ends_when_the_installer_says() -> None:
    assert terms_of(ORDER, 500).notice_until == 1500
    late = Order(number=1, product="pos", version="2", build_id="b", sha256="ab" * 32, received=1000, notice_until=9000)
    terms = terms_of(late, 500)
    assert terms.notice_until == 9000 and terms.not_after > 10**12


def test_a_directive_in_an_unknown_zone_is_refused_for_good_and_is_no_failed_attempt() -> None:
    order = Order(
        number=1, product="pos", version="2", build_id="b", sha256="ab" * 32, zone="Mars/Base", days=("mon",), start="01:00",
        end="02:00",
    )  # fmt: skip
    with pytest.raises(Declined) as declined:
        terms_of(order, 0)
    assert (declined.value.counted, declined.value.final) == (False, True)
