"""The configuration file: what it may say, and clear words for what it may not.

`parse_config` is pure but for the look-up of user and group names, which is passed in; `load_config` reads the file. All
problems are found in one go, each with the key, the file and what to do.
"""

import base64
import difflib
import grp
import os
import pwd
import re
import stat
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agentd.sync.degraded import CONTACTS_FAILED
from audittrail.chain import APPLICATION, OTA, SECURITY
from contracts.claims import AGENT_ID
from hwsec.tpm import NV_BASE
from ipc.bounds import DEFAULT_CONNECTIONS_PER_UID, DEFAULT_RATE_PER_S, NONCES_PER_UID
from ipc.peer import OVERFLOW_ID

DEFAULT_PATH = Path("/etc/license-agent/config.toml")
MAX_CONFIG_BYTES = 256 * 1024


class ConfigError(Exception):
    """The configuration cannot be used.

    Attributes:
        problems: a sentence each.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """`[server]`: how to reach the license server."""

    url: str = ""
    cert_pin: tuple[str, ...] = ()
    client_cert: Path | None = None
    client_key: Path | None = None


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """`[agent]`: who this is; the two periods, in seconds, may only shorten the server's dates.

    An empty id leaves it to the server, which gives one when the agent is provisioned.
    """

    id: str = ""
    rotation_interval: int | None = None
    grace_period: int | None = None
    degraded_switch: str = "forbidden"
    degraded_after: int = CONTACTS_FAILED
    stale_revocations: str = "accept"


@dataclass(frozen=True, slots=True)
class TpmConfig:
    """`[tpm]`: whether and how to use the TPM, and where the software backend keeps its store."""

    enabled: bool = True
    fallback_encrypted_storage: Path = Path("/var/lib/license-agent/secret.enc")
    fallback: str = "forbidden"
    tcti: str = "device:/dev/tpmrm0"
    nv_base: int = NV_BASE


@dataclass(frozen=True, slots=True)
class PosConfig:
    """`[pos]`: who may ask on the POS socket, and how much."""

    allowed_uids: frozenset[int] = frozenset()
    allowed_gids: frozenset[int] = frozenset()
    rate_per_s: int = DEFAULT_RATE_PER_S
    connections_per_uid: int = DEFAULT_CONNECTIONS_PER_UID
    nonces_per_uid: int = NONCES_PER_UID


@dataclass(frozen=True, slots=True)
class ManagementConfig:
    """`[management]`: who may use the admin socket besides root."""

    allowed_uids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class AuditConfig:
    """`[audit]`: how much the log may take."""

    segment_bytes: int = 16 * 1024 * 1024
    daily_bytes: int = 64 * 1024 * 1024
    records_per_s: int = 50
    burst: int = 1000
    application_days: int = 30
    security_days: int = 90
    ota_days: int = 366
    archive_bytes: int = 512 * 1024 * 1024
    archive_key: Path | None = None

    def retention_days(self) -> dict[str, int]:
        """How long each retention class is kept."""
        return {APPLICATION: self.application_days, SECURITY: self.security_days, OTA: self.ota_days}


@dataclass(frozen=True, slots=True)
class PathsConfig:
    """`[paths]`: where things are."""

    state_dir: Path = Path("/var/lib/license-agent")
    log_dir: Path = Path("/var/log/license-agent")
    run_dir: Path = Path("/run/license-agent")
    key_dir: Path = Path("/var/lib/license-agent-key")


@dataclass(frozen=True, slots=True)
class Config:
    """The whole file."""

    agent: AgentConfig = field(default_factory=AgentConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    tpm: TpmConfig = field(default_factory=TpmConfig)
    pos: PosConfig = field(default_factory=PosConfig)
    management: ManagementConfig = field(default_factory=ManagementConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)

    def with_agent_id(self, agent_id: str) -> "Config":
        """The same with this agent id."""
        return replace(self, agent=replace(self.agent, id=agent_id))

    @property
    def link_socket(self) -> Path:
        """Where the link listens."""
        return self.paths.run_dir / "link.sock"

    @property
    def rotation_journal(self) -> Path:
        """Where a rotation stands."""
        return self.paths.state_dir / "rotation.json"

    @property
    def policies_dir(self) -> Path:
        """Where signed PCR policies are kept."""
        return self.paths.state_dir / "policies"

    @property
    def inventory_file(self) -> Path:
        """The license inventory."""
        return self.paths.state_dir / "licenses.json"

    @property
    def audit_log(self) -> Path:
        """The open audit file."""
        return self.paths.log_dir / "audit.log"

    @property
    def metrics_file(self) -> Path:
        """Read by node_exporter's textfile collector."""
        return self.paths.state_dir / "metrics.prom"

    @property
    def state_file(self) -> Path:
        """The rendered view of the state."""
        return self.paths.state_dir / "state.json"

    @property
    def store_file(self) -> Path:
        """The sealed store of the backend in use."""
        return self.paths.state_dir / "secrets.store" if self.tpm.enabled else self.tpm.fallback_encrypted_storage


