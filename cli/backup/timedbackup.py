"""Makes the backup that `[backup]` of the configuration describes, and removes those that are no longer kept. A timer runs it.

The last good backup is one whose file was read back and is what was written. The agent hears of a good one, and raises
the alarm when there has been none for too long: a timer that does not run tells nobody.
"""

import contextlib
import json
import os
import stat
import time
from pathlib import Path
from typing import Any

import click

from cli.agent import Agent, pass_agent
from common.files import create, fsync_directory, os_problem

from .backup import BackupFailed, config_option, encrypt, run_agent
from .retention import Kept, name_of, superfluous


@click.command()
@config_option
@pass_agent
def run(agent: Agent, config: str) -> None:
    """Make the backup that [backup] of the configuration describes, and remove old ones. A timer runs this."""
    words = ["--config", config, "backup"]
    settings: dict[str, Any] = json.loads(run_agent([*words, "--settings"], b""))
    try:
        reply = _made(words, settings, int(time.time()))
    except (BackupFailed, OSError, SystemExit) as error:
        problem = _problem(error)
        with contextlib.suppress(BackupFailed, SystemExit):
            _note(words, problem=problem)
        raise BackupFailed(f"no backup was made: {problem}") from None
    _note(words, file=reply["file"])
    removed = f"; removed {len(reply['removed'])} that are not kept any more" if reply["removed"] else ""
    agent.show(reply, f"{reply['file']}: {reply['agent_id']}, generation {reply['generation']}{removed}")


def _problem(error: BaseException) -> str:
    if isinstance(error, OSError):
        return os_problem(error)
    # What it says itself is on standard error.
    return error.message if isinstance(error, BackupFailed) else "license-agent could not collect it"


def _made(words: list[str], settings: dict[str, Any], now: int) -> dict[str, Any]:
    data = run_agent(words, b"")
    content = json.loads(data)
    agent_id = str(content["agent_id"])
    if not agent_id or not content["generation"]:
        raise BackupFailed("this device is not provisioned, so there is nothing to back up")
    certificate = settings["recipient_certificate"]
    sealed = encrypt(data, tuple(settings["recipients"]), None if certificate is None else Path(certificate))
    directory = Path(settings["directory"])
    _check_directory(directory)
    file = directory / name_of(agent_id, now)
    create(file, sealed)
    fsync_directory(directory)
    if file.read_bytes() != sealed:
        raise BackupFailed(f"{file} is not what was written: check the disk")
    kept = Kept(settings["keep_newest"], settings["keep_daily"], settings["keep_weekly"])
    # The new one stays whatever a wrong clock has left in the directory: names of times to come are newer than it.
    removed = [name for name in superfluous(agent_id, os.listdir(directory), kept) if name != file.name]
    for name in removed:
        (directory / name).unlink()
    return {"file": str(file), "agent_id": agent_id, "generation": content["generation"], "removed": removed}


def _check_directory(directory: Path) -> None:
    """Others must not be able to put a file of theirs in the place of a backup, or to remove one."""
    if not directory.exists():
        directory.mkdir(mode=0o700)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise BackupFailed(f"{directory} is not a directory")
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise BackupFailed(f"{directory} belongs to another user, or others may write to it: chown root, chmod 0700")


def _note(words: list[str], **result: str) -> None:
    run_agent([*words, "--result"], json.dumps(result).encode())
