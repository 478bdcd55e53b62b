"""Says who this agent is and which backends it was enrolled with, by the files of its state directory.

The configuration names the agent, or the server named it when it was provisioned. The id opens the sealed store, so it is kept
outside of the store, in a file without protection of its own; a wrong id opens nothing.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from common.files import write_atomic
from contracts.claims import AGENT_ID
from settings.errors import ConfigError

from .config.config import Config
from .errors import StartError

FILE_NAME = "agent.json"
FALLBACK_ALLOWED = "enroll"


def write_agent_id(config: Config, agent_id: str) -> None:
    """Stores what the server calls this agent; raises OSError."""
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
            [f"[agent] id is {config.agent.id!r}, but the server provisioned this agent as {found!r}: change or remove the key"]
        )
    return config.with_agent_id(found)


@dataclass(frozen=True, slots=True)
class Enrolled:
    """Which backends have been initialized on this machine."""

    tpm: bool
    software: bool


def enrolled(config: Config) -> Enrolled:
    """Which backends have been initialized, by the files that exist."""
    return Enrolled(
        any(path.exists() for path in copies(config.paths.state_dir / "tpm.objects")),
        (config.paths.key_dir / "software.key").exists(),
    )


def copies(path: Path) -> tuple[Path, Path, Path]:
    """A sealed file, its twin and its pending copy."""
    return path, path.with_name(path.name + ".twin"), path.with_name(path.name + ".pending")


def traces(config: Config) -> list[Path]:
    """The files by which an earlier enrollment shows itself."""
    state, keys = config.paths.state_dir, config.paths.key_dir
    files = (state / "tpm.objects", state / "secrets.store", config.tpm.fallback_encrypted_storage)
    twins = [path.with_name(path.name + ".twin") for path in files]
    return [*files, *twins, keys / "software.key", keys / "software.anchor", state / FILE_NAME]


def check_fallback(config: Config) -> None:
    """Refuses the software backend where the agent was enrolled with a TPM and the policy does not allow the change.

    threat-model T17: no configuration alone moves an agent to the weaker protection.

    Raises:
        StartError: the policy does not allow it.
    """
    if not config.tpm.enabled and enrolled(config).tpm and config.tpm.fallback != FALLBACK_ALLOWED:
        raise StartError(
            "this agent is enrolled with a TPM, and the policy does not allow it to go on without one; repair the TPM, or set "
            f'[tpm] fallback = "{FALLBACK_ALLOWED}" and run this again: the agent gets new secrets, which a stolen disk shows'
        )
