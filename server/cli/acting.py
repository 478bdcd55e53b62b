"""Performs acts for the commands: at a server's operator API, or on this machine as whoever runs the command.

On this machine everything is allowed as long as nobody can sign in as administrator: before the first one has a certificate,
and after the last one has ended. Otherwise the commands that change something need `--local` and `--reason`, and the audit log
gets an alert: else nobody would use the accounts.
"""

import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from sqlalchemy.orm import Session

from server.accounts.accounts import has_administrators
from server.base.errors import RegistryError
from server.registry import audit
from server.registry.database import OPERATOR

SETTINGS = "license-server/client.toml"
"""In the user's configuration directory: which server the commands ask."""
_KEYS = {"server", "root", "certificate", "key", "token"}


@dataclass(frozen=True, slots=True)
class Given:
    """Options that all commands share.

    Attributes:
        server: URL of the operator API.
        root: file of the root certificate.
        certificate: file of the client certificate.
        key: file of its key.
        token: file of a token.
        local: whether to act on this machine although there are administrators.
        reason: why, for the audit log.
        approval: the id of a second person's approval.
    """

    server: str | None = None
    root: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: Path | None = None
    local: bool = False
    reason: str = ""
    approval: str | None = None


def given() -> Given:
    """What the command was given."""
    context = click.get_current_context(silent=True)
    found = None if context is None else context.find_root().obj
    return found if isinstance(found, Given) else Given()


def settings_path() -> Path:
    """The file with the settings of the user who runs the command."""
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home) / SETTINGS


def server_of(options: Given, directory: Path | None) -> Given | None:
    """The options with the server to ask; None for the server in a directory of this machine.

    Raises:
        RegistryError: neither is named, or both, or the settings cannot be used.
    """
    if options.local and options.server is not None:
        raise RegistryError("--local acts on this machine, --server asks another one: give one of them")
    if options.server is not None:
        return options
    if directory is not None or options.local:
        if directory is None:
            raise RegistryError("--local needs the server's directory: give --dir, or set LICENSE_SERVER_DIR")
        return None
    path = settings_path()
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise RegistryError(
            f"no server is named: give --server URL, write {path}, or give --dir on the server's machine"
        ) from None
    except (OSError, ValueError) as problem:
        raise RegistryError(f"{path} cannot be read: {problem}; correct it, or give --server") from None
    wrong = sorted(set(found) - _KEYS) or sorted(key for key, value in found.items() if not isinstance(value, str))
    if wrong or "server" not in found:
        raise RegistryError(f"{path} needs 'server', and may have {', '.join(sorted(_KEYS - {'server'}))}, each a text")
    files = {name: Path(found[name]).expanduser() for name in _KEYS - {"server"} if name in found}
    return Given(
        found["server"], files.get("root"), files.get("certificate"), files.get("key"), files.get("token"),
        reason=options.reason, approval=options.approval,
    )  # fmt: skip


def perform(act_name: str, directory: Path | None, /, **body: Any) -> Any:
    """Performs an act of the catalog and returns its result.

    Args:
        act_name: of the act.
        directory: of the server on this machine; None if none was named.
        body: members of the act's form; one that is None is left out.

    Raises:
        RegistryError: it cannot be performed; the text says what to do.
    """
    # What a command needs is imported when it is used: the catalog takes a third of a second.
    from pydantic import ValidationError

    from server.acts import caller
    from server.acts.catalog import BY_NAME
    from server.acts.runner import Runner

    from .options import now, opened
    from .remote import Remote, Where

    act, options = BY_NAME[act_name], given()
    try:
        form = act.body(**{key: value for key, value in body.items() if value is not None})
    except ValidationError as problem:
        first = problem.errors()[0]
        raise RegistryError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    asked = server_of(options, directory)
    if asked is not None:
        remote = Remote(Where(asked.server or "", asked.root, asked.certificate, asked.key, asked.token))
        return remote.perform(act, form, asked.reason, asked.approval)
    assert directory is not None
    with opened(directory) as server:
        if not act.reads:
            with server.database.write() as session:
                require_local(session, act_name, now())
        return Runner(server).perform(act, caller.local(server.database.operator), form, now(), options.reason)


def listed(act_name: str, directory: Path | None, limit: int | None, /, **body: Any) -> Iterator[list[Any]]:
    """The pages of a list, to its end or to so many rows."""
    after = None
    while limit is None or limit > 0:
        size = 500 if limit is None else min(500, limit)
        page = perform(act_name, directory, limit=size, after=after, **body)
        if page.items:
            yield list(page.items)
        after = page.after
        if after is None:
            return
        limit = None if limit is None else limit - len(page.items)


def require_local(session: Session, what: str, now: int) -> None:
    """Returns if the command may change something on this machine.

    Args:
        session: of a writing transaction: of the change, or of its own.
        what: the act or command, for the audit log.
        now: seconds since 1970 UTC.

    Raises:
        RegistryError: there are administrators, and `--local` or `--reason` is missing.
    """
    if not has_administrators(session, now):
        return
    options = given()
    if not options.local or not options.reason:
        raise RegistryError(
            "this server has administrators: run this as one of them, with --server URL --auth-cert FILE --auth-key FILE, "
            "or in an emergency add --local --reason TEXT, which the audit log shows as an alert"
        )
    session.info[OPERATOR] = {**session.info.get(OPERATOR, {}), "why": options.reason}
    audit.record(session, audit.ADMIN, "act.local", "alert", now, act=what)
