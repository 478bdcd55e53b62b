"""Makes the listener for devices that speak DDI: TLS 1.3, mutual where the device has a certificate, with its own port."""

import logging
import socket
import ssl
import time
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from server.acts.act import Parts
from server.base.ddisettings import DdiPlace
from server.base.errors import RegistryError
from server.base.jsonlog import place_of
from server.fleet.ddi.actions import Actions
from server.fleet.ddi.queue import Queue
from server.fleet.ddi.seen import Seen
from server.registry.clockwatch import ClockNotTrusted
from server.web.listeners import Listener
from server.web.middleware import Lots
from server.web.responses import DATABASE_DOWN
from server.web.tlscontext import server_context

from .endpoints import Endpoints
from .gate import Gate, Heard, Observe
from .protocol import DdiProtocol

LOOK_S = 10.0
"""How often the listener looks for another certificate or CA, and writes which devices were seen, in seconds."""
_log = logging.getLogger("license_server")


class DdiListener:
    """The listener, and what keeps its certificates those of the registry.

    Args:
        server: the components of an open server.
        place: of the listener, by the settings.
        queue: the rollouts.
        sock: bound, not yet listening.
        lots: the devices' allowance is shared with other processes; None if this process is the only one.
        observe: see `gate.Observe`.
        heard: see `gate.Gate`.
        wall: seconds since 1970 UTC.
    """

    def __init__(
        self,
        server: Parts,
        place: DdiPlace,
        queue: Queue,
        sock: socket.socket,
        lots: Lots | None = None,
        observe: Observe = lambda _status, _kind, _seconds: None,
        heard: Heard = lambda _device, _status, _seconds: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._server = server
        self._seen = Seen(server.database, wall)
        endpoints = Endpoints(server.database, Actions(queue, place.poll_s), place, server.place.updates, wall)
        gate = Gate(
            endpoints,
            server.database,
            place.tenant,
            self._seen.note,
            self._clock_problem,
            lots,
            observe=observe,
            heard=heard,
            wall=wall,
        )
        self._material = self._read()
        self.listener = Listener(gate, sock, DdiProtocol, server_context(*self._material))

    def _read(self) -> tuple[str, bytes, str]:
        keys = self._server.keys
        return *keys.tls_material(), keys.client_ca_pem()

    def _clock_problem(self) -> str | None:
        clock = self._server.clock
        if clock.surely_trusted():
            return None
        try:
            return clock.problem()
        except SQLAlchemyError:
            return DATABASE_DOWN.text

    def look(self) -> None:
        """Takes the certificate and the CAs of the registry, if they have changed, and writes who was seen; raises nothing."""
        try:
            self._seen.write()
            present = self._read()
            if present != self._material:
                self.listener.use(server_context(*present))
                self._material = present
                _log.info("the certificates of the listener for DDI were reloaded")
        except (RegistryError, SQLAlchemyError, ClockNotTrusted, ssl.SSLError, ValueError) as problem:
            fields = {"kind": type(problem).__name__, "at": place_of(problem)}
            _log.error("the listener for DDI could not look into the registry", extra={"fields": fields})
