"""Makes the operators' listener: mutual TLS 1.3 where the client has a certificate, and the operator API behind its gate."""

import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from server.acts.act import Parts
from server.acts.runner import Runner
from server.base.errors import RegistryError
from server.base.jsonlog import place_of
from server.registry.clockwatch import ClockNotTrusted
from server.web.listeners import Listener
from server.web.middleware import Lots
from server.web.responses import DATABASE_DOWN
from server.web.tlscontext import server_context

from .app import create_app
from .gate import Gate
from .protocol import OperatorProtocol

LOOK_S = 10.0
"""How often the listener looks for another certificate or operator CA, in seconds."""
_log = logging.getLogger("license_server")


class OperatorListener:
    """The listener, and what keeps its certificates those of the registry.

    Args:
        server: the components of an open server.
        sock: bound, not yet listening.
        lots: the accounts' allowance is shared with other processes; None if this process is the only one.
        observe: see `Gate`.
        wall: seconds since 1970 UTC.
    """

    def __init__(
        self,
        server: Parts,
        sock: socket.socket,
        lots: Lots | None = None,
        observe: Callable[[int, str | None, float], None] = lambda _status, _kind, _seconds: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._server = server
        with contextlib.suppress(ClockNotTrusted), server.database.write() as session:  # else with the first certificate
            server.key_lifecycle.require_operator_ca(session, int(wall()))
        runner = Runner(server)
        app = create_app(runner, server.cipher.cursor_key(), wall)
        gate = Gate(app, server.database, runner, self._clock_problem, lots, observe=observe, wall=wall)
        self._material = self._read()
        self.listener = Listener(gate, sock, OperatorProtocol, _context(self._material))

    def _read(self) -> tuple[str, bytes, str]:
        keys = self._server.keys
        return *keys.tls_material(), keys.operator_ca_pem()

    def _clock_problem(self) -> str | None:
        clock = self._server.clock
        if clock.surely_trusted():
            return None
        try:
            return clock.problem()
        except SQLAlchemyError:
            return DATABASE_DOWN.text

    def look(self) -> None:
        """Takes the certificate and the operator CAs of the registry, if they have changed; raises nothing."""
        try:
            present = self._read()
            if present != self._material:
                self.listener.use(_context(present))
                self._material = present
                _log.info("the certificates of the operators' listener were reloaded")
        except (RegistryError, SQLAlchemyError, ssl.SSLError, ValueError) as problem:  # the next look tries again
            fields = {"kind": type(problem).__name__, "at": place_of(problem)}
            _log.error("the certificates of the operators' listener could not be reloaded", extra={"fields": fields})


def _context(material: tuple[str, bytes, str]) -> ssl.SSLContext:
    return server_context(*material)
