"""`link.toml`: where the link may go. What is not in this file cannot be reached, and the core cannot write to it.

`parse_config` is pure but for the look-up of a user's name, which is passed in; `load_config` reads the file. All problems are
found in one go, each with the key, the file and what to do.
"""

import difflib
import os
import pwd
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from ipc.linkmessages import MAX_PINS, Upstream

from .pins import is_host, parse_pins

DEFAULT_PATH = Path("/etc/license-agent/link.toml")
MAX_CONFIG_BYTES = 64 * 1024
UPSTREAMS: tuple[str, ...] = get_args(Upstream)
_OVERFLOW_ID = 65534  # what the kernel shows for a user it cannot name
_URL = re.compile(r"(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::([0-9]{1,5}))?(/[A-Za-z0-9._~/-]*)?")


class ConfigError(Exception):
    """The configuration cannot be used.

    Attributes:
        problems: a sentence each.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


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


class _Bad(Exception):
    """A value that cannot be used: what it must be."""


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
        raise _Bad(str(error)) from None


def _proxy(value: Any) -> str:
    try:
        url, scheme, _ = _address(value)
    except ValueError:
        scheme = ""
    if scheme != "http" or url.count("/") > 2:
        raise _Bad("must be http://HOST:PORT of a proxy that knows CONNECT, without a user or password (no secret stays here)")
    return url


def _pins(value: Any) -> frozenset[bytes]:
    pins = value if isinstance(value, list) else [value]
    try:
        if len(pins) > MAX_PINS:
            raise ValueError
        return parse_pins(pins)
    except ValueError:
        raise _Bad(
            'must be "sha256:" and the SHA-256 of the public key (SPKI) of the server or of a CA above it, in base64 or hex, '
            f"or a list of 1 to {MAX_PINS} such"
        ) from None


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Bad("must be true or false, without quotes")
    return value


Lookup = Callable[[str], int]


def _user(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _uid(lookup: Lookup) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        if isinstance(value, str) and value:
            try:
                value = lookup(value)
            except (KeyError, ValueError):
                raise _Bad(f"names the user {value!r}, who does not exist on this machine; create the user") from None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32 - 1:
            raise _Bad("must be the name or the number of the user that the agent runs as")
        if value == _OVERFLOW_ID:
            raise _Bad(f"must not be {_OVERFLOW_ID}: the kernel shows that number for users it cannot name")
        return value

    return convert


Keys = dict[str, Callable[[Any], Any]]


def _schema(user: Lookup) -> dict[str, Keys]:
    return {
        "core": {"user": _uid(user)},
        "provisioning": {"allowed": _boolean, "proxy": _proxy},
        "upstream": {"url": _url, "pins": _pins, "proxy": _proxy},
    }


def known_keys() -> dict[str, list[str]]:
    """Every section with its keys; `upstream` stands for `upstream.NAME`."""
    return {name: list(keys) for name, keys in _schema(_user).items()}


def parse_config(text: str, source: str, user: Lookup = _user) -> LinkConfig:
    """The configuration in a text.

    Args:
        text: TOML.
        source: the file's name, for errors.
        user: UID of a user name; KeyError if there is none.

    Raises:
        ConfigError: with everything that is wrong.
    """
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"{source}: not TOML: {error}"]) from None
    schema = _schema(user)
    reader = _Reader(source)
    reader.unknown("section", content, schema)
    core = reader.section("core", content.get("core", {}), schema["core"], required=("user",))
    provisioning = reader.section("provisioning", content.get("provisioning", {}), schema["provisioning"])
    tables = reader.table("upstream", content.get("upstream", {}))
    reader.unknown("upstream", tables, UPSTREAMS)
    upstreams = {}
    for name in [name for name in tables if name in UPSTREAMS]:
        found = reader.section(f"upstream.{name}", tables[name], schema["upstream"], required=("url", "pins"))
        if "url" in found and "pins" in found:
            url, host = found["url"]
            upstreams[name] = UpstreamConfig(url, host, found["pins"], found.get("proxy"))
    if reader.problems:
        raise ConfigError(reader.problems)
    return LinkConfig(core["user"], upstreams, provisioning.get("allowed", True), provisioning.get("proxy"))


class _Reader:
    """Reads sections and collects what is wrong with them."""

    def __init__(self, source: str) -> None:
        self._source = source
        self.problems: list[str] = []

    def unknown(self, kind: str, names: Iterable[str], known: Iterable[str]) -> None:
        for name in names:
            if name not in known:
                close = difflib.get_close_matches(name, list(known), n=1)
                hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(known)}"
                self.problems.append(f"{self._source}: unknown {kind} '{name}'; {hint}")

    def table(self, name: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.problems.append(f"{self._source}: '{name}' must be a section, [{name}]")
            return {}
        return value

    def section(self, name: str, value: Any, keys: Keys, required: tuple[str, ...] = ()) -> dict[str, Any]:
        values = self.table(name, value)
        self.unknown(f"key in [{name}]:", values, keys)
        converted = {}
        for key in [key for key in values if key in keys]:
            try:
                converted[key] = keys[key](values[key])
            except _Bad as bad:
                self.problems.append(f"{self._source}: '{key}' in [{name}] {bad}")
        missing = [key for key in required if key not in values]
        self.problems.extend(f"{self._source}: the key '{key}' is missing in [{name}]; add it" for key in missing)
        return converted


def check_file(info: os.stat_result, path: Path, own_uid: int) -> list[str]:
    """What is wrong with the owner and mode of the file: nobody but root and the link's own user may change it."""
    if not stat.S_ISREG(info.st_mode):
        return [f"{path} is not a regular file; put the file itself there"]
    problems = []
    if info.st_mode & 0o022:
        problems.append(
            f"{path} has mode {stat.S_IMODE(info.st_mode):04o}, so that others may change where the link goes; "
            f"run: chmod go-w {path}"
        )
    if info.st_uid not in (0, own_uid):
        problems.append(f"{path} belongs to uid {info.st_uid}; run: chown root {path}")
    return problems


def load_config(path: Path) -> LinkConfig:
    """Reads and checks the file.

    Raises:
        ConfigError: with everything that is wrong.
    """
    try:
        # Neither a FIFO nor a device may hold up the start.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            problems = check_file(os.fstat(file.fileno()), path, os.geteuid())
            data = b"" if problems else file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError([f"{path} does not exist; create it (owner root, mode 0644) with a section [core]"]) from None
    except OSError as error:
        raise ConfigError([f"{path} cannot be read: {error.strerror}"]) from None
    if problems:
        raise ConfigError(problems)
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError([f"{path} has more than {MAX_CONFIG_BYTES} bytes"])
    try:
        return parse_config(data.decode("utf-8"), str(path))
    except UnicodeDecodeError:
        raise ConfigError([f"{path} is not UTF-8"]) from None
