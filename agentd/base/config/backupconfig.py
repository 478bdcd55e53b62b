"""Reads `[backup]` of the configuration: the backups that a timer makes, and how many of them are kept."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from settings.sections import Key, Keys
from settings.values import BadValue, absolute_path, integer

_RECIPIENT = re.compile(r"age1[02-9ac-hj-np-z]{58}")
MAX_RECIPIENTS = 16


@dataclass(frozen=True, slots=True)
class BackupConfig:
    """`[backup]`: without a directory, nothing is backed up by itself.

    Attributes:
        directory: where the files go.
        recipients: whom they are encrypted for, with age.
        recipient_certificate: instead, the certificate that they are encrypted for, by CMS.
        keep_newest: so many of the newest files are kept;
        keep_daily: and the newest of each day, for so many days with a backup;
        keep_weekly: and the newest of each week, for so many weeks with a backup.
        overdue_hours: a last good backup that is older raises an alert.
    """

    directory: Path | None = None
    recipients: tuple[str, ...] = ()
    recipient_certificate: Path | None = None
    keep_newest: int = 3
    keep_daily: int = 7
    keep_weekly: int = 4
    overdue_hours: int = 48

    @property
    def problem(self) -> str | None:
        """Why the keys do not go together; None if they do."""
        if self.directory is not None and bool(self.recipients) == (self.recipient_certificate is not None):
            return "give 'recipients' or 'recipient_certificate' in [backup], one of them"
        return None


def _recipients(value: Any) -> tuple[str, ...]:
    found = value if isinstance(value, list) else [value]
    if not 0 < len(found) <= MAX_RECIPIENTS or not all(isinstance(each, str) and _RECIPIENT.fullmatch(each) for each in found):
        raise BadValue(
            f"must be an age recipient ('age-keygen -y' prints it: age1 and 58 more characters), or 1 to {MAX_RECIPIENTS}"
        )
    return tuple(found)


BACKUP_KEYS: Keys = {
    "directory": Key(absolute_path, required=True),
    "recipients": Key(_recipients),
    "recipient_certificate": Key(absolute_path),
    "keep_newest": Key(integer(1, 1000)),
    "keep_daily": Key(integer(0, 3660)),
    "keep_weekly": Key(integer(0, 520)),
    "overdue_hours": Key(integer(1, 8760)),
}
