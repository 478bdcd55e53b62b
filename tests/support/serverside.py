"""A license server in the test's own process, each of whose acts is a transaction of its own."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from server import wiring
from server.agents import server_time
from server.agents.registry import AgentRow
from server.exchange.kept_replies import KeptReplies
from server.licensing.secrets import periods
from server.registry import audit
from server.registry.database import Database
from server.wiring import Server


class Acts:
    """A store, or a module of acts, whose functions get a session.

    Args:
        store: has functions that take a session first.
        database: where each call opens a transaction.
        session: used for every call instead, if it is given.
    """

    def __init__(self, store: Any, database: Database, session: Session | None = None) -> None:
        self._store = store
        self._database = database
        self._session = session

    def __getattr__(self, name: str) -> Callable[..., Any]:
        act = getattr(self._store, name)

        def call(*arguments: Any, **named: Any) -> Any:
            if self._session is not None:
                return act(self._session, *arguments, **named)
            with self._database.write() as session:
                return act(session, *arguments, **named)

        return call


class ServerSide:
    """An open server, as tests use it.

    Args:
        server: an open one.
        session: all acts belong to this transaction; None gives each one its own.
    """

    def __init__(self, server: Server, session: Session | None = None) -> None:
        self.server = server

        def acts(store: Any) -> Acts:
            return Acts(store, server.database, session)

        self.place, self.database, self.master, self.cipher = server.place, server.database, server.master, server.cipher
        self.keys, self.key_lifecycle, self.succession = server.keys, server.key_lifecycle, server.succession
        self.agents, self.certificates, self.activation = (
            acts(server.agents),
            acts(server.certificates),
            acts(server.activation),
        )
        self.enrollment_tokens, self.secrets, self.licenses = (
            acts(server.enrollment_tokens),
            acts(server.secrets),
            acts(server.licenses),
        )
        self.clones = acts(server.clones)
        self.replies, self.audit, self.periods = acts(KeptReplies(server.cipher)), acts(audit), acts(periods)

    def within(self, session: Session) -> "ServerSide":
        """The same server; all acts belong to one transaction."""
        return ServerSide(self.server, session)

    def agent(self, agent_id: str) -> AgentRow | None:
        return next((row for row in self.agents.listed() if row.agent_id == agent_id), None)

    def sign_time(self, agent_id: str, challenge: str, now: int) -> str:
        with self.database.write() as session:
            return server_time.sign_time(session, self.keys, agent_id, challenge, now)

    def close(self) -> None:
        self.server.close()


def open_server(directory: Path, random: Callable[[int], bytes] = os.urandom) -> ServerSide:
    """Opens the server in a directory, as `wiring.open_server` does."""
    return ServerSide(wiring.open_server(directory, random))