class _Bad(Exception):
    """A value that cannot be used: what it must be."""


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _Bad("must be a text in quotes")
    return value


def _agent_id(value: Any) -> str:
    if not AGENT_ID.fullmatch(_text(value)):
        raise _Bad("must be 1 to 64 letters, digits, dots, dashes or underscores, and begin with a letter or digit")
    return str(value)


def _integer(least: int, most: int) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise _Bad(f"must be a whole number from {least} to {most}")
        return value

    return convert


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Bad("must be true or false, without quotes")
    return value


def _one_of(*allowed: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if value not in allowed:
            raise _Bad(f"must be one of {', '.join(allowed)}")
        return str(value)

    return convert


def _absolute(value: Any) -> Path:
    path = Path(_text(value))
    if not path.is_absolute() or ".." in path.parts or "\0" in str(path):
        raise _Bad("must be an absolute path without '..' (and without a NUL character)")
    return path


def _https(value: Any) -> str:
    if not re.fullmatch(r"https://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[^\s]*)?", _text(value)):
        raise _Bad("must be an https:// address")
    return str(value)


def _pins(value: Any) -> tuple[str, ...]:
    pins = value if isinstance(value, list) else [value]
    if not pins:
        raise _Bad("must have at least one pin")
    for pin in pins:
        kind, _, digest = pin.partition(":") if isinstance(pin, str) else ("", "", "")
        try:
            raw = bytes.fromhex(digest) if len(digest) == 64 else base64.b64decode(digest, validate=True)
        except ValueError:
            raw = b""
        if kind != "sha256" or len(raw) != 32:
            raise _Bad(
                'must be "sha256:" and the SHA-256 of the server\'s public key (SPKI) in base64 or hex, or a list of such'
            )
    return tuple(pins)


def _tcti(value: Any) -> str:
    if not re.fullmatch(r"(device|swtpm|mssim|tabrmd)(:.*)?", _text(value)):
        raise _Bad('must be a TCTI such as "device:/dev/tpmrm0"')
    return str(value)


Lookup = Callable[[str], int]


def _ids(kind: str, lookup: Lookup) -> Callable[[Any], frozenset[int]]:
    def convert(value: Any) -> frozenset[int]:
        if not isinstance(value, list):
            raise _Bad(f"must be a list of {kind} names or numbers")
        ids = set()
        for entry in value:
            if isinstance(entry, str):
                try:
                    ids.add(lookup(entry))
                except (KeyError, ValueError):
                    raise _Bad(
                        f"names the {kind} {entry!r}, which does not exist on this machine; create it or remove it"
                    ) from None
            elif isinstance(entry, int) and not isinstance(entry, bool) and 0 <= entry < 2**32 - 1:
                ids.add(entry)
            else:
                raise _Bad(f"must be a list of {kind} names or numbers; {entry!r} is neither")
        if OVERFLOW_ID in ids:
            raise _Bad(f"must not contain {OVERFLOW_ID}: the kernel shows that number for users it cannot name")
        return frozenset(ids)

    return convert


def _schema(user: Lookup, group: Lookup) -> dict[str, tuple[type, dict[str, Callable[[Any], Any]]]]:
    period = _integer(60, 10 * 366 * 86_400)
    return {
        "server": (ServerConfig, {"url": _https, "cert_pin": _pins, "client_cert": _absolute, "client_key": _absolute}),
        "agent": (
            AgentConfig,
            {
                "id": _agent_id,
                "rotation_interval": period,
                "grace_period": period,
                "degraded_switch": _one_of("forbidden", "allowed"),
                "degraded_after": _integer(1, 1000),
                "stale_revocations": _one_of("accept", "refuse"),
            },
        ),
        "tpm": (
            TpmConfig,
            {
                "enabled": _boolean,
                "fallback_encrypted_storage": _absolute,
                "fallback": _one_of("forbidden", "enroll"),
                "tcti": _tcti,
                "nv_base": _integer(0x01800000, 0x01BFFFFB),
            },
        ),
        "pos": (
            PosConfig,
            {
                "allowed_uids": _ids("user", user),
                "allowed_gids": _ids("group", group),
                "rate_per_s": _integer(1, 10_000_000),
                "connections_per_uid": _integer(1, 1000),
                "nonces_per_uid": _integer(1000, 16_777_216),
            },
        ),
        "management": (ManagementConfig, {"allowed_uids": _ids("user", user)}),
        "audit": (
            AuditConfig,
            {
                "segment_bytes": _integer(65_536, 2**30),
                "daily_bytes": _integer(65_536, 2**36),
                "records_per_s": _integer(1, 10_000),
                "burst": _integer(1, 1_000_000),
                "application_days": _integer(1, 3660),
                "security_days": _integer(1, 3660),
                "ota_days": _integer(1, 3660),
                "archive_bytes": _integer(1_048_576, 2**40),
                "archive_key": _absolute,
            },
        ),
        "paths": (
            PathsConfig,
            {"state_dir": _absolute, "log_dir": _absolute, "run_dir": _absolute, "key_dir": _absolute},
        ),
    }


def known_keys() -> dict[str, list[str]]:
    """Every section with its keys."""
    return {name: list(keys) for name, (_, keys) in _schema(_user, _group).items()}


def _user(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _group(name: str) -> int:
    return grp.getgrnam(name).gr_gid


def parse_config(text: str, source: str, user: Lookup = _user, group: Lookup = _group) -> Config:
    """The configuration in a text.

    Args:
        text: TOML.
        source: the file's name, for errors.
        user: UID of a user name; KeyError if there is none.
        group: GID of a group name; KeyError if there is none.

    Raises:
        ConfigError: with everything that is wrong.
    """
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"{source}: not TOML: {error}"]) from None
    schema = _schema(user, group)
    problems: list[str] = []
    sections: dict[str, Any] = {}
    for name, value in content.items():
        if name not in schema:
            problems.append(f"{source}: unknown section [{name}]{_hint(name, schema)}")
        elif not isinstance(value, dict):
            problems.append(f"{source}: {name} must be a section [{name}], not a key")
        else:
            kind, keys = schema[name]
            sections[name] = _section(name, kind, keys, value, source, problems)
    if isinstance(content.get("server"), dict):
        missing = [key for key in ("url", "cert_pin") if key not in content["server"]]
        problems.extend(f"{source}: the key '{key}' is missing in [server]; add it or remove the section" for key in missing)
    if problems:
        raise ConfigError(problems)
    return Config(**sections)


