"""Judges whether the last good backup is overdue. `license-agent-cli backup run` leaves a file about it, which the agent reads.

A file that cannot be read, or that says a time to come, is no good backup.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from agentd.base.config.backupconfig import BackupConfig
from agentd.base.configstatus import ConfigStatus
from common.files import write_atomic

FILE_NAME = "backup.json"
MAX_BYTES = 4096
AHEAD_S = 86_400
"""A backup that is dated so far ahead was made under another clock; it says nothing about its age."""


class BackupRecord(msgspec.Struct, frozen=True):
    """What is known of the backups that the timer makes.

    Attributes:
        last_good: when the last good one was made, seconds since 1970 UTC by the machine's clock; None if there was none.
        file: its path.
        last_run: when the last attempt was.
        problem: why the last attempt failed; empty if it did not.
    """

    last_good: int | None = None
    file: str = ""
    last_run: int | None = None
    problem: str = ""

    def after(self, now: int, file: str, problem: str) -> "BackupRecord":
        """The record after an attempt; a failure keeps what is known of the last good backup."""
        if problem:
            return BackupRecord(self.last_good, self.file, now, problem[:500])
        return BackupRecord(now, file, now)


@dataclass(frozen=True, slots=True)
class BackupStanding:
    """How the backups are.

    Attributes:
        record: what is known of them.
        overdue: the last good one is too old, or there is none.
        text: what is so, a sentence without a period.
    """

    record: BackupRecord
    overdue: bool
    text: str


def read_record(path: Path) -> BackupRecord:
    """What the file says; a record without a good backup if it cannot be read."""
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_BYTES), type=BackupRecord)
    except FileNotFoundError:
        return BackupRecord()
    except OSError as error:
        return BackupRecord(problem=f"{path} cannot be read: {error.strerror}")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return BackupRecord(problem=f"{path} is not what 'license-agent-cli backup run' writes")


def write_record(path: Path, record: BackupRecord) -> None:
    """Replaces the file. Raises OSError."""
    write_atomic(path, msgspec.json.encode(record) + b"\n")


def judge(config: BackupConfig, record: BackupRecord, now: int) -> BackupStanding | None:
    """How the backups are at a time; None where the configuration wants none.

    Args:
        config: `[backup]`.
        record: what the file says.
        now: seconds since 1970 UTC.
    """
    if config.directory is None:
        return None
    failed = f"; the last attempt failed: {record.problem}" if record.problem else ""
    if record.last_good is None:
        return BackupStanding(record, True, f"no good backup has been made yet{failed}")
    age = now - record.last_good
    if age < -AHEAD_S:
        return BackupStanding(record, True, f"the last good backup is dated in the future{failed}")
    hours = max(age, 0) // 3600
    overdue = age > config.overdue_hours * 3600
    return BackupStanding(record, overdue, f"the last good backup is {hours} hours old, limit {config.overdue_hours}{failed}")


class BackupWatch:
    """Knows what the file said last.

    Args:
        config: in force.
        path: of the file.
    """

    def __init__(self, config: ConfigStatus, path: Path) -> None:
        self._config = config
        self._path = path
        self._record = read_record(path)

    async def look(self) -> None:
        """Reads the file again."""
        if self._config.config.backup.directory is not None:
            self._record = await asyncio.to_thread(read_record, self._path)

    def standing(self, now: int) -> BackupStanding | None:
        """How the backups are; None where the configuration wants none."""
        return judge(self._config.config.backup, self._record, now)

    def view(self, now: int) -> dict[str, Any] | None:
        """The member `backup` of the reply to `status`."""
        found = self.standing(now)
        if found is None:
            return None
        return {
            "last_good": found.record.last_good,
            "overdue": found.overdue,
            "problem": found.record.problem,
            "text": found.text,
        }
