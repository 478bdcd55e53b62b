"""Sends requests to the agent's admin socket for the commands, signed where the agent demands it, and prints the replies."""

import contextlib
import grp
import json
import os
import pwd
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from common.text import shown
from ipc.adminclient import AdminClient
from ipc.errors import ErrorCode
from ipc.posclient.policy import AgentRefused, AgentUnavailable

from . import health
from .signing.auth import Credentials

EXIT_NEGATIVE, EXIT_UNAVAILABLE, EXIT_INCOMPLETE = 1, 3, 5
ADMIN_DEADLINE_S = 60.0
ALIVE_DEADLINE_S = 10.0
"""For an answer that needs neither TPM nor disk: an agent that is stopped while systemd holds its socket gives none."""
UNSIGNED = frozenset({"ping", "health"})
"""What the agent answers everyone who may use the socket."""
SERVER_DEADLINE_S = 180.0
"""For what the agent asks its server before it answers."""
RELOAD_TRIES, RELOAD_PAUSE_S = 3, 1.0
_STYLE = re.compile("(\x1b\\[(?:0|1|3[0-7])m)")
"""What `click.style` writes for a color and for bold. They hide nothing and move nothing, no matter who wrote them."""
ROOM = 65_536
"""What is read of an input: more than a token or delivery may have, so that one that is too long is refused for its length."""


class NotPermitted(AgentUnavailable):
    """This user may not open the admin socket; that says nothing of the agent."""


class Agent:
    """Asks the agent and shows what it says.

    Args:
        path: its admin socket.
        as_json: whether replies are shown as JSON.
        agent_uid: the agent's UID where its user is not named `license-agent`.
        credentials: sign what the agent wants signed; None without a certificate.

    Attributes:
        path: as given.
    """

    def __init__(self, path: str, as_json: bool, agent_uid: int | None, credentials: Credentials | None = None) -> None:
        self.as_json = as_json
        self.path = path
        self.agent_uid = agent_uid
        self._credentials = credentials
        self._reader: AdminClient | None = None
        self._in_session = False

    def ask(
        self, op: str, *, deadline: float = ADMIN_DEADLINE_S, descriptor: int | None = None, **fields: Any
    ) -> dict[str, Any]:
        """Sends one request, signed if the agent demands it. A socket that does not exist is an error at once.

        Args:
            op: the operation.
            deadline: seconds for all of it.
            descriptor: of an open file that the request is about.
            fields: of the request.
        """
        self._check_socket()
        if self._credentials is not None:
            self._credentials.check()
        if self._reader is not None:
            return self._read(self._reader, op, fields)
        with self._client(deadline) as client:
            if descriptor is not None:
                client.hand_over(descriptor)
            given = None if op in UNSIGNED or self._credentials is None else client.challenge()
            if given is None or not given.required or self._credentials is None:
                return client.call(op, **fields)
            return client.call_signed(given, self._credentials, op, **fields)

    def _client(self, deadline: float) -> AdminClient:
        return AdminClient(self.path, deadline=deadline, agent_uid=self.agent_uid)

    def _check_socket(self) -> None:
        if not os.path.exists(self.path):
            raise AgentUnavailable(
                f"{self.path} does not exist: is the agent running? (systemctl status license-agent; --socket names another)"
            )
        if not os.access(self.path, os.W_OK):
            raise NotPermitted(
                f"{self.path} may not be opened by {_user(os.geteuid())}: run this as root, or add the user to the group "
                f"{_group(self.path)} and to [management] allowed_uids in config.toml"
            )

    @property
    def signs(self) -> bool:
        """Whether requests are signed with an administrator's key, if the agent wants that."""
        return self._credentials is not None

    @contextlib.contextmanager
    def reading(self, deadline: float = ADMIN_DEADLINE_S) -> Iterator[None]:
        """Within the block, all requests read over one connection, and one signature serves them all (a viewer session).

        A command that asks again and again needs it: a key on a token may want a touch for each signature.

        Args:
            deadline: seconds for each answer.
        """
        with self._client(deadline) as self._reader:
            self._in_session = False
            try:
                yield
            finally:
                self._reader = None

    def _read(self, client: AdminClient, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        if not self._in_session:
            self._begin_session(client)
        try:
            return client.call(op, **fields)
        except AgentRefused as error:
            if self._credentials is None or error.code is not ErrorCode.UNAUTHENTICATED:
                raise
        # The session has ended with its time; what is read may be asked again.
        self._begin_session(client)
        return client.call(op, **fields)

    def _begin_session(self, client: AdminClient) -> None:
        given = None if self._credentials is None else client.challenge()
        if given is not None and given.required and self._credentials is not None:
            client.call_signed(given, self._credentials, "session_begin")
        self._in_session = True

    def _only_verdict(self) -> bool:
        """Whether the agent tells this user nothing but its verdict."""
        if self._credentials is not None or os.geteuid() == 0:
            return False
        self._check_socket()
        with self._client(ADMIN_DEADLINE_S) as client:
            given = client.challenge()
        return given is not None and given.required

    def ask_health(self, alive_within: float = ALIVE_DEADLINE_S) -> dict[str, Any]:
        """The reply to `status`. An agent that cannot work, or that nobody hears, is an answer too: `health` alone.

        Args:
            alive_within: seconds for the agent to show that it runs; its status may wait for the TPM longer than that.
        """
        try:
            self.ask("ping", deadline=alive_within)
            if self._only_verdict():
                return {"health": health.of_verdict(self.ask("health"))}
            return self.ask("status")
        except AgentRefused as error:
            found = health.of_refusal(error)
            if found is None:
                raise
            return {"health": found}
        except NotPermitted:
            raise
        except AgentUnavailable as error:
            return {"health": health.of_silence(error)}

    def ask_to_reload(self) -> dict[str, Any]:
        """The reply to `reload`. An agent that could not start tries again by it, and is asked once more how that went."""
        for _ in range(RELOAD_TRIES - 1):
            try:
                return self.ask("reload")
            except AgentRefused as error:
                if health.of_refusal(error) is None:
                    raise
            time.sleep(RELOAD_PAUSE_S)
        return self.ask("reload")

    def show(self, reply: dict[str, Any], text: str) -> None:
        """Prints JSON or text, as asked."""
        click.echo(json.dumps(reply, indent=2) if self.as_json else for_terminal(text))


def for_terminal(text: str) -> str:
    """A text as `common.text.shown` makes it, with the colors that `render` has given it."""
    return "".join(part if number % 2 else shown(part) for number, part in enumerate(_STYLE.split(text)))


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _group(path: str) -> str:
    """Who may open a socket besides its owner."""
    gid = os.stat(path).st_gid
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"gid {gid}"


readable = click.Path(exists=True, dir_okay=False, path_type=Path)
pass_agent = click.make_pass_decorator(Agent)
