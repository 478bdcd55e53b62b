"""Performs acts for the commands: at a server's operator API, or on this machine as the user who runs the command.

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
from typing import TYPE_CHECKING, Any

import click
from sqlalchemy.orm import Session

from server.accounts.accounts import has_administrators
from server.base.errors import RegistryError
from server.registry import audit
from server.registry.database import OPERATOR
from server.registry.paging import PAGE

if TYPE_CHECKING:
    from server.acts.act import Act

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


def command() -> str:
    """The words that call the command, for the audit."""
    context = click.get_current_context(silent=True)
    return "command" if context is None else context.command_path.partition(" ")[2]


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
            f"no server is named: give --server URL, write {path}, "
            "or give --dir (or LICENSE_SERVER_DIR) on the server's machine"
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
"""Takes the result of an act."""


def _nothing(_result: Any) -> None:
    """Takes a result, and does nothing with it."""


class Asking:
    """Performs acts of one server, one after the other.

    Args:
        do: performs an act with a form, for the user who runs the command; further arguments are those of `perform`.
        remote: whether the server is asked over the network.
    """

    def __init__(self, do: Callable[..., Any], *, remote: bool) -> None:
        self._do = do
        self.remote = remote

    def perform(
        self,
        act_name: str,
        hand: Hand = _nothing,
        reached: Callable[[int], None] = _nothing,
        /,
        *,
        if_match: str | None = None,
        cursor: str | None = None,
        **body: Any,
    ) -> Any:
        """Performs an act of the catalog and returns its result.

        Args:
            act_name: of the act.
            reached: is given the number of lines that were done; on this machine only.
            if_match: the tag of what the command has shown: it is changed only if it is still like that.
            cursor: of the page of a list; over the network only.
            hand: is given the result, on this machine before it is committed: what it raises undoes the act there.
            body: members of the act's form; one that is None is left out.

        Raises:
            RegistryError: it cannot be performed; the text says what to do.
        """
        # What a command needs is imported when it is used: the catalog takes a third of a second.
        from pydantic import ValidationError

        from server.acts.catalog import BY_NAME
        from server.acts.misfits import in_words

        act = BY_NAME[act_name]
        try:
            form = act.body(**{key: value for key, value in body.items() if value is not None})
        except ValidationError as problem:
            raise RegistryError(in_words(problem.errors())) from None
        return self._do(act, form, if_match, hand, reached, cursor)

    def pages(self, act_name: str, limit: int | None, after: str | None = None, /, **body: Any) -> Iterator[list[Any]]:
        """The pages of a list, to its end or to so many rows; none of them is empty.

        Args:
            act_name: of the act.
            limit: at most so many rows; None for all.
            after: the id behind which the list begins, on this machine only: over the network a place is a cursor. Acts that
                have `since` can do that everywhere.
            body: members of the act's form.
        """
        if after and self.remote:
            raise RegistryError(
                "--after of this list counts on the server's own machine only: list without it, or with --limit"
            )
        after = after or None
        while limit is None or limit > 0:
            size = PAGE if limit is None else min(PAGE, limit)
            # A place is a member of the form here, and over the network a cursor, which no form describes.
            place = {"cursor": after} if self.remote else {"after": after}
            page = self.perform(act_name, limit=size, **place, **body)
            if page.items:
                yield list(page.items)
            after = page.after
            if after is None:
                return
            limit = None if limit is None else limit - len(page.items)

    def tag(self, act_name: str, result: Any) -> str | None:
        """The tag of what an act has shown, for `if_match`."""
        from server.acts.catalog import BY_NAME

        etag = BY_NAME[act_name].etag
        return None if etag is None else etag(result)


@contextmanager
def asking(directory: Path | None) -> Iterator[Asking]:
    """Opens the server that the options name, for acts; closes it at the end.

    Args:
        directory: of the server on this machine; None if none was named.

    Raises:
        RegistryError: no server is named, or it cannot be opened.
    """
    from server.acts import caller
    from server.acts.runner import Runner

    from .options import now, opened
    from .output import Undelivered
    from .remote import Remote, Where

    asked = server_of(given(), directory)
    if asked is not None:
        with Remote(Where(asked.server or "", asked.root, asked.certificate, asked.key, asked.token)) as remote:

            def ask(
                act: "Act", form: Any, if_match: str | None, hand: Hand, _reached: Callable[[int], None], cursor: str | None
            ) -> Any:
                result = remote.perform(act, form, asked.reason, asked.approval, if_match, cursor)
                try:
                    hand(result)
                except OSError as problem:
                    raise Undelivered(problem.strerror) from None
                return result

            yield Asking(ask, remote=True)
        return
    assert directory is not None
    with opened(directory) as server:
        runner, reason = Runner(server), given().reason
        told = False

        def do(
            act: "Act", form: Any, if_match: str | None, hand: Hand, reached: Callable[[int], None], _cursor: str | None
        ) -> Any:
            nonlocal told
            moment = now()
            who = caller.local(server.database.operator)

            def opening(session: Session) -> None:
                # In the transaction of the change: what does not happen is no alert.
                require_local(session, command(), moment, tell=not told)

            result = runner.perform(
                act, who, form, moment, reason, if_match=if_match, opening=opening, hand=hand, reached=reached
            )
            told = told or not act.reads
            return result

        yield Asking(do, remote=False)


def perform(
    act_name: str,
    directory: Path | None,
    hand: Hand = _nothing,
    reached: Callable[[int], None] = _nothing,
    /,
    **body: Any,
) -> Any:
    """Opens the server that the options name, and performs one act. As `Asking.perform`."""
    with asking(directory) as server:
        return server.perform(act_name, hand, reached, **body)


def listed(
    act_name: str, directory: Path | None, limit: int | None, after: str | None = None, /, **body: Any
) -> Iterator[list[Any]]:
    """Opens the server that the options name, and yields the pages of a list. As `Asking.pages`."""
    with asking(directory) as server:
        yield from server.pages(act_name, limit, after, **body)


def local_directory(directory: Path | None, what: str) -> Path:
    """The directory of the server on this machine, for what is not done over a network.

    Args:
        directory: the one that was named; None if none was.
        what: needs the server's machine.

    Raises:
        RegistryError: another server is asked.
    """
    if server_of(given(), directory) is None and directory is not None:
        return directory
    raise RegistryError(f"{what} is used on the server's own machine only, not with --server: run this there, with --dir")


def require_local(session: Session, what: str, now: int, *, tell: bool = True) -> None:
    """Returns if the command may change something on this machine.

    Args:
        session: of the transaction of the change.
        what: the command, for the audit log.
        now: seconds since 1970 UTC.
        tell: whether to record the alert; a command that changes much does that once.

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
    if tell:
        audit.record(session, audit.ADMIN, "act.local", "alert", now, act=what)
