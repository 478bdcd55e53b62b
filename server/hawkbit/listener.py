"""Makes the listener for devices that speak DDI: TLS 1.3, mutual where the device has a certificate, with its own port."""

import logging
import socket
import time
from collections.abc import Callable
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from server.acts.act import Parts
from server.base.ddisettings import DdiPlace
from server.base.errors import RegistryError
from server.base.jsonlog import place_of
from server.fleet.ddi.actions import Actions
from server.fleet.ddi.queue import Queue
from server.fleet.ddi.seen import Seen
from server.keys.listening import LOOK_S, Certificates, clock_problem
from server.web.listeners import Listener
from server.web.middleware import Lots

from .endpoints import Endpoints
from .gate import Gate, Heard, Observe
from .protocol import DdiProtocol

__all__ = ["LOOK_S", "DdiListener"]
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
        self._seen = Seen(server.database, wall)
        endpoints = Endpoints(server.database, Actions(queue, place.poll_s), place, server.place.updates, wall)
        problem = partial(clock_problem, server.clock)
        gate = Gate(
            endpoints, server.database, place.tenant, self._seen.note, problem, lots, observe=observe, heard=heard, wall=wall
        )
        keys = server.keys
        self._certificates = Certificates("the listener for DDI", lambda: (*keys.tls_material(), keys.client_ca_pem()))
        self.listener = Listener(gate, sock, DdiProtocol, self._certificates.context())

    def look(self) -> None:
        """Takes the certificate and the CAs of the registry, if they have changed, and writes who was seen; raises nothing."""
        self._certificates.look(self.listener)  # first: a registry that takes no writes must not keep an old certificate in use
        try:
            self._seen.write()
        except (RegistryError, SQLAlchemyError) as problem:
            fields = {"kind": type(problem).__name__, "at": place_of(problem)}
            _log.error("the listener for DDI could not write which devices were seen", extra={"fields": fields})
