"""Shows the configuration that is in force: each key, its value, and where that comes from. Pure; no key is a secret."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from agentd.base.config.config import Config, known_keys
from agentd.base.config.live import value_of
from agentd.base.configstatus import ConfigStatus
from contracts.contact.configuration import NAMES

FILE: Final = "file"
DEFAULT: Final = "default"
FLEET: Final = "fleet"
"""The machine's fleet sets it, within the bounds that the file has for that."""
PROVISIONING: Final = "provisioning"
"""The server said it when the device was made an agent, and the file does not."""


def config_view(status: ConfigStatus, provisioned: Mapping[str, Any]) -> dict[str, Any]:
    """The reply to `config_show`.

    Args:
        status: the configuration of this run.
        provisioned: what the agent goes by where the file says nothing, by key (`server.url`).
    """
    config, waiting = status.config, status.file or status.config
    standard = Config()
    entries = []
    for section, keys in known_keys().items():
        for name in keys:
            key = f"{section}.{name}"
            value, default, later = (_plain(_of(each, section, name)) for each in (config, standard, waiting))
            origin = FILE if key in config.given else DEFAULT
            if key in status.set_by_fleet:
                origin = FLEET
            if origin is DEFAULT and key in provisioned:
                value, origin = _plain(provisioned[key]), PROVISIONING
            entry = {"key": key, "value": value, "default": default, "origin": origin}
            # What was loaded and takes effect at the next start.
            if origin not in (PROVISIONING, FLEET) and later != value:
                entry["after_restart"] = later
            entries.append(entry)
    return {
        "file": config.source,
        "entries": entries,
        "unloaded": status.unloaded,
        "problems": list(status.problems),
        "needs_restart": list(status.needs_restart),
        "fleet": None if status.fleet is None else {"id": status.fleet[0], "number": status.fleet[1]},
        "limited": list(status.limited),
    }


def _of(config: Config, section: str, name: str) -> Any:
    if f"{section}.{name}" in NAMES:
        return value_of(config, f"{section}.{name}")
    part = getattr(config, section)
    return getattr(part, name) if any(each.name == name for each in fields(part)) else None


def _plain(value: Any) -> Any:
    """A value as a message may carry it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, frozenset | set):
        return sorted(value)
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in sorted(value.items())}
    return value
