"""Reads and judges the policy of a rollout: its groups, limits, times and days on which nothing begins. Pure.

Groups are written in their order, each as the devices that it takes of those that are left:

    5%         of all devices of the rollout, by a hash of their ids, at least one
    10         so many, by the same hash
    tag=beta   those that a selection selects (`server.fleet.devices.selection`)
    rest       all others; the last one
"""

import functools
import re
import zoneinfo
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated

import msgspec
from msgspec import Meta

from common.plain import msgspec_text
from contracts.directive import DeploymentWindow, Zone
from server.base.errors import Invalid
from server.ota.directives import LASTS_S, MAX_LASTS_S, NOTICE_S
from server.ota.words import DAY_S

MAX_GROUPS = 16
MAX_GROUP_CHARS = 1000
MAX_FREEZES = 32
MAX_FREEZE_DAYS = 366
DEVICE_ZONE = "device"
"""In place of a window's time zone: each device's own, and UTC where that is not known."""
REST = "rest"
_SHARE, _COUNT = re.compile(r"([1-9][0-9]?|100)%"), re.compile(r"[1-9][0-9]{0,8}")
_DAYS = re.compile(r"(\d{4}-\d\d-\d\d)(?:\.\.(\d{4}-\d\d-\d\d))?")

Percent = Annotated[int, Meta(ge=1, le=100)]
Seconds = Annotated[int, Meta(ge=60, le=MAX_LASTS_S)]


