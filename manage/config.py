"""The sections of `manage.toml`: where the REST interface listens, and with which certificates.

`settings` reads values and files; `parse_config` is pure but for the look-up of a user's name, which is passed in.
"""

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import OTHERS_WRITE
from settings.errors import ConfigError
from settings.file import ConfigFile, read_file
from settings.sections import Key, Keys, Sections
from settings.values import BadValue, Lookup, absolute_path, integer, one_id, user_id

DEFAULT_PATH = Path("/etc/license-agent/manage.toml")
DEFAULT_CA = Path("/etc/license-agent/admin-ca.pem")
DEFAULT_SOCKET = Path("/run/license-agent/admin.sock")
DEFAULT_ADDRESS, DEFAULT_PORT = "127.0.0.1", 8470
DEFAULT_USER = "license-agent"
MAX_CONFIG_BYTES = 64 * 1024
MAX_PEM_BYTES = 64 * 1024
_KEY_PRIVATE = 0o037
"""The permission bits that the key must not have: its group may read it, so that it can belong to root."""


@dataclass(frozen=True, slots=True)
class ManageConfig:
    """The whole file.

    Attributes:
        certificate: the server's certificate and those above it, PEM.
        key: its private key, PEM.
        admin_ca: the CAs of administrators' certificates, PEM.
        address: of loopback, in numbers.
        port: TCP.
        socket: the agent's admin socket.
        agent_uid: whom the agent runs as.
    """

    certificate: Path
    key: Path
    admin_ca: Path
    address: str
    port: int
    socket: Path
    agent_uid: int


@dataclass(frozen=True, slots=True)
class Credentials:
    """The content of the files that the configuration names, PEM."""

    certificate: bytes
    key: bytes
    admin_ca: bytes


def _loopback(value: Any) -> str:
    """Reads an address of this machine that no other machine reaches."""
    try:
        address = ipaddress.ip_address(value) if isinstance(value, str) and "%" not in value else None
    except ValueError:
        address = None
    # An IPv4 address in IPv6 clothing would be asked for by other rules than those that were written for it.
    mapped = isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None
    if address is None or mapped or not address.is_loopback:
        raise BadValue(
            'must be an address of loopback, "127.0.0.1" or "::1": the interface is for this machine only. '
            "To reach it from elsewhere, forward a port over SSH"
        )
    return str(address)


def _schema(user: Lookup) -> dict[str, Keys]:
    path = Key(absolute_path)
    return {
        "listen": {"address": Key(_loopback), "port": Key(integer(1024, 65535))},
        "tls": {"certificate": Key(absolute_path, required=True), "key": Key(absolute_path, required=True), "admin_ca": path},
        "agent": {"socket": path, "user": Key(one_id("user", user))},
    }


def known_keys() -> dict[str, list[str]]:
    """Returns every section with its keys."""
    return {name: list(keys) for name, keys in _schema(user_id).items()}


def parse_config(text: str, source: str, user: Lookup = user_id) -> ManageConfig:
    """Reads the configuration in a text.

    Args:
        text: TOML.
        source: the file's name, for errors.
        user: UID of a user name; KeyError if there is none.

    Raises:
        ConfigError: with everything that is wrong.
    """
    schema = _schema(user)
    found = Sections(text, source)
    found.only(schema)
    listen = found.section("listen", schema["listen"], optional=True)
    tls = found.section("tls", schema["tls"])
    agent = found.section("agent", schema["agent"], optional=True)
    uid = agent.get("user")
    if uid is None:
        try:
            uid = user(DEFAULT_USER)
        except (KeyError, ValueError):
            found.problem(f"the agent's user '{DEFAULT_USER}' does not exist on this machine; set 'user' in [agent]")
    found.check()
    return ManageConfig(
        tls["certificate"],
        tls["key"],
        tls.get("admin_ca", DEFAULT_CA),
        listen.get("address", DEFAULT_ADDRESS),
        listen.get("port", DEFAULT_PORT),
        agent.get("socket", DEFAULT_SOCKET),
        int(uid or 0),
    )


def load_config(path: Path) -> ManageConfig:
    """Reads and checks the file, which nobody but root and this program's own user may change.

    Raises:
        ConfigError: with everything that is wrong.
    """
    file = read_file(path, MAX_CONFIG_BYTES, "create it (owner root, mode 0644) with a section [tls]")
    if problems := file.problems({0, os.geteuid()}, OTHERS_WRITE):
        raise ConfigError(problems)
    return parse_config(file.text(), str(path))


def load_credentials(config: ManageConfig) -> Credentials:
    """Reads certificate, key and admin CA.

    Raises:
        ConfigError: with everything that is wrong with any of them.
    """
    problems: list[str] = []
    own = {0, os.geteuid()}
    certificate = _read(config.certificate, own, OTHERS_WRITE, problems)
    key = _read(config.key, own, _KEY_PRIVATE, problems)
    # The agent counts this file if root alone may write it, and this program must not count another one.
    admin_ca = _read(config.admin_ca, {0}, OTHERS_WRITE, problems)
    if problems:
        raise ConfigError(problems)
    return Credentials(certificate, key, admin_ca)


def _read(path: Path, owners: set[int], forbidden: int, problems: list[str]) -> bytes:
    try:
        file: ConfigFile = read_file(path, MAX_PEM_BYTES, "create it; the guide 'Manage the agent over REST' says how")
        problems += file.problems(owners, forbidden)
        file.text()
        return file.data
    except ConfigError as error:
        problems += error.problems
        return b""
