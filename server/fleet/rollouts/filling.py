"""Puts the devices of a new rollout into its groups: one INSERT ... SELECT, however many groups and devices there are.

The statement has a layer for each run of groups by share or number, and for each group by selection. A layer of the first kind
numbers those that are left by the hash of their ids, and its groups take them in that order; one of the second kind takes those
of its selection that are left. Devices are written in the order of their ids, so that the indexes grow at their ends.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, Subquery, case, cast, func, insert, literal, null, select
from sqlalchemy.orm import Session

from server.agents.registry import ACTIVE
from server.fleet.devices.registry import AGENT
from server.fleet.devices.selection import parse, selecting
from server.registry.dialect import spread
from server.registry.models.core import Agent
from server.registry.models.fleets import Device as DeviceRow
from server.registry.models.rollouts import RolloutDevice

from .policy import Take, size_of
from .states import Device

REVOKED = "the agent was revoked before the rollout"
MAX_NAME_CHARS = 64


def fill(session: Session, rollout_id: str, chosen: Select[Any], takes: Sequence[Take], total: int, now: int) -> list[str]:
    """Writes the devices of a rollout, and returns the names of its groups, the first one's first. Empty groups are left out.

    Args:
        session: of a writing transaction.
        rollout_id: of the rollout; the hash of a device's id begins with it, so that each rollout has other devices first.
        chosen: the ids of the devices, each once.
        takes: what each group takes; the last one takes the rest.
        total: how many devices are chosen.
        now: seconds since 1970 UTC.
    """
    taken = _taken(session, rollout_id, chosen, takes, total)
    present = _not_empty(session, taken, takes, total)
    # A device that comes between two statements may belong to a group that was empty: it goes into the one behind it.
    number_of = [min(sum(present[:place]), sum(present) - 1) + 1 for place in range(len(takes))]
    number = case(*((taken.c.take == place, number) for place, number in enumerate(number_of)), else_=number_of[-1])
    lost = (taken.c.kind == AGENT) & (Agent.status.is_(None) | (Agent.status != ACTIVE))
    query = (
        select(
            literal(rollout_id),
            taken.c.id,
            number,
            case((lost, Device.LEFT_OUT.value), else_=Device.WAITING.value),
            case((lost, REVOKED), else_=""),
            literal(now),
        )
        .outerjoin(Agent, Agent.id == taken.c.id)
        .order_by(taken.c.id)
    )
    names = ("rollout_id", "device_id", "group_number", "state", "detail", "updated_at")
    session.execute(insert(RolloutDevice).from_select(names, query))
    return [take.text[:MAX_NAME_CHARS] for take, is_there in zip(takes, present, strict=True) if is_there]


def _taken(session: Session, rollout_id: str, chosen: Select[Any], takes: Sequence[Take], total: int) -> Subquery:
    """Each chosen device with the place of the group that takes it, from 0 on."""
    nobody = cast(null(), BigInteger)
    chosen_ids = chosen.subquery()
    of_device = chosen_ids.c[0] == DeviceRow.id
    layer = select(DeviceRow.id, DeviceRow.kind, nobody.label("take")).join(chosen_ids, of_device).subquery()
    place = 0
    while place < len(takes):
        take = takes[place]
        if take.is_rest:
            following: ColumnElement[Any] = func.coalesce(layer.c.take, place)
        elif take.selection is not None:
            ids = selecting(session, parse(take.selection))
            following = case((layer.c.take.is_(None) & layer.c.id.in_(ids), place), else_=layer.c.take)
        else:
            run = _run(takes, place)
            hashed = spread(session, literal(rollout_id + "/") + layer.c.id)
            # Those that are taken are numbered by themselves, and keep their place.
            rank = func.row_number().over(partition_by=layer.c.take.is_(None), order_by=hashed).label("rank")
            layer = select(layer.c.id, layer.c.kind, layer.c.take, rank).subquery()
            ends = accumulate(size_of(each, total) or 0 for each in run)
            upto = [(layer.c.rank <= end, place + offset) for offset, end in enumerate(ends)]
            following = case((layer.c.take.is_not(None), layer.c.take), *upto, else_=None)
            place += len(run) - 1
        layer = select(layer.c.id, layer.c.kind, following.label("take")).subquery()
        place += 1
    return layer


def _run(takes: Sequence[Take], first: int) -> list[Take]:
    """The groups by share or number that follow each other, from one on."""
    end = first
    while takes[end].selection is None and not takes[end].is_rest:
        end += 1
    return list(takes[first:end])


def _not_empty(session: Session, taken: Subquery, takes: Sequence[Take], total: int) -> list[bool]:
    """Which groups take a device. Worked out, unless a selection is among them: what that leaves only the database knows."""
    if any(take.selection is not None for take in takes):
        there = set(session.scalars(select(taken.c.take).distinct()))
        return [place in there for place in range(len(takes))]
    before = accumulate((size_of(take, total) or 0 for take in takes), initial=0)
    return [size != 0 and start < total for start, size in zip(before, (size_of(take, total) for take in takes), strict=False)]