class Policy(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """How a rollout goes on, and when it stops. Durations are in seconds.

    Attributes:
        groups: the groups in their order, as people write them.
        success_percent: of a group's devices that have to prove the update before the next group starts.
        failure_percent: of a group's devices, at which the rollout stops.
        failure_count: devices of a group at which the rollout stops, whatever their share; None for no such limit.
        window: when an installation may begin; None leaves it to each machine.
        notice: from the start of the rollout on, for which it is only announced (OT-02).
        prestage: whether the first group's devices may fetch the package during the notice.
        freeze: days on which nothing begins, `2026-12-24` or `2026-12-20..2027-01-02`.
        zone: where those days begin and end.
        wait: from the start of a group, after which a device without an order is left out.
        ordered: from its order, after which a device that has not begun is left out.
        under_way: for which the trial of the new version may last, before the device counts as failed.
        installed: after the installation, in which the device has to prove that the update runs.
        candidate: whether the package may be one on trial.
    """

    groups: Annotated[tuple[str, ...], Meta(min_length=1, max_length=MAX_GROUPS)] = ("5%", "20%", REST)
    success_percent: Percent = 90
    failure_percent: Percent = 10
    failure_count: Annotated[int, Meta(ge=1, le=10**9)] | None = None
    window: DeploymentWindow | None = None
    notice: Annotated[int, Meta(ge=0, le=LASTS_S)] = NOTICE_S
    prestage: bool = True
    freeze: Annotated[tuple[str, ...], Meta(max_length=MAX_FREEZES)] = ()
    zone: Zone = "UTC"
    wait: Seconds = 30 * DAY_S
    ordered: Seconds = 14 * DAY_S
    under_way: Seconds = DAY_S
    installed: Seconds = DAY_S
    candidate: bool = False


@dataclass(frozen=True, slots=True)
class Take:
    """What a group takes: a share in percent, a number, a selection, or, with none of them, the rest."""

    text: str
    share: int | None = None
    count: int | None = None
    selection: str | None = None

    @property
    def is_rest(self) -> bool:
        """Whether it takes all that are left."""
        return self.share is None and self.count is None and self.selection is None


def policy_of(members: object) -> Policy:
    """The policy that an operator writes, or that a row has. Raises Invalid."""
    try:
        policy = msgspec.convert(members, Policy)
    except msgspec.ValidationError as problem:
        raise Invalid(f"the policy of a rollout: {msgspec_text(str(problem))}") from None
    takes_of(policy.groups)
    for text in policy.freeze:
        _days_of(text)
    for zone in {policy.zone, *(() if policy.window is None else (policy.window.zone,))} - {DEVICE_ZONE}:
        _zone(zone)
    if policy.zone == DEVICE_ZONE:
        raise Invalid("the zone of frozen days cannot be 'device': write an IANA name, as Europe/Berlin")
    return policy


def encoded(policy: Policy) -> str:
    """The policy as a row has it."""
    return msgspec.json.encode(policy).decode()


@functools.lru_cache(maxsize=64)
def decoded(text: str) -> Policy:
    """The policy of a row. Each contact of a device asks several times."""
    return msgspec.json.decode(text.encode(), type=Policy)


def split(text: str) -> tuple[str, ...]:
    """The groups of a list with commas, `5%,20%,rest`. A selection with a comma cannot be in one."""
    return tuple(each.strip() for each in text.split(","))


def takes_of(groups: Sequence[str]) -> tuple[Take, ...]:
    """What each group takes.

    Raises:
        Invalid: a group is malformed, more than all are shared out, or the last one is not `rest`.
    """
    takes = tuple(_take(text.strip()) for text in groups)
    if not takes[-1].is_rest or any(take.is_rest for take in takes[:-1]):
        raise Invalid("the groups of a rollout end with 'rest', which takes all devices that are left; it is there once")
    if sum(take.share or 0 for take in takes) > 100:
        raise Invalid("the groups of a rollout share out more than 100 %")
    return takes


def _take(text: str) -> Take:
    if not 0 < len(text) <= MAX_GROUP_CHARS:
        raise Invalid(f"a group of a rollout has 1 to {MAX_GROUP_CHARS} characters: 5%, 10, a selection, or rest")
    if text == REST:
        return Take(text)
    if found := _SHARE.fullmatch(text):
        return Take(text, share=int(found[1]))
    if _COUNT.fullmatch(text):
        return Take(text, count=int(text))
    if re.fullmatch(r"[0-9.,% ]+", text):
        raise Invalid(f"{text!r} is not a group of a rollout; write 5%, 10, a selection such as tag=beta, or rest")
    return Take(text, selection=text)


def size_of(take: Take, total: int) -> int | None:
    """How many devices a group takes by share or number; None if that does not limit it.

    Args:
        take: of the group.
        total: devices of the rollout.
    """
    return take.count if take.share is None else max(1, (total * take.share + 50) // 100)


# Days on which nothing begins


def frozen_at(policy: Policy, now: int) -> bool:
    """Whether nothing may begin now, which is in seconds since 1970 UTC."""
    day = datetime.fromtimestamp(now, UTC).astimezone(_zone(policy.zone)).date()
    return any(first <= day <= last for first, last in map(_days_of, policy.freeze))


def next_freeze(policy: Policy, now: int) -> int | None:
    """When the next days begin on which nothing may begin, seconds since 1970 UTC; None if there are none to come."""
    zone = _zone(policy.zone)
    begins = (int(datetime.combine(first, time(), zone).timestamp()) for first, _last in map(_days_of, policy.freeze))
    return min((at for at in begins if at > now), default=None)


def ends_of_freeze(policy: Policy, now: int) -> int:
    """When the frozen days that now is in are over, seconds since 1970 UTC; now, if it is in none."""
    zone, at = _zone(policy.zone), now
    while frozen_at(policy, at):
        day = datetime.fromtimestamp(at, UTC).astimezone(zone).date()
        at = int(datetime.combine(day + timedelta(days=1), time(), zone).timestamp())
    return at


def window_of(policy: Policy, zone: str | None) -> DeploymentWindow | None:
    """The window of a device in this time zone; None if the policy has none."""
    if policy.window is None or policy.window.zone != DEVICE_ZONE:
        return policy.window
    return msgspec.structs.replace(policy.window, zone=zone or "UTC")


def _days_of(text: str) -> tuple[date, date]:
    found = _DAYS.fullmatch(text)
    try:
        first, last = (date.fromisoformat(each) for each in (found[1], found[2] or found[1])) if found else (None, None)
    except ValueError:
        first = last = None
    if first is None or last is None or not timedelta(0) <= last - first < timedelta(days=MAX_FREEZE_DAYS):
        raise Invalid(
            f"{text!r} is not a day or days; write 2026-12-24, or 2026-12-20..2027-01-02 within {MAX_FREEZE_DAYS} days"
        )
    return first, last


def _zone(name: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise Invalid(f"there is no time zone {name!r}; write an IANA name, as Europe/Berlin") from None
