"""Checks the REST interface, where its package is installed: its configuration, its unit, and whether the agent hears it."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509

from cli.doctor.machine import CannotTell, Machine, Stat
from cli.doctor.system.unit_checks import MANAGE, asked, has_manage
from cli.doctor.verdict import Check, Judgment, fail, note, warn
from common.text import quantity

USER = "license-agent-manage"
FILE = "manage.toml"
DAY_S = 86_400
SOON_DAYS = 30
"""Nobody renews its certificate but an administrator, by hand: as long before as the agent says it of the admin CA."""


@dataclass(frozen=True, slots=True)
class Rest:
    """The REST interface of this machine.

    Attributes:
        installed: its package is.
        file: its configuration; None where it does not exist.
        problems: why the program refuses it.
        active: what systemd says: `active`, `inactive`, `failed` and so on.
        enabled: it is started at boot.
        admitted: its user is in `[management] allowed_uids` of the agent.
        unreadable: files that its user cannot read.
        ends: end of its certificate, seconds since 1970; None where it cannot be read.
        now: the time to compare that with.
    """

    installed: bool
    file: Path | None = None
    problems: tuple[str, ...] = ()
    active: str = "inactive"
    enabled: bool = False
    admitted: bool = True
    unreadable: tuple[Path, ...] = ()
    ends: int | None = None
    now: int = 0


def _rest(machine: Machine) -> Rest:
    if not has_manage(machine):
        return Rest(False)
    unit = next((each for each in asked(machine, "Id,ActiveState,UnitFileState", MANAGE) if each["Id"] == MANAGE), {})
    active, enabled = unit.get("ActiveState", ""), unit.get("UnitFileState") == "enabled"
    file = machine.layout.config.with_name(FILE)
    if machine.stat(file) is None:
        return Rest(True, active=active, enabled=enabled)
    done = machine.program("license-agent-manage", "check-config", "--config", str(file))
    problems = [line.removeprefix("license-agent-manage: ") for line in done.stderr.splitlines() if line.strip()]
    if done.status != 0 and not problems:
        problems = [f"license-agent-manage refuses {file} and gives no reason"]
    certificate, key = _tls_files(machine, file)
    return Rest(
        True,
        file,
        tuple(problems if done.status else ()),
        active,
        enabled,
        _is_admitted(machine),
        tuple(path for path in (file, certificate, key) if path is not None and not _readable(machine, path)),
        None if certificate is None else _end(machine, certificate),
        int(machine.now),
    )


def _tls_files(machine: Machine, file: Path) -> tuple[Path | None, Path | None]:
    """Certificate and key, by the configuration; what is wrong with that, `check-config` says."""
    try:
        tls = tomllib.loads(machine.text(file)).get("tls")
    except tomllib.TOMLDecodeError:
        return None, None
    names = [tls.get(name) for name in ("certificate", "key")] if isinstance(tls, dict) else [None, None]
    certificate, key = (Path(name) if isinstance(name, str) and name.startswith("/") else None for name in names)
    return certificate, key


def _is_admitted(machine: Machine) -> bool:
    try:
        management = tomllib.loads(machine.text(machine.layout.config)).get("management")
    except (FileNotFoundError, tomllib.TOMLDecodeError):
        return True  # config.agent says what is wrong with the file
    allowed = management.get("allowed_uids") if isinstance(management, dict) else None
    user = machine.users.get(USER)
    return isinstance(allowed, list) and any(each == USER or (user is not None and each == user.uid) for each in allowed)


def _readable(machine: Machine, path: Path) -> bool:
    """Whether the program's user can read a file; one that does not exist is named by `check-config`."""
    found, user = machine.stat(path, follow=True), machine.users.get(USER)
    if found is None:
        return True
    if user is None:
        raise CannotTell(f"there is no user {USER}", "apt install --reinstall license-agent-manage")
    return bool(found.mode & _read_bit(machine, found, user.uid, user.gid))


def _read_bit(machine: Machine, found: Stat, uid: int, gid: int) -> int:
    if found.uid == uid:
        return 0o400
    members = machine.groups.get(machine.group_name(found.gid), (0, ()))[1]
    return 0o040 if found.gid == gid or USER in members else 0o004


def _end(machine: Machine, certificate: Path) -> int | None:
    try:
        found = x509.load_pem_x509_certificate(machine.bytes(certificate))
    except (OSError, ValueError, x509.InvalidVersion):
        return None  # the program itself says why it refuses the file
    return int(found.not_valid_after_utc.timestamp())


def _judge_rest(found: Rest) -> Judgment:
    if not found.installed:
        return [note("license-agent-manage is not installed")]
    if found.file is None:
        return [note(f"it is off: there is no {FILE}")]
    judged: Judgment = []
    fix = f"correct {found.file}, then run: license-agent-manage check-config && systemctl restart license-agent-manage"
    judged += [fail(problem, fix) for problem in found.problems]
    if found.active != "active" and not found.enabled:
        return judged or [note("it is switched off")]
    if found.active not in ("active", "failed"):  # units.active says how it has failed
        judged.append(fail(f"{MANAGE} is {found.active or 'unknown to systemd'}", f"systemctl start {MANAGE}"))
    if not found.enabled:
        judged.append(warn(f"{MANAGE} is disabled: it does not start at the next boot", f"systemctl enable {MANAGE}"))
    if not found.admitted:
        judged.append(
            fail(
                f"the agent does not let {USER} use its admin socket",
                f'add "{USER}" to [management] allowed_uids in config.toml, then run: systemctl reload license-agent',
            )
        )
    judged += [
        fail(f"{USER} cannot read {path}", f"chgrp {USER} {path} && chmod g+r {path} && systemctl restart {MANAGE}")
        for path in found.unreadable
    ]
    return [*judged, *_certificate(found)]


def _certificate(found: Rest) -> Judgment:
    """What is to be said of the certificate that clients see."""
    if found.ends is None:
        return []
    days = (found.ends - found.now) // DAY_S
    fix = "make another one; the guide 'Manage the agent over REST' says how"
    if days < 0:
        return [fail(f"the certificate of the REST interface ended {quantity(-days, 'day')} ago", fix)]
    if days < SOON_DAYS:
        return [warn(f"the certificate of the REST interface ends in {quantity(days, 'day')}", fix)]
    return [note(f"its certificate lasts {quantity(days, 'day')} more")]


CHECKS: tuple[Check[Any], ...] = (
    Check(
        "manage.service",
        "The REST interface serves as configured, or is off",
        "`license-agent-manage check-config`, `systemctl show` of its unit, manage.toml and its files, config.toml",
        _rest,
        _judge_rest,
    ),
)
