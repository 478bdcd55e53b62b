"""Decides by the counters of a rollout's groups whether the next group starts, the rollout stops, or is finished. Pure.

Only the counters decide, so the order of the reports that led to them makes no difference. A device that was left out counts
for nothing; a group of which every device was left out has shown nothing, and no group starts because of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .states import Group


@dataclass(frozen=True, slots=True)
class Counts:
    """A group: its state, its limits, and how many devices are in which state.

    Attributes:
        number: its place; 1 is the first.
        state: how far it has come.
        success_percent: of the devices that count have to prove the update before the next group starts.
        failure_percent: of the devices that count may not fail: at so many, the rollout stops.
        failure_count: so many devices may not fail, whatever their share is; None for no such limit.
        total: devices of the group.
        waiting: of them have no order.
        under_way: have one that is not done.
        proved: run the update.
        failed: have failed or refused.
        left_out: do not count.
    """

    number: int
    state: Group
    success_percent: int
    failure_percent: int
    failure_count: int | None
    total: int
    waiting: int = 0
    under_way: int = 0
    proved: int = 0
    failed: int = 0
    left_out: int = 0

    @property
    def counted(self) -> int:
        """Devices that count."""
        return self.total - self.left_out

    @property
    def open(self) -> int:
        """Devices of which something is still to come."""
        return self.waiting + self.under_way

    @property
    def met(self) -> bool:
        """Whether enough devices have proved the update."""
        return self.proved > 0 and self.proved * 100 >= self.success_percent * self.counted

    @property
    def broken(self) -> bool:
        """Whether too many devices have failed."""
        if self.failed and self.failed * 100 >= self.failure_percent * self.counted:
            return True
        return self.failure_count is not None and self.failed >= self.failure_count

    @property
    def out_of_reach(self) -> bool:
        """Whether not enough devices can prove the update any more."""
        if self.counted == 0:
            return self.total > 0
        return (self.proved + self.open) * 100 < self.success_percent * self.counted

    @property
    def decides(self) -> bool:
        """Whether the counters of this group alone say that something is to be decided."""
        if self.state is Group.RUNNING and (self.met or self.out_of_reach):
            return True
        return self.state in (Group.RUNNING, Group.SUCCEEDED) and (self.broken or self.open == 0)


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done now.

    Attributes:
        succeeded: number of the group that has succeeded.
        start: number of the group that starts.
        failed: number of the group for which the rollout stops.
        reason: why it stops, for people.
        finish: whether the rollout is finished.
    """

    succeeded: int | None = None
    start: int | None = None
    failed: int | None = None
    reason: str = ""
    finish: bool = False


NOTHING = Decision()


def decide(groups: Sequence[Counts], *, may_start: bool = True) -> Decision:
    """What the counters of all groups say, which are in the order of their numbers.

    Args:
        groups: every group of the rollout.
        may_start: whether a group may start now; not in a rollout that is paused.
    """
    begun = [group for group in groups if group.state is not Group.WAITING]
    for group in begun:
        if group.broken and group.state is not Group.FAILED:
            return Decision(failed=group.number, reason=_broken(group))
    if not begun or any(group.state is Group.FAILED for group in begun):
        return NOTHING
    present, later = begun[-1], groups[len(begun) :]
    if present.state is Group.RUNNING and not present.met:
        if present.out_of_reach and (later or present.counted):
            return Decision(failed=present.number, reason=_out_of_reach(present))
        if present.counted:
            return NOTHING
    succeeded = present.number if present.state is Group.RUNNING else None
    if later:
        return Decision(succeeded, later[0].number) if may_start else NOTHING
    finish = all(group.open == 0 for group in groups)
    return Decision(succeeded, finish=finish) if finish or succeeded is not None else NOTHING


def _broken(group: Counts) -> str:
    if group.failure_count is not None and group.failed >= group.failure_count:
        return f"group {group.number}: {group.failed} devices have failed, and {group.failure_count} are the limit"
    failed = f"{group.failed} of {group.counted} devices have failed"
    return f"group {group.number}: {failed}, and {group.failure_percent} % are the limit"


def _out_of_reach(group: Counts) -> str:
    if group.counted == 0:
        return f"group {group.number}: each of its {group.total} devices was left out, so nothing shows that the update works"
    return (
        f"group {group.number}: {group.proved} of {group.counted} devices have proved the update and {group.open} still may, "
        f"which cannot become {group.success_percent} %"
    )
