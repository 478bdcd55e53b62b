"""The sections of `config.toml`: their keys, defaults and bounds, and the rules that span keys.

`settings` reads values and files; `parse_config` is pure but for the look-up of user and group names, which is passed in.
"""

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from agentd.base.alerts import Severity
from audittrail.chain import APPLICATION, OTA, SECURITY
from common.files import file_problems
from contracts.admin.adminca import FILE_NAME
from contracts.claims import AGENT_ID
from contracts.contact.configuration import BOUNDS
from hwsec.nv.layout import NV_BASE
from ipc.bounds import DEFAULT_CONNECTIONS_PER_UID, DEFAULT_RATE_PER_S, MAX_PRODUCT_CHARS, NONCES_PER_UID
from settings.errors import ConfigError
from settings.file import read_file
from settings.sections import Key, Keys, Sections
from settings.values import (
    Lookup,
    absolute_path,
    boolean,
    group_id,
    https_url,
    ids,
    integer,
    lists_by_id,
    matching,
    one_of,
    pins,
    socket_directory,
    text_of,
    user_id,
)

from .backupconfig import BACKUP_KEYS, BackupConfig
from .certificatesconfig import CERTIFICATES_KEYS, CertificatesConfig
from .fleetconfig import FLEET_KEYS, FleetConfig
from .updatesconfig import KEYS as UPDATES_KEYS
from .updatesconfig import UpdatesConfig
from .updatesconfig import check as check_updates

DEFAULT_PATH = Path("/etc/license-agent/config.toml")
MANAGE_USER = "license-agent-manage"
"""Whom the REST interface runs as."""
MAX_CONFIG_BYTES = 256 * 1024
CONTACTS_FAILED = 3
"""Contacts that must have failed in a row, while a new secret is due, before the agent is in degraded mode."""
_TCTI = re.compile(r"(device|swtpm|mssim|tabrmd)(:.*)?")
_AGENT_ID_FORM = "must be 1 to 64 letters, digits, dots, dashes or underscores, and begin with a letter or digit"


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """`[server]`: how to reach the license server. The certificate and its key have no effect; see `_PROVISIONED`."""

    url: str = ""
    cert_pin: tuple[str, ...] = ()
    client_cert: Path | None = None
    client_key: Path | None = None


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """`[agent]`: who this is; the two periods, in seconds, may only shorten the server's dates.

    An empty id leaves it to the server, which gives one when the agent is provisioned, and so does a missing contact interval,
    which the server names at each contact. Both intervals are in seconds.
    """

    id: str = ""
    rotation_interval: int | None = None
    grace_period: int | None = None
    degraded_switch: str = "forbidden"
    degraded_after: int = CONTACTS_FAILED
    stale_revocations: str = "accept"
    contact_interval: int | None = None
    metrics_interval: int = 15


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
    licenses: dict[int, frozenset[str]] = field(default_factory=dict)
    """The products of which a UID may learn by `require` and `licenses`; a UID that is not in it may learn of all licenses."""


@dataclass(frozen=True, slots=True)
class ManagementConfig:
    """`[management]`: who may use the admin socket besides root, and whether they need a certificate.

    Without `authentication` they need one once root has installed an admin CA. `signing_uids` is no key of the
    file: it holds the user of license-agent-manage, where that package is installed. That program passes on what others send,
    so the kernel's word for its user says nothing about who asks: it needs signatures whatever `authentication` says.
    """

    allowed_uids: frozenset[int] = frozenset()
    authentication: str | None = None
    signing_uids: frozenset[int] = frozenset()


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
class AlertsConfig:
    """`[alerts]`: whether alerts go to the webhook that link.toml names, and from which severity on."""

    webhook: bool = False
    min_severity: str = "low"


@dataclass(frozen=True, slots=True)
class PathsConfig:
    """`[paths]`: where things are."""

    state_dir: Path = Path("/var/lib/license-agent")
    log_dir: Path = Path("/var/log/license-agent")
    run_dir: Path = Path("/run/license-agent")
    key_dir: Path = Path("/var/lib/license-agent-key")


