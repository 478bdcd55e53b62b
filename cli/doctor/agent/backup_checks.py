"""The check of the backups that a timer makes: it runs, and its newest file is not too old."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.backup.retention import NAME_BEGINS, newest_of
from cli.doctor.machine import CannotTell, Machine
from cli.doctor.system.unit_checks import asked
from cli.doctor.verdict import Check, Judgment, fail, note, unknown, warn
from common.text import quantity

TIMER, SERVICE = "license-agent-backup.timer", "license-agent-backup.service"
HOUR_S = 3600


@dataclass(frozen=True, slots=True)
class TimedBackups:
    """How the timed backups are.

    Attributes:
        directory: where they go; None where the configuration wants none.
        overdue_hours: how old the newest may be.
        age: of the newest, seconds; None if there is none.
        timer: what systemd says of the timer; empty where it was not asked.
        failed: whether the last run failed.
    """

    directory: Path | None
    overdue_hours: int = 0
    age: float | None = None
    timer: str = ""
    failed: bool = False


def _backups(machine: Machine) -> TimedBackups:
    at = machine.layout
    if at.backup_directory is None:
        return TimedBackups(None)
    try:
        names = machine.names(at.backup_directory)
    except PermissionError:
        raise CannotTell(f"this user may not look into {at.backup_directory}", machine.ask_for_root()) from None
    made = newest_of(name for name in names if name.startswith(NAME_BEGINS))
    timer, failed = "", False
    if at.is_packaged:
        found = {unit["Id"]: unit for unit in asked(machine, "Id,ActiveState,UnitFileState", TIMER, SERVICE)}
        timer = found.get(TIMER, {}).get("ActiveState", "unknown")
        failed = found.get(SERVICE, {}).get("ActiveState") == "failed"
    return TimedBackups(
        at.backup_directory, at.overdue_hours, None if made is None else machine.now - made.timestamp(), timer, failed
    )


def _judge_backups(found: TimedBackups) -> Judgment:
    if found.directory is None:
        return [note("the configuration has no [backup]: nothing is backed up by itself")]
    judged: Judgment = []
    run = "license-agent-cli backup run"
    if found.timer == "unknown":
        judged.append(unknown(f"systemd says nothing of {TIMER}", "apt install --reinstall license-agent"))
    elif found.timer and found.timer != "active":
        judged.append(fail(f"{TIMER} is {found.timer}: no backup is made by itself", f"systemctl enable --now {TIMER}"))
    if found.failed:
        judged.append(fail("the last backup failed", f"journalctl -u {SERVICE} -n 20; then: {run}"))
    if found.age is None:
        judged.append(fail(f"there is no backup in {found.directory}", run))
    elif found.age < -HOUR_S:
        judged.append(warn(f"the newest backup in {found.directory} is dated in the future", "compare the clock; then: " + run))
    elif found.age > found.overdue_hours * HOUR_S:
        judged.append(fail(f"the newest backup in {found.directory} is {_old(found.age)} old", run))
    else:
        judged.append(note(f"the newest backup is {_old(found.age)} old; only where its key is, 'backup verify' proves it"))
    return judged


def _old(age: float) -> str:
    return quantity(max(int(age), 0) // HOUR_S, "hour")


CHECKS: tuple[Check[Any], ...] = (
    Check(
        "backup.timed",
        "Backups are made by themselves, where that is configured",
        "`[backup]` of the configuration, its directory, `systemctl show` of the timer",
        _backups,
        _judge_backups,
    ),
)