def _section(
    name: str, kind: type, keys: dict[str, Callable[[Any], Any]], values: dict[str, Any], source: str, problems: list[str]
) -> Any:
    converted = {}
    before = len(problems)
    for key, value in values.items():
        if key not in keys:
            problems.append(f"{source}: unknown key '{key}' in [{name}]{_hint(key, keys)}")
            continue
        try:
            converted[key] = keys[key](value)
        except _Bad as bad:
            problems.append(f"{source}: '{key}' in [{name}] {bad}")
    return None if len(problems) > before else kind(**converted)


def _hint(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(known)}"


def check_file(path: Path, owners: frozenset[int]) -> list[str]:
    """What is wrong with a private file's owner and mode."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return [f"{path} does not exist; create it (owner license-agent, mode 0600)"]
    except OSError as error:
        return [f"{path} cannot be examined: {error.strerror}"]
    if not stat.S_ISREG(info.st_mode):
        return [f"{path} is not a regular file; put the file itself there"]
    problems = []
    mode = stat.S_IMODE(info.st_mode)
    if mode & 0o077:
        problems.append(f"{path} has mode {mode:04o}, so that others may use it; run: chmod 0600 {path}")
    if info.st_uid not in owners:
        wanted = " or ".join(str(uid) for uid in sorted(owners))
        problems.append(f"{path} belongs to uid {info.st_uid}; it must belong to uid {wanted}: chown it")
    return problems


def load_config(path: Path, daemon_uid: int) -> Config:
    """Reads and checks the configuration file.

    Args:
        path: the file.
        daemon_uid: whose file it may be, besides root's. For root itself, the owner of the state directory is meant:
            the user that the daemon will run as.

    Raises:
        ConfigError: with everything that is wrong.
    """
    if path.exists() and not path.is_file():
        raise ConfigError(check_file(path, frozenset({0, daemon_uid})))
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        problems = check_file(path, frozenset({0, daemon_uid}))
        raise ConfigError(problems or [f"{path} cannot be read: {error.strerror}"]) from None
    config, problems = None, []
    if len(data) > MAX_CONFIG_BYTES:
        problems.append(f"{path} has more than {MAX_CONFIG_BYTES} bytes")
    else:
        try:
            config = parse_config(data.decode("utf-8"), str(path))
        except UnicodeDecodeError:
            problems.append(f"{path} is not UTF-8")
        except ConfigError as error:
            problems.extend(error.problems)
    owners = {0, daemon_uid}
    if config is not None and os.geteuid() == 0 and config.paths.state_dir.is_dir():
        owners.add(config.paths.state_dir.stat().st_uid)
    problems = [*check_file(path, frozenset(owners)), *problems]
    if config is not None:
        problems.extend(_check_client_files(config, path, frozenset(owners)))
    if problems or config is None:
        raise ConfigError(problems)
    return config


def _check_client_files(config: Config, source: Path, owners: frozenset[int]) -> list[str]:
    problems: list[str] = []
    for key in ("client_cert", "client_key"):
        path: Path | None = getattr(config.server, key)
        if path is None:
            continue
        found = check_file(path, owners)
        problems.extend(f"{source}: '{key}' in [server]: {text}" for text in found)
        if key == "client_key" and not found and os.access(path, os.R_OK) and b"PRIVATE KEY" in path.read_bytes()[:4096]:
            problems.append(
                f"{source}: 'client_key' in [server]: {path} is a plain private key; the agent takes only a sealed one"
            )
    return problems
