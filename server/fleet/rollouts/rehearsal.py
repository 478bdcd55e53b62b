"""Says what a rollout would do, and to whom, without changing anything.

The database counts devices that are alike: group, hardware, versions, zone and what is in the way. Each kind is judged once, by
what judges a device at its contact (`fitting`), so the answer is exact for a million devices too.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import and_, case, func, literal, select
from sqlalchemy.orm import Session

from contracts.contact.updates import UPDATES
from server.agents.registry import ACTIVE
from server.base.errors import Conflict
from server.fleet.devices.registry import AGENT
from server.ota.directive_states import OPEN as OPEN_DIRECTIVES
from server.ota.directives import all_paused, hardware_of
from server.registry.models.core import Agent
from server.registry.models.fleets import Device as DeviceRow
from server.registry.models.fleets import DeviceVersion
from server.registry.models.rollouts import Rollout, RolloutDevice
from server.registry.models.updates import UpdateAgent, UpdateDirective, UpdatePackage

from .calendar import next_opening
from .fitting import Running, Wanted, runs_already, unfit
from .policy import Policy, ends_of_freeze, window_of
from .queue import notice_until
from .rows import IS_OPEN, groups_of, policy_of
from .states import LIVE, Device

MAX_SITES = 100
REVOKED = "the agent is revoked"
PAUSED = "updates of the agent are paused"
UNABLE = "the agent has not said that it knows updates: it never asks for an order, and is left out when its time to wait ends"
OTHER = "another order counts, or an earlier rollout of the product: it waits"
UNKNOWN_ZONE = "UTC"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What keeps devices from their order. `for_good`: they are left out; else they wait until it is gone."""

    reason: str
    devices: int
    example: str
    for_good: bool


@dataclass(frozen=True, slots=True)
class Opening:
    """When devices of a time zone may begin if their group starts now, seconds since 1970 UTC. `zone` is None for unknown."""

    zone: str | None
    devices: int
    at: int


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What a group would do.

    Attributes:
        number: the group's.
        name: what it takes.
        devices: in it.
        hit: of them would be given the order.
        already: of them run the build already.
        obstacles: what keeps the others.
        openings: when those that are hit may begin.
    """

    number: int
    name: str
    devices: int
    hit: int
    already: int
    obstacles: tuple[Obstacle, ...]
    openings: tuple[Opening, ...]


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the devices of a site fetch, in bytes. `site` is None for devices without a site."""

    site: str | None
    devices: int
    bytes: int


@dataclass(slots=True)
class _Sum:
    devices: int = 0
    hit: int = 0
    already: int = 0
    obstacles: dict[tuple[str, bool], tuple[int, str]] = field(default_factory=dict)
    zones: dict[str | None, int] = field(default_factory=lambda: defaultdict(int))

    def keep(self, reason: str, count: int, example: str, *, for_good: bool) -> None:
        before, known = self.obstacles.get((reason, for_good), (0, example))
        self.obstacles[reason, for_good] = before + count, min(known, example)


def rehearse(session: Session, rollout: Rollout, now: int) -> tuple[tuple[Rehearsed, ...], tuple[Traffic, ...]]:
    """What a rollout that takes nobody back would do if all its groups started now: by group, and the greatest sites.

    Args:
        session: of any transaction; nothing is written.
        rollout: in any state: only devices without an order count.
        now: seconds since 1970 UTC.

    Raises:
        Conflict: it takes another one back.
    """
    if rollout.rolls_back is not None:
        raise Conflict(
            f"rollout {rollout.id!r} takes {rollout.rolls_back!r} back: 'license-server rollouts show' says how far it is"
        )
    policy, package = policy_of(rollout), session.get(UpdatePackage, rollout.path)
    sums: dict[int, _Sum] = defaultdict(_Sum)
    sites: dict[str | None, list[int]] = defaultdict(lambda: [0, 0])
    paused = all_paused(session)
    for alike in _alike(session, rollout):
        each = sums[alike.group_number]
        each.devices += alike.count
        why, for_good = _obstacle(alike, rollout, policy, package, paused=paused)
        if why == "":
            each.already += alike.count
        elif why is not None:
            each.keep(why, alike.count, alike.example, for_good=for_good)
        else:
            each.hit += alike.count
            each.zones[alike.zone] += alike.count
            sites[alike.site_id][0] += alike.count
            sites[alike.site_id][1] += alike.count * (0 if package is None else package.length)
    begins = ends_of_freeze(policy, max(now, notice_until(rollout) if rollout.started_at else now + policy.notice))
    groups = tuple(
        _rehearsed(group.number, group.name, sums.get(group.number, _Sum()), policy, begins)
        for group in groups_of(session, rollout.id)
    )
    ordered = sorted(sites.items(), key=lambda each: (-each[1][1], each[0] or ""))
    return groups, tuple(Traffic(site, *found) for site, found in ordered[:MAX_SITES])


