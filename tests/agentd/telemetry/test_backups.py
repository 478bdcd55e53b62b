"""When a backup is overdue, by the configuration, the file and the time."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from agentd.base.alerts import BACKUP_OVERDUE
from agentd.base.config.backupconfig import BackupConfig
from agentd.base.config.config import Config, parse_config
from agentd.base.configstatus import ConfigStatus
from agentd.telemetry.backups import BackupRecord, BackupWatch, judge, read_record, write_record
from settings.errors import ConfigError

NOW, HOUR = 1_800_000_000, 3600
RECIPIENT = "age1" + "q" * 58
WANTED = BackupConfig(Path("/backups"), (RECIPIENT,), overdue_hours=48)


@pytest.mark.parametrize(
    ("record", "overdue", "text"),
    [
        (BackupRecord(), True, "no good backup has been made yet"),
        (BackupRecord(problem="no room"), True, "no good backup has been made yet; the last attempt failed: no room"),
        (BackupRecord(NOW - 48 * HOUR), False, "the last good backup is 48 hours old, limit 48"),
        (BackupRecord(NOW - 48 * HOUR - 1), True, "the last good backup is 48 hours old, limit 48"),
        (BackupRecord(NOW - HOUR, problem="no room"), False, "1 hours old, limit 48; the last attempt failed: no room"),
        (BackupRecord(NOW + 24 * HOUR), False, "0 hours old"),
        (BackupRecord(NOW + 24 * HOUR + 1), True, "dated in the future"),
    ],
)
def test_what_is_overdue(record: BackupRecord, overdue: bool, text: str) -> None:
    found = judge(WANTED, record, NOW)
    assert found is not None and (found.overdue, text in found.text) == (overdue, True), found


def test_nothing_is_overdue_where_nothing_is_wanted() -> None:
    assert judge(BackupConfig(), BackupRecord(problem="x"), NOW) is None


def test_an_attempt_that_fails_keeps_the_last_good_one() -> None:
    good = BackupRecord().after(NOW, "/backups/a", "")
    assert (good.last_good, good.file, good.problem) == (NOW, "/backups/a", "")
    failed = good.after(NOW + HOUR, "", "no room" * 500)
    assert (failed.last_good, failed.file, failed.last_run) == (NOW, "/backups/a", NOW + HOUR) and len(failed.problem) == 500
    assert failed.after(NOW + 2 * HOUR, "/backups/b", "").problem == ""


@pytest.mark.parametrize("content", [b"", b"{", b'{"last_good": "soon"}', b"[]", b"\xff", b'{"last_good": 1e400}'])
def test_a_file_that_cannot_be_read_is_no_good_backup(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "backup.json"
    path.write_bytes(content)
    found = read_record(path)
    assert found.last_good is None and found.problem
    assert read_record(tmp_path).last_good is None and read_record(tmp_path / "none") == BackupRecord()


def test_the_watch_follows_file_and_configuration(tmp_path: Path) -> None:
    path = tmp_path / "backup.json"
    status = ConfigStatus(Config())
    watch = BackupWatch(status, path)
    assert watch.view(NOW) is None
    status.config = replace(Config(), backup=WANTED)
    shown = watch.view(NOW)
    assert shown is not None and shown["overdue"] and shown["last_good"] is None
    write_record(path, BackupRecord(NOW - HOUR, "/backups/a", NOW - HOUR))
    assert path.stat().st_mode & 0o777 == 0o600
    asyncio.run(watch.look())
    shown = watch.view(NOW)
    assert shown == {
        "last_good": NOW - HOUR,
        "overdue": False,
        "problem": "",
        "text": "the last good backup is 1 hours old, limit 48",
    }


def test_the_alert_names_the_command() -> None:
    assert "license-agent-cli backup run" in BACKUP_OVERDUE.action


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f'recipients = "{RECIPIENT}"', "'directory' is missing"),
        ('directory = "/b"', "give 'recipients' or 'recipient_certificate'"),
        (f'directory = "/b"\nrecipients = ["{RECIPIENT}"]\nrecipient_certificate = "/c"', "one of them"),
        ('directory = "/b"\nrecipients = ["age1x"]', "must be an age recipient"),
        (f'directory = "/b"\nrecipients = "{RECIPIENT}"\nkeep_newest = 0', "keep_newest"),
    ],
)
def test_a_section_that_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(f"[backup]\n{text}\n", "config.toml")
    assert any(problem in each for each in refused.value.problems), refused.value.problems


def test_a_section_that_is_accepted() -> None:
    found = parse_config(f'[backup]\ndirectory = "/b"\nrecipients = "{RECIPIENT}"\n', "config.toml").backup
    assert found == BackupConfig(Path("/b"), (RECIPIENT,))
