"""The secrets of a server's agents, opened with its master key as only the server itself opens them."""

from pathlib import Path

from sqlalchemy import select

from server.registry.models.core import Secret
from tests.support.serverside import open_server


def server_secrets(directory: Path, agent_id: str) -> dict[int, bytes]:
    """The secret of each version of an agent that was not destroyed.

    Args:
        directory: of the server, which may run.
        agent_id: whose.
    """
    server_side = open_server(directory)
    try:
        with server_side.database.read() as session:
            rows = session.scalars(select(Secret).where(Secret.agent_id == agent_id, Secret.sealed.is_not(None)))
            return {
                row.version: server_side.cipher.open("secret", f"{agent_id}/{row.version}", "sealed", row.sealed or b"")
                for row in rows
            }
    finally:
        server_side.close()
