"""Sends requests to the agent's admin socket for the commands, and prints the replies."""

import json
import os
from pathlib import Path
from typing import Any

import click

from ipc.adminclient import AdminClient
from ipc.clientpolicy import AgentRefused, AgentUnavailable

from . import health

ADMIN_DEADLINE_S = 60.0
SERVER_DEADLINE_S = 180.0
"""For what the agent asks its server before it answers."""
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
    """

    def __init__(self, path: str, as_json: bool, agent_uid: int | None) -> None:
        self.as_json = as_json
        self._path = path
        self._agent_uid = agent_uid

    def ask(self, op: str, *, deadline: float = ADMIN_DEADLINE_S, **fields: Any) -> dict[str, Any]:
        """Sends one request. A socket that does not exist is an error at once, not after the deadline."""
        if not os.path.exists(self._path):
            raise AgentUnavailable(
                f"{self._path} does not exist: is the agent running? (systemctl status license-agent; --socket names another)"
            )
        if not os.access(self._path, os.W_OK):
            raise NotPermitted(
                f"{self._path} may not be used by uid {os.geteuid()}: run this as root or as an administrator's user"
            )
        return AdminClient(self._path, deadline=deadline, agent_uid=self._agent_uid).call(op, **fields)

    def ask_health(self) -> dict[str, Any]:
        """The reply to `status`. An agent that cannot work, or that nobody hears, is an answer too: `health` alone."""
        try:
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

    def show(self, reply: dict[str, Any], text: str) -> None:
        """Prints JSON or text, as asked."""
        click.echo(json.dumps(reply, indent=2) if self.as_json else text)


readable = click.Path(exists=True, dir_okay=False, path_type=Path)
pass_agent = click.make_pass_decorator(Agent)
