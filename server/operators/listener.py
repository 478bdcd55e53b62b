"""Makes the operators' listener: mutual TLS 1.3 where the client has a certificate, and the operator API behind its gate."""

import contextlib
import socket
import time
from collections.abc import Callable

from server.acts.act import Parts
from server.acts.runner import Runner
from server.keys.listening import LOOK_S, Certificates, clock_problem
from server.registry.clockwatch import ClockNotTrusted
from server.web.listeners import Listener
from server.web.middleware import Lots

from .app import create_app
from .gate import Gate
from .protocol import OperatorProtocol

__all__ = ["LOOK_S", "OperatorListener"]


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
        with contextlib.suppress(ClockNotTrusted), server.database.write() as session:  # else with the first certificate
            server.key_lifecycle.require_operator_ca(session, int(wall()))
        runner = Runner(server)
        app = create_app(runner, server.cipher.cursor_key(), wall)
        gate = Gate(app, server.database, runner, lambda: clock_problem(server.clock), lots, observe=observe, wall=wall)
        keys = server.keys
        self._certificates = Certificates("the operators' listener", lambda: (*keys.tls_material(), keys.operator_ca_pem()))
        self.listener = Listener(gate, sock, OperatorProtocol, self._certificates.context())

    def look(self) -> None:
        """Takes the certificate and the operator CAs of the registry, if they have changed; raises nothing."""
        self._certificates.look(self.listener)
