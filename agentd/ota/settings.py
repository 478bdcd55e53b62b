"""Makes of the section `[updates]` what the runner goes by. Pure."""

from dataclasses import dataclass, field
from datetime import UTC, time
from zoneinfo import ZoneInfo

from agentd.base.config.updatesconfig import UpdatesConfig, WindowConfig
from common.openings import DAYS, Calendar, Frozen, Window
from common.zones import UnknownZone, zone_of

from .consent import Mode
from .sides import Declined
from .table import HOUR, Order
from .window import Terms

NO_END = 2**40
"""`not_after` of an order whose end only the installer knows: that of a package."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration says of updates.

    Attributes:
        calendar: when installations may begin.
        notice_s: from a directive's arrival to its installation, seconds (OT-02).
        rate: of downloads, bytes a second; None for as fast as it goes.
        consent: whose consent an installation needs.
        last: the part of the window in which nobody is asked; None without one.
        trial_s: how long a new version may take until it proves itself, seconds; what was just started may need a moment.
        test_bench: whether this machine rehearses updates each quarter.
    """

    calendar: Calendar = field(default_factory=Calendar)
    notice_s: int = 48 * HOUR
    rate: int | None = None
    consent: Mode = Mode.ASK
    last: Window | None = None
    trial_s: int = 180
    test_bench: bool = False

    def last_passed(self, at: int) -> bool:
        """Whether nobody is asked any more; seconds since 1970 UTC."""
        return self.last is not None and Calendar(self.calendar.zone, self.last).open_at(at)


def settings_of(config: UpdatesConfig) -> Settings:
    """What the section says; its zones are known to exist."""
    given = config.window
    zone = UTC if given is None else zone_of(given.zone)
    window = None if given is None else _window(given, given.start)
    return Settings(
        calendar=Calendar(zone, window, tuple(Frozen(first, last) for first, last in config.freeze)),
        notice_s=config.notice_h * HOUR,
        rate=None if config.rate_kib_s is None else config.rate_kib_s * 1024,
        consent=Mode(config.consent),
        last=None if given is None or config.consent_last is None else _last(given, config.consent_last),
        trial_s=config.trial_s,
        test_bench=config.test_bench,
    )


def _window(given: WindowConfig, start: time) -> Window:
    return Window(zone_of(given.zone), frozenset(DAYS.index(day) for day in given.days), start, given.end)


def _last(given: WindowConfig, last: time) -> Window:
    """From the last time to the window's end. Where midnight lies before it, it is of the day after the one it opens on."""
    window = _window(given, last)
    if given.start < given.end or last >= given.start:
        return window
    return Window(window.zone, frozenset((day + 1) % 7 for day in window.days), last, given.end)


def terms_of(order: Order, notice_s: int) -> Terms:
    """When an order may be installed.

    Raises:
        Declined: this machine does not know the zone of the directive's window.
    """
    window = None
    if order.zone:
        try:
            zone: ZoneInfo = zone_of(order.zone)
        except UnknownZone as error:
            raise Declined("zone", f"the directive's window {error}", counted=False, final=True) from None
        days = frozenset(DAYS.index(day) for day in order.days)
        window = Window(zone, days, time.fromisoformat(order.start), time.fromisoformat(order.end))
    notice = max(order.notice_until, order.received + notice_s)
    return Terms(order.not_before, order.not_after or NO_END, notice, window)
