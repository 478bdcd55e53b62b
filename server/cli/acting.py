"""Performs acts for the commands: at a server's operator API, or on this machine as whoever runs the command.

On this machine everything is allowed as long as nobody can sign in as administrator: before the first one has a certificate,
and after the last one has ended. Otherwise the commands that change something need `--local` and `--reason`, and the audit log
gets an alert: else nobody would use the accounts.
"""

import os
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


Hand = Callable[[Any], None]
Ask = Callable[[str, dict[str, Any], Hand, Callable[[int], None]], Any]
"""Asks for an act by name, with members of its form; see `perform`."""


def _nobody(_done: Any) -> None:
    """Wants to know nothing."""


@contextmanager
def asking(directory: Path | None) -> Iterator[Ask]:
    """Yields a function that performs acts, one after the other, at the server that was named or on this machine.

    Args:
        directory: of the server on this machine; None if none was named.

    Raises:
        RegistryError: no server is named, or it cannot be opened.
    """
    # What a command needs is imported when it is used: the catalog takes a third of a second.
    from server.acts import caller
    from server.acts.catalog import BY_NAME
    from server.acts.runner import Runner

    from .options import now, opened
    from .remote import Remote, Where

    options = given()
    asked = server_of(options, directory)
    if asked is not None:
        remote = Remote(Where(asked.server or "", asked.root, asked.certificate, asked.key, asked.token))

        def ask(act_name: str, body: dict[str, Any], hand: Hand, _reached: Callable[[int], None]) -> Any:
            act = BY_NAME[act_name]
            result = remote.perform(act, _form(act.body, body), asked.reason, asked.approval)
            hand(result)
            return result

        yield ask
        return
    assert directory is not None
    with opened(directory) as server:
        runner = Runner(server)

        def act_here(act_name: str, body: dict[str, Any], hand: Hand, reached: Callable[[int], None]) -> Any:
            act = BY_NAME[act_name]
            form = _form(act.body, body)
            if not act.reads:
                with server.database.write() as session:
                    require_local(session, act_name, now())
            who = caller.local(server.database.operator)
            return runner.perform(act, who, form, now(), options.reason, hand=hand, reached=reached)

        yield act_here


def _form(form: Any, body: dict[str, Any]) -> Any:
    """A body of this form; what is None is left out."""
    from pydantic import ValidationError

    try:
        return form(**{key: value for key, value in body.items() if value is not None})
    except ValidationError as problem:
        first = problem.errors()[0]
        raise RegistryError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def perform(
    act_name: str,
    directory: Path | None,
    hand: Hand = _nobody,
    reached: Callable[[int], None] = _nobody,
    /,
    **body: Any,
) -> Any:
    """Performs an act of the catalog and returns its result.

    Args:
        act_name: of the act.
        directory: of the server on this machine; None if none was named.
        hand: is given the result; on this machine before the commit, so that nothing is done if it raises.
        reached: is called with the number of lines that were done; on this machine only.
        body: members of the act's form; one that is None is left out.

    Raises:
        RegistryError: it cannot be performed; the text says what to do.
    """
    with asking(directory) as ask:
        return ask(act_name, body, hand, reached)


def listed(
    act_name: str, directory: Path | None, limit: int | None, after: str | None = None, /, **body: Any
) -> Iterator[list[Any]]:
    """The pages of a list, to its end or to so many rows.

    Args:
        act_name: of the act.
        directory: of the server on this machine; None if none was named.
        limit: at most so many rows; None for all.
        after: the id behind which the list begins, on this machine only: over the network a place is a cursor.
        body: members of the act's form.
    """
    if after and server_of(given(), directory) is not None:
        raise RegistryError("--after counts on the server's own machine only: list without it, or with --limit")
    with asking(directory) as ask:
        while limit is None or limit > 0:
            size = 500 if limit is None else min(500, limit)
            page = ask(act_name, {**body, "limit": size, "after": after or None}, _nobody, _nobody)
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