@dataclass(frozen=True, slots=True)
class Config:
    """The whole file.

    Attributes:
        warnings: a sentence for each key that was set and has no effect.
        admin_ca: the admin CA's file, beside this one; None for a configuration that no file holds.
        source: the file's name; empty for a configuration that was not read.
        given: the keys that the file has, as `section.key`; all others have their defaults.
    """

    agent: AgentConfig = field(default_factory=AgentConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    tpm: TpmConfig = field(default_factory=TpmConfig)
    pos: PosConfig = field(default_factory=PosConfig)
    management: ManagementConfig = field(default_factory=ManagementConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    alerts: AlertsConfig = field(default_factory=AlertsConfig)
    backup: BackupConfig = field(default_factory=BackupConfig)
    updates: UpdatesConfig = field(default_factory=UpdatesConfig)
    certificates: CertificatesConfig = field(default_factory=CertificatesConfig)
    fleet: FleetConfig = field(default_factory=FleetConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    warnings: tuple[str, ...] = field(default=(), compare=False)
    admin_ca: Path | None = field(default=None, compare=False)
    source: str = field(default="", compare=False)
    given: frozenset[str] = field(default=frozenset(), compare=False)

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
    def updates_enabled(self) -> bool:
        """Whether updates are installed; root switches them on with update-trust.json, unless the configuration says it."""
        if self.updates.enabled is not None:
            return self.updates.enabled
        return bool(self.source) and self.update_trust.exists()

    @property
    def update_trust(self) -> Path:
        """Root's file of whom this machine believes in updates; updater and installer go by it."""
        return Path(self.source).absolute().with_name("update-trust.json")

    @property
    def updater_socket(self) -> Path:
        """Where the updater listens."""
        return self.paths.run_dir / "updater.sock"

    @property
    def installer_socket(self) -> Path:
        """Where the installer listens."""
        return self.paths.run_dir / "installer.sock"

    @property
    def fleet_file(self) -> Path:
        """What the machine's fleet sets, as the server has signed it."""
        return self.paths.state_dir / "fleet-configuration.json"

    @property
    def updates_journal(self) -> Path:
        """Where an update is."""
        return self.paths.state_dir / "ota.json"

    @property
    def updates_register(self) -> Path:
        """The maintenance register."""
        return self.paths.state_dir / "ota-register.json"

    @property
    def updates_backup(self) -> Path:
        """The backup that was made before the last installation began."""
        return self.paths.state_dir / "ota-backup.json"

    @property
    def policies_dir(self) -> Path:
        """Where signed PCR policies are kept."""
        return self.paths.state_dir / "policies"

    @property
    def usage_file(self) -> Path:
        """Usage counts."""
        return self.paths.state_dir / "usage.counts"

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
    def webhook_file(self) -> Path:
        """Alerts that wait for the webhook, and those that it has not taken."""
        return self.paths.state_dir / "webhook.json"

    @property
    def backup_file(self) -> Path:
        """What is known of the backups that the timer makes."""
        return self.paths.state_dir / "backup.json"

    @property
    def store_file(self) -> Path:
        """The sealed store of the backend in use."""
        return self.paths.state_dir / "secrets.store" if self.tpm.enabled else self.tpm.fallback_encrypted_storage


_PROVISIONED = "the agent gets its certificate when it is provisioned, and makes the key itself"


def _schema(user: Lookup, group: Lookup) -> dict[str, tuple[type, Keys]]:
    period = Key(integer(60, 10 * 366 * 86_400))
    days = Key(integer(1, 3660))
    path = Key(absolute_path)
    run_dir = Key(socket_directory("pos.sock", "admin.sock", "link.sock"))
    return {
        "server": (
            ServerConfig,
            {
                "url": Key(https_url, required=True),
                "cert_pin": Key(pins(), required=True),
                "client_cert": Key(absolute_path, unused=_PROVISIONED),
                "client_key": Key(absolute_path, unused=_PROVISIONED),
            },
        ),
        "agent": (
            AgentConfig,
            {
                "id": Key(matching(AGENT_ID, _AGENT_ID_FORM)),
                "rotation_interval": period,
                "grace_period": period,
                "degraded_switch": Key(one_of("forbidden", "allowed")),
                "degraded_after": Key(integer(1, 1000)),
                "stale_revocations": Key(one_of("accept", "refuse")),
                "contact_interval": Key(integer(*BOUNDS["agent.contact_interval"])),
                "metrics_interval": Key(integer(*BOUNDS["agent.metrics_interval"])),
            },
        ),
        "tpm": (
            TpmConfig,
            {
                "enabled": Key(boolean),
                "fallback_encrypted_storage": path,
                "fallback": Key(one_of("forbidden", "enroll")),
                "tcti": Key(matching(_TCTI, 'must be a TCTI such as "device:/dev/tpmrm0"')),
                "nv_base": Key(integer(0x01800000, 0x01BFFFFB)),
            },
        ),
        "pos": (
            PosConfig,
            {
                "allowed_uids": Key(ids("user", user)),
                "allowed_gids": Key(ids("group", group)),
                "rate_per_s": Key(integer(1, 10_000_000)),
                "connections_per_uid": Key(integer(1, 1000)),
                "nonces_per_uid": Key(integer(1000, 16_777_216)),
                "licenses": Key(lists_by_id("user", user, text_of(MAX_PRODUCT_CHARS))),
            },
        ),
        "management": (
            ManagementConfig,
            {"allowed_uids": Key(ids("user", user)), "authentication": Key(one_of("required", "uid-only"))},
        ),
        "audit": (
            AuditConfig,
            {
                "segment_bytes": Key(integer(65_536, 2**30)),
                "daily_bytes": Key(integer(65_536, 2**36)),
                "records_per_s": Key(integer(1, 10_000)),
                "burst": Key(integer(1, 1_000_000)),
                "application_days": days,
                "security_days": days,
                "ota_days": days,
                "archive_bytes": Key(integer(1_048_576, 2**40)),
                "archive_key": path,
            },
        ),
        "alerts": (
            AlertsConfig,
            {"webhook": Key(boolean), "min_severity": Key(one_of(*(severity.value for severity in Severity)))},
        ),
        "backup": (BackupConfig, BACKUP_KEYS),
        "updates": (UpdatesConfig, dict(UPDATES_KEYS)),
        "certificates": (CertificatesConfig, CERTIFICATES_KEYS),
        "fleet": (FleetConfig, FLEET_KEYS),
        "paths": (PathsConfig, {"state_dir": path, "log_dir": path, "run_dir": run_dir, "key_dir": path}),
    }


def known_keys() -> dict[str, list[str]]:
    """Returns every section with its keys."""
    return {name: list(keys) for name, (_, keys) in _schema(user_id, group_id).items()}


def parse_config(text: str, source: str, user: Lookup = user_id, group: Lookup = group_id) -> Config:
    """Reads the configuration in a text.

    Args:
        text: TOML.
        source: the file's name, for errors.
        user: UID of a user name; KeyError if there is none.
        group: GID of a group name; KeyError if there is none.

    Raises:
        ConfigError: with everything that is wrong.
    """
    schema = _schema(user, group)
    found = Sections(text, source)
    values = {name: found.section(name, schema[name][1], optional=True) for name in found.only(schema)}
    check_updates(found, values.get("updates", {}))
    found.check()
    sections = {name: schema[name][0](**converted) for name, converted in values.items()}
    given = frozenset(f"{name}.{key}" for name, converted in values.items() for key in converted)
    if (backup := sections.get("backup")) is not None and backup.problem:
        raise ConfigError([f"{source}: {backup.problem}"])
    config = Config(**sections, warnings=tuple(found.warnings), source=source, given=given)
    return replace(config, management=replace(config.management, signing_uids=_fronts(user)))


def _fronts(user: Lookup) -> frozenset[int]:
    """UIDs of the programs that pass on what administrators have signed."""
    try:
        return frozenset({user(MANAGE_USER)})
    except (KeyError, ValueError):
        return frozenset()  # it is not installed


def load_config(path: Path, daemon_uid: int) -> Config:
    """Reads and checks the configuration file.

    Args:
        path: the file.
        daemon_uid: whose file it may be, besides root's. Root may also read that of the user who owns the state directory:
            the daemon will run as that user.

    Raises:
        ConfigError: with everything that is wrong.
    """
    file = read_file(path, MAX_CONFIG_BYTES, "create it (owner license-agent, mode 0600)", follow=False)
    owners = {0, daemon_uid}
    try:
        config = parse_config(file.text(), str(path))
    except ConfigError as error:
        if os.geteuid() == 0:
            owners.add(file.info.st_uid)  # whose it may be, only a whole configuration says
        raise ConfigError([*file.problems(owners), *error.problems]) from None
    if os.geteuid() == 0 and config.paths.state_dir.is_dir():
        owners.add(config.paths.state_dir.stat().st_uid)
    if problems := [*file.problems(owners), *_client_files(config, path, owners)]:
        raise ConfigError(problems)
    return replace(config, admin_ca=path.absolute().with_name(FILE_NAME))


def _client_files(config: Config, source: Path, owners: set[int]) -> list[str]:
    """Says what is wrong with a client certificate and key that are configured: they have no effect, but must not lie open."""
    problems: list[str] = []
    for key, path in (("client_cert", config.server.client_cert), ("client_key", config.server.client_key)):
        if path is None:
            continue
        try:
            found = file_problems(path, path.lstat(), owners)
        except OSError as error:
            found = [f"{path} cannot be examined: {error.strerror}; {_PROVISIONED}: remove the key"]
        if key == "client_key" and not found and _is_plain_key(path):
            found = [f"{path} is a plain private key; remove the key, and the file"]
        problems.extend(f"{source}: '{key}' in [server]: {text}" for text in found)
    return problems


def _is_plain_key(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b"PRIVATE KEY" in file.read(4096)
    except OSError:
        return False  # out of the reach of a confined process, which has no use for it
