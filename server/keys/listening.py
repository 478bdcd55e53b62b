"""Keeps the certificates of a listener those of the registry, and says whether the server's clock keeps it from answering."""

import logging
import ssl
from collections.abc import Callable
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError

from server.base.errors import RegistryError
from server.base.jsonlog import place_of
from server.registry.clockwatch import ClockNotTrusted, ClockWatch
from server.web.responses import DATABASE_DOWN
from server.web.tlscontext import server_context

LOOK_S = 10.0
"""How often a listener looks for another certificate or CA, in seconds."""
Material = tuple[str, bytes, str]
"""Certificates of the server in PEM, its key, and the CAs of its clients in PEM."""
_log = logging.getLogger("license_server")


class Serves(Protocol):
    """A listener."""

    def use(self, context: ssl.SSLContext) -> None:
        """Serves new connections with another context."""
        ...


class Certificates:
    """The certificates that a listener uses.

    Args:
        name: of the listener, for the log.
        read: returns what the registry has now.
    """

    def __init__(self, name: str, read: Callable[[], Material]) -> None:
        self._name = name
        self._read = read
        self._material = read()

    def context(self) -> ssl.SSLContext:
        """For new connections, of what was last read."""
        return server_context(*self._material)

    def look(self, listener: Serves) -> None:
        """Takes what the registry has, if it has changed; raises nothing. What could not be read is read at the next look."""
        try:
            present = self._read()
            if present != self._material:
                listener.use(server_context(*present))
                self._material = present
                _log.info("the certificates of %s were reloaded", self._name)
        except (RegistryError, SQLAlchemyError, ClockNotTrusted, ssl.SSLError, ValueError) as problem:
            fields = {"kind": type(problem).__name__, "at": place_of(problem)}
            _log.error("the certificates of %s could not be reloaded", self._name, extra={"fields": fields})


def clock_problem(clock: ClockWatch) -> str | None:
    """Why the server must not answer by its clock; None if it may."""
    if clock.surely_trusted():
        return None
    try:
        return clock.problem()
    except SQLAlchemyError:
        return DATABASE_DOWN.text
