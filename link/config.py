"""The sections of `link.toml`: where the link may connect to. It reaches nothing else, and the core cannot write the file.

`settings` reads values and files; `parse_config` is pure but for the look-up of a user's name, which is passed in.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from common.files import OTHERS_WRITE
from ipc.linkmessages import MAX_PINS, Upstream
from settings.errors import ConfigError
from settings.file import read_file
from settings.sections import Key, Keys, Sections
from settings.values import BadValue, Lookup, boolean, one_id, pins, user_id

from .pins import is_host, parse_pins

DEFAULT_PATH = Path("/etc/license-agent/link.toml")
MAX_CONFIG_BYTES = 64 * 1024
UPSTREAMS: tuple[str, ...] = get_args(Upstream)
_URL = re.compile(r"(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::([0-9]{1,5}))?(/[A-Za-z0-9._~/-]*)?")


@dataclass(frozen=True, slots=True)
class UpstreamConfig:
    """`[upstream.NAME]`: one destination.

    Attributes:
        url: its base, `https://HOST[:PORT][/PATH]` without a slash at the end.
        host: what its certificate must be for: a DNS name or an IP address.
        pins: SHA-256 of accepted public keys, 32 bytes each.
        proxy: `http://HOST:PORT` of an HTTP proxy that makes tunnels (CONNECT), or None.
    """

    url: str
    host: str
    pins: frozenset[bytes]
    proxy: str | None = None


@dataclass(frozen=True, slots=True)
class LinkConfig:
    """The whole file.

    Attributes:
        core_uid: the one user who may use the socket.
        upstreams: by name.
        provisioning: whether the core may name an upstream that the file does not.
        provisioning_proxy: as `UpstreamConfig.proxy`, for those.
    """

    core_uid: int
    upstreams: Mapping[str, UpstreamConfig] = field(default_factory=dict)
    provisioning: bool = True
    provisioning_proxy: str | None = None


def parse_url(value: Any) -> tuple[str, str]:
    """Base and host of an upstream's address.

    Raises:
        ValueError: what it must be.
    """
    base, scheme, host = _address(value)
    if scheme != "https":
        raise ValueError("must be an https:// address: https://HOST, with :PORT and /PATH if need be")
    return base.rstrip("/"), host


def _address(value: Any) -> tuple[str, str, str]:
    match = _URL.fullmatch(value) if isinstance(value, str) else None
    host = match[2].strip("[]") if match else ""
    if (
        match is None
        or not is_host(host)
        or (match[3] and not 0 < int(match[3]) < 65536)
        or ".." in value
        or "//" in (match[4] or "")
    ):
        raise ValueError("must be an https:// address: https://HOST, with :PORT and /PATH if need be, and nothing else")
    return value, match[1], host


def _url(value: Any) -> tuple[str, str]:
    try:
        return parse_url(value)
    except ValueError as error:
        raise BadValue(str(error)) from None


def _proxy(value: Any) -> str:
    try:
        url, scheme, _ = _address(value)
    except ValueError:
        scheme = ""
    if scheme != "http" or url.count("/") > 2:
        raise BadValue(
            "must be http://HOST:PORT of a proxy that knows CONNECT, without user and password (no secret stays here)"
        )
    return url


def _schema(user: Lookup) -> dict[str, Keys]:
    proxy = Key(_proxy)
    return {
        "core": {"user": Key(one_id("user", user), required=True)},
        "provisioning": {"allowed": Key(boolean), "proxy": proxy},
        "upstream": {"url": Key(_url, required=True), "pins": Key(pins(MAX_PINS), required=True), "proxy": proxy},
    }


def known_keys() -> dict[str, list[str]]:
    """Returns every section with its keys; under the name `upstream`, the keys of every `upstream.NAME`."""
    return {name: list(keys) for name, keys in _schema(user_id).items()}


def parse_config(text: str, source: str, user: Lookup = user_id) -> LinkConfig:
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
    core = found.section("core", schema["core"])
    provisioning = found.section("provisioning", schema["provisioning"], optional=True)
    named = {
        name: found.section(f"upstream.{name}", schema["upstream"], optional=True) for name in found.only(UPSTREAMS, "upstream")
    }
    found.check()
    upstreams = {}
    for name, keys in named.items():
        url, host = keys["url"]
        upstreams[name] = UpstreamConfig(url, host, parse_pins(keys["pins"]), keys.get("proxy"))
    return LinkConfig(core["user"], upstreams, provisioning.get("allowed", True), provisioning.get("proxy"))


def load_config(path: Path) -> LinkConfig:
    """Reads and checks the file, which nobody but root and the link's own user may change.

    Raises:
        ConfigError: with everything that is wrong.
    """
    file = read_file(path, MAX_CONFIG_BYTES, "create it (owner root, mode 0644) with a section [core]")
    if problems := file.problems({0, os.geteuid()}, OTHERS_WRITE):
        raise ConfigError(problems)
    return parse_config(file.text(), str(path))
