"""Signs the server's time for an agent whose clock is wrong, in answer to a challenge that was carried here by hand."""

from sqlalchemy.orm import Session

from contracts.servertime import CHALLENGE
from server.base.errors import RegistryError
from server.keys.jose import issue_server_time
from server.keys.keyring import Keyring
from server.registry import audit

from .registry import enrolled


def sign_time(session: Session, keyring: Keyring, agent_id: str, challenge: str, now: int) -> str:
    """The time `now`, signed for one agent and one challenge.

    Raises:
        RegistryError: there is no such agent, or the challenge has another form.
    """
    if not CHALLENGE.fullmatch(challenge):
        raise RegistryError(
            f"{challenge!r} is not a challenge: it has 32 characters 0-9 and a-f; 'license-agent-cli clock challenge' prints it"
        )
    enrolled(session, agent_id)
    audit.record(session, "admin", "time.signed", "ok", now, agent=agent_id)
    return issue_server_time(agent_id, challenge, now, keyring.rotation_key())
