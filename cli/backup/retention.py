"""Decides which backups are kept. Pure: it goes by the times in their names, and nothing is removed here.

Kept are the newest ones, the newest of each day, and the newest of each week: days and weeks (ISO 8601) of UTC in which a
backup was made, so that a machine that was off for a month keeps what it had.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

NAME_BEGINS = "license-agent-"
_NAME = re.compile(r"license-agent-(?P<agent>[A-Za-z0-9][A-Za-z0-9._-]*)-(?P<made>\d{8}T\d{6}Z)\.backup")
_FORM = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True, slots=True)
class Kept:
    """How many backups are kept.

    Attributes:
        newest: at least 1.
        daily: days.
        weekly: weeks.
    """

    newest: int
    daily: int
    weekly: int


def name_of(agent_id: str, made: int) -> str:
    """The name of a backup that is made at a time, seconds since 1970."""
    return f"license-agent-{agent_id}-{datetime.fromtimestamp(made, UTC).strftime(_FORM)}.backup"


def made_at(agent_id: str, name: str) -> datetime | None:
    """When the backup with a name was made; None if the name is not that of a backup of this agent."""
    found = _NAME.fullmatch(name)
    return None if found is None or found["agent"] != agent_id else _made(found)


def _made(found: "re.Match[str] | None") -> datetime | None:
    if found is None:
        return None
    try:
        return datetime.strptime(found["made"], _FORM).replace(tzinfo=UTC)
    except ValueError:
        return None  # the 30th of February


def newest_of(names: Iterable[str]) -> datetime | None:
    """When the newest backup of any agent among names was made; None if none is one."""
    return max((made for name in names if (made := _made(_NAME.fullmatch(name))) is not None), default=None)


def superfluous(agent_id: str, names: Iterable[str], kept: Kept) -> list[str]:
    """The backups of an agent that are not kept, oldest first. Other names are nobody's business, and never among them.

    Args:
        agent_id: whose backups.
        names: of files in one directory.
        kept: how many are kept.
    """
    dated = [(made, name) for name in names if (made := made_at(agent_id, name)) is not None]
    dated.sort(reverse=True)
    stay = {name for _, name in dated[: max(kept.newest, 1)]}
    for most, period in ((kept.daily, _day), (kept.weekly, _week)):
        first: dict[tuple[int, ...], str] = {}
        for made, name in dated:
            first.setdefault(period(made), name)
        stay |= set([*first.values()][:most])
    return [name for _, name in reversed(dated) if name not in stay]


def _day(made: datetime) -> tuple[int, ...]:
    return made.year, made.month, made.day


def _week(made: datetime) -> tuple[int, ...]:
    year, week, _ = made.isocalendar()
    return year, week
