"""Checks of who may sign in to the host: sshd, accounts, and the age of keys."""

import re
import sqlite3
import struct
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from cli.doctor.machine import CannotTell, Machine
from cli.doctor.verdict import Check, Judgment, fail, note, unknown, warn
from common.text import quantity

DAY_S = 86_400
UNUSED_DAYS = 180
KEY_DAYS = 183
"""Six months: keys are renewed at least that often."""
_NO_SHELL = re.compile(r".*/(nologin|false|sync|shutdown|halt)$|^$")


def _sshd(machine: Machine) -> dict[str, str] | None:
    if machine.stat("/usr/sbin/sshd") is None:
        return None
    if machine.uid != 0:
        raise CannotTell("only root may read what sshd is configured to", machine.ask_for_root())
    done = machine.program("/usr/sbin/sshd", "-T")
    if done.status != 0:
        raise CannotTell(f"sshd -T gives no answer: {done.stderr.strip()}", "sshd -t")
    return dict(line.split(None, 1) for line in done.stdout.lower().splitlines() if " " in line)


_SSHD_WANTED = {
    "passwordauthentication": ("no",),
    "kbdinteractiveauthentication": ("no",),
    "permitemptypasswords": ("no",),
    "permitrootlogin": ("no",),
    "pubkeyauthentication": ("yes",),
    "hostbasedauthentication": ("no",),
}
_SSHD_NAMES = {
    "passwordauthentication": "PasswordAuthentication",
    "kbdinteractiveauthentication": "KbdInteractiveAuthentication",
    "permitemptypasswords": "PermitEmptyPasswords",
    "permitrootlogin": "PermitRootLogin",
    "pubkeyauthentication": "PubkeyAuthentication",
    "hostbasedauthentication": "HostbasedAuthentication",
}


def _judge_sshd(found: dict[str, str] | None) -> Judgment:
    if found is None:
        return [note("sshd is not installed")]
    judged: Judgment = []
    for key, wanted in _SSHD_WANTED.items():
        value, name = found.get(key), _SSHD_NAMES[key]
        fix = f"echo '{name} {wanted[0]}' >>/etc/ssh/sshd_config.d/00-license-agent.conf && systemctl reload ssh"
        if value is None:
            judged.append(unknown(f"sshd does not say how {name} is set"))
        elif value not in wanted:
            # Root by key only is no password, but still root from the network.
            by_key = key == "permitrootlogin" and value in ("prohibit-password", "without-password", "forced-commands-only")
            judged.append((warn if by_key else fail)(f"sshd has {name} {value}, not {wanted[0]}", fix))
    return judged


@dataclass(frozen=True, slots=True)
class Account:
    """Somebody who may have a shell.

    Attributes:
        name: of the user.
        uid: likewise.
        password: `set`, `empty` or `locked`.
        keys: lines in files of authorized keys.
        last: the last time that somebody signed in, seconds since 1970; None if never, or if nothing records it.
        since: when the password was last set, which is when a new account was made; None if it is not recorded.
    """

    name: str
    uid: int
    password: str
    keys: int
    last: int | None
    since: int | None


@dataclass(frozen=True, slots=True)
class Accounts:
    """All who may have a shell, whether anything records who signs in, and the time."""

    accounts: tuple[Account, ...]
    recorded: bool
    now: float


_LASTLOG = struct.Struct("=i32s256s")
_UTMP = struct.Struct("=hi32s4s32s256shhiii")
"""The beginning of struct utmp (utmp(5)); 384 bytes in all."""
_UTMP_BYTES, _USER_PROCESS = 384, 7


def _logins(machine: Machine) -> dict[str, int] | None:
    """When each user last signed in; None if nothing records it."""
    found: dict[str, int] = {}
    recorded = False
    for path, query in (
        ("/var/lib/lastlog/lastlog2.db", "SELECT Name, Time FROM Lastlog2"),
        ("/var/lib/wtmpdb/wtmp.db", "SELECT User, MAX(Login) / 1000000 FROM wtmp WHERE Type = 3 GROUP BY User"),
    ):
        if machine.stat(path) is not None:
            with closing(sqlite3.connect(f"file:{machine.at(path)}?mode=ro&immutable=1", uri=True)) as database:
                for name, when in database.execute(query):
                    found[str(name)] = max(int(when), found.get(str(name), 0))
            recorded = True
    if machine.stat("/var/log/lastlog") is not None:
        data = machine.bytes("/var/log/lastlog")
        for user in machine.users.values():
            place = user.uid * _LASTLOG.size
            if place + _LASTLOG.size <= len(data):
                when = _LASTLOG.unpack_from(data, place)[0]
                if when:
                    found[user.name] = max(when, found.get(user.name, 0))
        recorded = True
    if machine.stat("/var/log/wtmp") is not None:
        data = machine.bytes("/var/log/wtmp")
        for at in range(0, len(data) - _UTMP_BYTES + 1, _UTMP_BYTES):
            kind, _, _, _, name, _, _, _, _, when, _ = _UTMP.unpack_from(data, at)
            if kind == _USER_PROCESS:
                text = name.rstrip(b"\0").decode("utf-8", "replace")
                found[text] = max(when, found.get(text, 0))
        recorded = True
    return found if recorded else None


