"""Where the agent's things are, by its configuration. Reads only what is needed, so that a broken file tells as much as it can.

Whether the configuration is valid, `license-agent check-config` decides.
"""

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_STATE, _LOG, _RUN = Path("/var/lib/license-agent"), Path("/var/log/license-agent"), Path("/run/license-agent")
_KEY = Path("/var/lib/license-agent-key")


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the link connects.

    Attributes:
        name: the section of link.toml, or `provisioning`, or `config.toml` for [server] there.
        host: of the server, or of the proxy before it.
        port: TCP.
    """

    name: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths and a few settings; the defaults of the package where the file gives none or cannot be read.

    Attributes:
        config: the agent's configuration.
        link: the link's.
        state: the state directory.
        log: the audit log's.
        run: the sockets'.
        key: the software backend's keys.
        tpm: whether a TPM is used.
        tcti: how it is reached.
        software_store: the software backend's store.
        destinations: where the link may connect, in the order of the files.
        backup_directory: where timed backups go; None if none are made.
        overdue_hours: how old the newest of them may be.
        problems: why a file could not be read, by its path.
    """

    config: Path
    link: Path
    state: Path = _STATE
    log: Path = _LOG
    run: Path = _RUN
    key: Path = _KEY
    tpm: bool = True
    tcti: str = "device:/dev/tpmrm0"
    software_store: Path = _STATE / "secret.enc"
    destinations: tuple[Destination, ...] = ()
    backup_directory: Path | None = None
    overdue_hours: int = 48
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def is_packaged(self) -> bool:
        """Whether this is the agent of the package, and not one of a checkout."""
        return self.config == Path("/etc/license-agent/config.toml")


def read_layout(config: Path, text: Callable[[Path], str]) -> Layout:
    """Reads both files.

    Args:
        config: the agent's; the link's is beside it.
        text: reads a file; raises OSError.

    Raises:
        PermissionError: this user may not read the agent's file.
    """
    link = config.with_name("link.toml")
    problems: dict[str, str] = {}
    agent, upstreams = _toml(config, text, problems), _toml(link, text, problems)
    paths, tpm = _table(agent, "paths"), _table(agent, "tpm")
    state = _path(paths, "state_dir", _STATE)
    return Layout(
        config,
        link,
        state,
        _path(paths, "log_dir", _LOG),
        _path(paths, "run_dir", _RUN),
        _path(paths, "key_dir", _KEY),
        tpm.get("enabled") is not False,
        str(tpm.get("tcti", "device:/dev/tpmrm0")),
        _path(tpm, "fallback_encrypted_storage", _STATE / "secret.enc"),
        _destinations(agent, upstreams),
        *_backup(agent),
        problems,
    )


def _backup(agent: dict[str, Any]) -> tuple[Path | None, int]:
    table = _table(agent, "backup")
    directory, hours = table.get("directory"), table.get("overdue_hours", 48)
    return Path(directory) if isinstance(directory, str) else None, hours if isinstance(hours, int) else 48


def _toml(path: Path, text: Callable[[Path], str], problems: dict[str, str]) -> dict[str, Any]:
    try:
        return tomllib.loads(text(path))
    except PermissionError:
        raise
    except OSError as error:
        problems[str(path)] = error.strerror or type(error).__name__
    except tomllib.TOMLDecodeError as error:
        problems[str(path)] = f"it is not TOML: {error}"
    return {}


def _table(content: dict[str, Any], name: str) -> dict[str, Any]:
    found = content.get(name)
    return found if isinstance(found, dict) else {}


def _path(table: dict[str, Any], name: str, default: Path) -> Path:
    value = table.get(name)
    return Path(value) if isinstance(value, str) and value.startswith("/") else default


def _destinations(agent: dict[str, Any], link: dict[str, Any]) -> tuple[Destination, ...]:
    found: dict[tuple[str, int], Destination] = {}
    places = [(f"upstream.{name}", table) for name, table in _table(link, "upstream").items() if isinstance(table, dict)]
    places.append(("config.toml", _table(agent, "server")))
    for name, table in places:
        # With a proxy the link connects to nothing else; the proxy resolves the server's name.
        for key in ("proxy", "url"):
            if isinstance(table.get(key), str):
                address = address_of(table[key])
                if address is not None:
                    found.setdefault(address, Destination(name, *address))
                    break
    return tuple(found.values())


def address_of(url: str) -> tuple[str, int] | None:
    """Host and port of a URL; None if the text is no URL."""
    if not re.match(r"https?://", url):
        return None
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return None
    return None if not parts.hostname else (parts.hostname, port)