def _rehearsed(number: int, name: str, found: _Sum, policy: Policy, begins: int) -> Rehearsed:
    obstacles = (Obstacle(why, *rest, for_good) for (why, for_good), rest in found.obstacles.items())
    return Rehearsed(
        number, name, found.devices, found.hit, found.already,
        tuple(sorted(obstacles, key=lambda each: (-each.devices, each.reason))),
        tuple(
            Opening(zone, count, next_opening(window_of(policy, zone), begins))
            for zone, count in sorted(found.zones.items(), key=lambda each: each[0] or "")
        ),
    )  # fmt: skip


def _obstacle(
    alike: Any, rollout: Rollout, policy: Policy, package: UpdatePackage | None, *, paused: bool
) -> tuple[str | None, bool]:
    """Why these devices get no order now, and whether for good; an empty text if they run the build already."""
    if package is None:
        return f"the repository has the package {rollout.path} no more", True
    if alike.kind == AGENT and alike.status != ACTIVE:
        return REVOKED, True
    wanted = Wanted(
        package.path, package.version, package.build_id, hardware_of(package), package.length, package.role
    )  # fmt: skip
    running = None if alike.version is None else Running(alike.version, alike.build_id)
    if runs_already(wanted, running):
        return "", True
    candidate = policy.candidate
    why = unfit(wanted, rollout.build_id, alike.hardware, running, candidate=candidate, downgrade=False)
    if why is not None:
        return why, True
    if alike.kind == AGENT and not alike.able:
        return UNABLE, False
    if alike.kind == AGENT and (paused or alike.paused):
        return PAUSED, False
    return (OTHER, False) if alike.other else (None, False)


def _alike(session: Session, rollout: Rollout) -> Iterable[Any]:
    """Devices without an order, counted by all that decides about them."""
    earlier = (
        select(literal(1))
        .select_from(RolloutDevice)
        .join(Rollout, Rollout.id == RolloutDevice.rollout_id)
        .where(RolloutDevice.device_id == DeviceRow.id, IS_OPEN, RolloutDevice.rollout_id != rollout.id)
        .where(Rollout.product == rollout.product, Rollout.state.in_([each.value for each in LIVE]))
        .correlate(DeviceRow)
        .exists()
    )
    counting = (
        select(literal(1))
        .where(UpdateDirective.agent_id == DeviceRow.id, UpdateDirective.withdraws.is_(None))
        .where(UpdateDirective.state.in_([each.value for each in OPEN_DIRECTIVES]))
        .correlate(DeviceRow)
        .exists()
    )
    mine = RolloutDevice.__table__.alias("mine")
    able = (literal(" ") + Agent.capabilities + literal(" ")).contains(f" {UPDATES} ")
    columns = (
        mine.c.group_number, DeviceRow.kind, DeviceRow.hardware, DeviceRow.zone, DeviceRow.site_id, DeviceVersion.version,
        DeviceVersion.build_id, Agent.status, case((UpdateAgent.paused_at.is_not(None), 1), else_=0).label("paused"),
        case((earlier | counting, 1), else_=0).label("other"), case((able, 1), else_=0).label("able"),
    )  # fmt: skip
    running = and_(DeviceVersion.device_id == DeviceRow.id, DeviceVersion.product == rollout.product)
    query = (
        select(*columns, func.count().label("count"), func.min(DeviceRow.id).label("example"))
        .select_from(mine)
        .join(DeviceRow, DeviceRow.id == mine.c.device_id)
        .outerjoin(DeviceVersion, running)
        .outerjoin(Agent, Agent.id == DeviceRow.id)
        .outerjoin(UpdateAgent, UpdateAgent.agent_id == DeviceRow.id)
        .where(mine.c.rollout_id == rollout.id)
        .where(mine.c.state.in_((Device.WAITING.value, Device.LEFT_OUT.value)))
        .group_by(*columns)
    )
    return session.execute(query)