def _key_files(machine: Machine) -> dict[str, list[str]]:
    """The files of authorized keys of each user with a shell."""
    return {
        user.name: [
            path
            for name in ("authorized_keys", "authorized_keys2")
            if machine.stat(path := f"{user.home}/.ssh/{name}", follow=True) is not None
        ]
        for user in machine.users.values()
        if not _NO_SHELL.match(user.shell)
    }


def _keys_in(text: str) -> int:
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in text.splitlines())


def _accounts(machine: Machine) -> Accounts:
    try:
        shadow = {
            line.split(":")[0]: line.split(":") for line in machine.text("/etc/shadow").splitlines() if line.count(":") >= 8
        }
    except PermissionError:
        raise CannotTell("only root may read who has a password", machine.ask_for_root()) from None
    logins = _logins(machine)
    files = _key_files(machine)
    found = []
    for user in machine.users.values():
        if _NO_SHELL.match(user.shell):
            continue
        entry = shadow.get(user.name)
        hashed = entry[1] if entry else "*"
        password = "empty" if not hashed else "locked" if hashed[0] in "!*" else "set"
        keys = sum(_keys_in(machine.text(path)) for path in files[user.name])
        since = int(entry[2]) * DAY_S if entry and entry[2].isdigit() else None
        found.append(Account(user.name, user.uid, password, keys, (logins or {}).get(user.name), since))
    return Accounts(tuple(found), logins is not None, machine.now)


def _judge_accounts(found: Accounts) -> Judgment:
    judged: Judgment = []
    unsure = []
    for account in found.accounts:
        name = account.name
        if account.uid == 0 and name != "root":
            judged.append(
                fail(f"the account {name} is root by another name (uid 0)", f"userdel {name}, or give it a uid of its own")
            )
        if account.password == "empty":
            judged.append(fail(f"the account {name} has a shell and an empty password", f"passwd --lock {name}"))
        if account.password == "locked" and not account.keys:
            continue
        if not found.recorded:
            unsure.append(name)
            continue
        latest = max((when for when in (account.last, account.since) if when is not None), default=0)
        days = int(found.now - latest) // DAY_S
        if days > UNUSED_DAYS:
            used = f"for {quantity(days, 'day')}" if account.last else "ever"
            judged.append(
                warn(
                    f"nobody has signed in as {name} {used}, and the account is open",
                    f"usermod --lock --expiredate 1 --shell /usr/sbin/nologin {name}",
                )
            )
    if unsure:
        judged.append(
            unknown(
                f"nothing on this machine records who signs in, so {', '.join(unsure)} may be unused",
                "apt install libpam-lastlog2 or wtmpdb, or look at: journalctl -t sshd",
            )
        )
    able = [account.name for account in found.accounts if account.password == "set" or account.keys]
    return judged or [note(f"can sign in: {', '.join(able)}" if able else "nobody can sign in")]


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A file with keys: who they are for, how many there are, and when it was last changed."""

    path: str
    keys: int
    mtime: float


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """The authorized keys, the host's keys, and the time."""

    authorized: tuple[KeyFile, ...]
    host: tuple[KeyFile, ...]
    now: float


def _keys(machine: Machine) -> KeyFiles:
    authorized = []
    for paths in _key_files(machine).values():
        for path in paths:
            stat = machine.stat(path, follow=True)
            keys = _keys_in(machine.text(path))
            if stat is not None and keys:
                authorized.append(KeyFile(path, keys, stat.mtime))
    host = []
    for name in machine.names("/etc/ssh"):
        if re.fullmatch(r"ssh_host_\w+_key", name):
            stat = machine.stat(f"/etc/ssh/{name}")
            if stat is not None:
                host.append(KeyFile(f"/etc/ssh/{name}", 1, stat.mtime))
    return KeyFiles(tuple(authorized), tuple(host), machine.now)


def _judge_keys(found: KeyFiles) -> Judgment:
    judged: Judgment = []
    for file in found.authorized:
        days = int(found.now - file.mtime) // DAY_S
        if days > KEY_DAYS:
            judged.append(
                warn(
                    f"the {quantity(file.keys, 'key')} in {file.path} did not change for {days} days, over 6 months",
                    f"let their owners make new keys (ssh-keygen -t ed25519), then replace the lines in {file.path}",
                )
            )
    old = [file for file in found.host if int(found.now - file.mtime) // DAY_S > KEY_DAYS]
    if old:
        names = ", ".join(file.path.rsplit("/", 1)[1] for file in old)
        judged.append(
            warn(
                f"the host keys {names} are older than 6 months",
                "rm /etc/ssh/ssh_host_*_key* && ssh-keygen -A && systemctl restart ssh",
            )
        )
    if not judged:
        count = sum(file.keys for file in found.authorized)
        judged.append(
            note(f"{quantity(count, 'authorized key')}, {quantity(len(found.host), 'host key')}, none older than 6 months")
        )
    return judged


CHECKS: tuple[Check[Any], ...] = (
    Check("host.ssh", "sshd admits keys only, and not root", "`sshd -T`", _sshd, _judge_sshd),
    Check(
        "host.accounts",
        "Each account that can sign in is used",
        "`/etc/passwd`, `/etc/shadow`, records of sign-ins",
        _accounts,
        _judge_accounts,
    ),
    Check(
        "host.keys",
        "Keys of SSH are not older than 6 months",
        "`authorized_keys` of each account, `/etc/ssh`",
        _keys,
        _judge_keys,
    ),
)
