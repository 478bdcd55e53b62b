"""The sections of `link.toml`: where the link may connect to. It reaches nothing else, and the core cannot write the file.

`settings` reads values and files; `parse_config` is pure but for the look-up of a user's name, which is passed in.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from common.addresses import Network, networks
from common.files import OTHERS_WRITE
from ipc.linkmessages import MAX_PINS, Upstream
from settings.errors import ConfigError
from settings.file import read_file
from settings.sections import Key, Keys, Sections
from settings.values import BadValue, Lookup, absolute_path, boolean, one_id, pins, user_id

from .pins import is_host, parse_pins, parse_roots

DEFAULT_PATH = Path("/etc/license-agent/link.toml")
MAX_CONFIG_BYTES = 64 * 1024
MAX_CA_FILE_BYTES = 1024 * 1024
WEBHOOK = "webhook"
"""The upstream that alerts go to. It has one fixed path, and keys of its own."""
OTA = "ota"
"""The repository of updates: the only upstream that the updater may use."""
UPDATER_USER = "license-agent-updater"
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
        ca_file: the CAs that vouch for the certificate, in place of pins; None where pins count.
        roots: what is in that file, each certificate in DER; `load_config` fills it.
        listed: networks that the webhook may be in although they are not public.
    """

    url: str
    host: str
    pins: frozenset[bytes]
    proxy: str | None = None
    ca_file: Path | None = None
    roots: tuple[bytes, ...] = ()
    listed: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class LinkConfig:
    """The whole file.

    Attributes:
        core_uid: the user who may use every upstream.
        updater_uid: the user who may use `ota` only; None where there is none.
        upstreams: by name.
        provisioning: whether the core may name an upstream that the file does not.
        provisioning_proxy: as `UpstreamConfig.proxy`, for those.
    """

    core_uid: int
    upstreams: Mapping[str, UpstreamConfig] = field(default_factory=dict)
    provisioning: bool = True
    provisioning_proxy: str | None = None
    updater_uid: int | None = None


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


def _fixed_url(value: Any) -> tuple[str, str]:
    """The webhook's whole address, whose path stays as it is written."""
    host = _url(value)[1]
    return str(value), host


def _networks(value: Any) -> tuple[Network, ...]:
    try:
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise ValueError
        return networks(value)
    except ValueError:
        raise BadValue('must be a list of networks such as ["10.20.0.0/16"] or ["127.0.0.1/32", "::1/128"]') from None


def _schema(user: Lookup) -> dict[str, Keys]:
    proxy = Key(_proxy)
    return {
        "core": {"user": Key(one_id("user", user), required=True)},
        "updater": {"user": Key(one_id("user", user))},
        "provisioning": {"allowed": Key(boolean), "proxy": proxy},
        "upstream": {"url": Key(_url, required=True), "pins": Key(pins(MAX_PINS), required=True), "proxy": proxy},
        f"upstream.{WEBHOOK}": {
            "url": Key(_fixed_url, required=True),
            "pins": Key(pins(MAX_PINS)),
            "ca_file": Key(absolute_path),
            "allow_addresses": Key(_networks),
            "proxy": proxy,
        },
        f"upstream.{OTA}": {
            "url": Key(_url, required=True),
            "pins": Key(pins(MAX_PINS)),
            "ca_file": Key(absolute_path),
            "proxy": proxy,
        },
    }


def known_keys() -> dict[str, list[str]]:
    """Returns every section with its keys; under `upstream`, those of every `upstream.NAME` that has none of its own here."""
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
    found.only(name for name in schema if "." not in name)
    core = found.section("core", schema["core"])
    updater = found.section("updater", schema["updater"])
    provisioning = found.section("provisioning", schema["provisioning"], optional=True)
    named = {
        name: found.section(f"upstream.{name}", schema.get(f"upstream.{name}", schema["upstream"]), optional=True)
        for name in found.only(UPSTREAMS, "upstream")
    }
    for name in named.keys() & {WEBHOOK, OTA}:
        keys = found.content["upstream"][name]
        for problem in _trust_problems(name, keys) if isinstance(keys, dict) else ():
            found.problem(problem)
    if "user" in updater and updater["user"] == core.get("user"):
        found.problem("[updater] and [core] name the same user; the updater must run as a user of its own")
    found.check()
    upstreams = {}
    for name, keys in named.items():
        url, host = keys["url"]
        upstreams[name] = UpstreamConfig(
            url,
            host,
            parse_pins(keys["pins"]) if "pins" in keys else frozenset(),
            keys.get("proxy"),
            keys.get("ca_file"),
            listed=keys.get("allow_addresses", ()),
        )
    return LinkConfig(
        core["user"],
        upstreams,
        provisioning.get("allowed", True),
        provisioning.get("proxy"),
        updater["user"] if "user" in updater else _packaged_updater(user, core["user"]),
    )


def _packaged_updater(user: Lookup, core_uid: int) -> int | None:
    """The user that the package makes for the updater; None if this machine has no such user, or it is the core's."""
    try:
        uid = user(UPDATER_USER)
    except (KeyError, ValueError):
        return None
    return None if uid == core_uid else uid


def _trust_problems(name: str, keys: Mapping[str, Any]) -> list[str]:
    """What no single key of an upstream with 'ca_file' can tell; `keys` as they are written."""
    section, problems = f"[upstream.{name}]", []
    if ("pins" in keys) == ("ca_file" in keys):
        problems.append(f"{section} needs 'pins' or 'ca_file', and not both: they say whose certificate is accepted")
    if "proxy" in keys and "allow_addresses" in keys:
        problems.append(f"'allow_addresses' in {section} has no effect with 'proxy': the proxy decides where it connects to")
    return problems


def load_config(path: Path) -> LinkConfig:
    """Reads and checks the file, which nobody but root and the link's own user may change.

    Raises:
        ConfigError: with everything that is wrong.
    """
    file = read_file(path, MAX_CONFIG_BYTES, "create it (owner root, mode 0644) with a section [core]")
    if problems := file.problems({0, os.geteuid()}, OTHERS_WRITE):
        raise ConfigError(problems)
    config = parse_config(file.text(), str(path))
    return replace(config, upstreams={name: _with_roots(each) for name, each in config.upstreams.items()})


def _with_roots(upstream: UpstreamConfig) -> UpstreamConfig:
    """The same with what is in its CA file.

    Raises:
        ConfigError: the file cannot be used.
    """
    if upstream.ca_file is None:
        return upstream
    file = read_file(upstream.ca_file, MAX_CA_FILE_BYTES, "put the CA's certificate there (PEM, owner root, mode 0644)")
    if problems := file.problems({0, os.geteuid()}, OTHERS_WRITE):
        raise ConfigError(problems)
    try:
        return replace(upstream, roots=parse_roots(file.text().encode()))
    except ValueError:
        raise ConfigError([f"{upstream.ca_file} holds no certificate in PEM that can be read"]) from None
