"""Who this agent is: by its configuration, or by what the server called it when it was provisioned.

The id opens the sealed store, so it stands outside of it, in a file that anybody who may write it can change: a wrong id opens
nothing.
"""

import json

from contracts.claims import AGENT_ID
from hwsec.files import write_atomic

from .config import Config, ConfigError

FILE_NAME = "agent.json"


def write_agent_id(config: Config, agent_id: str) -> None:
    """Keeps what the server calls this agent; raises OSError."""
    write_atomic(config.paths.state_dir / FILE_NAME, json.dumps({"agent_id": agent_id}).encode() + b"\n")


def identified(config: Config) -> Config:
    """The configuration with the agent's id; without one where there is none yet.

    Raises:
        ConfigError: configuration and server call it differently, or the file cannot be read.
    """
    path = config.paths.state_dir / FILE_NAME
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return config
    except (OSError, ValueError, RecursionError):
        raise ConfigError([f"{path} cannot be read; put the agent's id into [agent] id, and remove the file"]) from None
    found = content.get("agent_id") if isinstance(content, dict) else None
    if not isinstance(found, str) or not AGENT_ID.fullmatch(found):
        raise ConfigError([f"{path} holds no agent id; put the agent's id into [agent] id, and remove the file"])
    if config.agent.id and config.agent.id != found:
        raise ConfigError(
            [f"[agent] id is {config.agent.id!r}, but the server provisioned this agent as {found!r}: mend or remove the key"]
        )
    return config.with_agent_id(found)
