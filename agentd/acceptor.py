"""Accepts connections on a listening socket.

Not by the loop's own server: that calls listen(2) again, and on a socket that systemd made this would change whom clients
see as its server, from root to the daemon's user.
"""

import asyncio
import logging
import socket
from functools import partial

from ipc.peer import peer_of

from .connection import Connection, Hub, Service

log = logging.getLogger(__name__)

_OUT_OF_FILES_PAUSE_S = 0.1


def accept_on(sock: socket.socket, hub: Hub, service: Service) -> "asyncio.Task[None]":
    """Starts to accept; cancel the task to stop. The socket stays open."""
    return asyncio.get_running_loop().create_task(_accept(sock, hub, service))


async def _accept(sock: socket.socket, hub: Hub, service: Service) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            accepted, _ = await loop.sock_accept(sock)
        except OSError as error:
            # Out of file descriptors, or the peer has gone already: others wait in the backlog meanwhile.
            log.warning("a connection could not be accepted: %s", error.strerror)
            await asyncio.sleep(_OUT_OF_FILES_PAUSE_S)
            continue
        try:
            peer = peer_of(accepted)
            await loop.connect_accepted_socket(partial(Connection, hub, service, peer), accepted)
        except OSError as error:
            accepted.close()
            log.warning("a connection could not be served: %s", error.strerror)


async def stop_accepting(tasks: "list[asyncio.Task[None]]") -> None:
    """Stops; new callers wait in the backlog from now on."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
