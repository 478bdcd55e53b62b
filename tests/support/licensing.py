"""What acts of operators do to a license, each in a transaction of its own."""

from server.licensing.licenses import lifecycle
from server.licensing.states import changes
from tests.support.serverside import ServerSide


def suspend(server: ServerSide, jti: str, now: int, *, on: bool = True) -> None:
    """Suspends a license, or reinstates it."""
    with server.database.write() as session:
        (lifecycle.suspend if on else lifecycle.reinstate)(session, jti, now)


def transfer(server: ServerSide, jti: str, to: str, now: int) -> None:
    """Moves a license to another agent."""
    with server.database.write() as session:
        lifecycle.transfer(session, jti, to, now)


def touch(server: ServerSide, agent_id: str, now: int) -> None:
    """Has an agent ask for its licenses, as if each had changed."""
    with server.database.write() as session:
        changes.changed(session, agent_id, now)
