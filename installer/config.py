"""The sections of `installer.toml`: which products this machine has, and where. Root writes the file; the core cannot.

`settings` reads values and files; `parse_config` is pure but for the look-up of a user's name, which is passed in.
"""

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.files import OTHERS_WRITE
from settings.errors import ConfigError
from settings.file import read_file
from settings.sections import Key, Keys, Sections
from settings.values import BadValue, Lookup, absolute_path, integer, matching, one_id, one_of, user_id

DEFAULT_PATH = Path("/etc/license-agent/installer.toml")
MAX_CONFIG_BYTES = 64 * 1024
MAX_PRODUCTS = 16
MAX_HEALTH_ARGUMENTS = 16
MAX_HEALTH_CHARS = 256
DEFAULT_TIMEOUT_S = 30
MAX_TIMEOUT_S = 240
"""How long a health command may run. license-agent-pos-check@.service ends it at TimeoutStartSec=, which is longer."""
DEB_PRODUCT = "license-agent"
"""The only product whose backend is "deb"."""
_PRODUCT = re.compile(r"[a-z][a-z0-9-]{0,31}")
_OWN_UNITS = "license-agent"
_OWN_PACKAGES = Path("/var/lib/license-agent-installer/packages")
_OWN_BUNDLES = Path("/var/lib/license-agent-installer/rauc")


@dataclass(frozen=True, slots=True)
class ProductConfig:
    """`[product.NAME]`.

    Attributes:
        name: of the product.
        backend: how it is installed: "slots", "rauc" for the whole system, or "deb" for the agent's own package, of which the
            rest says nothing.
        directory: holds the slots, and the link `current`; of a whole system, the bundle.
        unit: is restarted when another version becomes the current one. With a whole system the machine restarts instead.
        uid: of the user that the health command runs as; never root.
        health: the command, relative to the slot, and its arguments; of a whole system, its path.
        timeout_s: seconds that it may take.
        version: how the product says which version runs: a URL of this machine, or a command as `health`; None where it is not
            asked.
        config: directory of the product's configuration, which is put back when an update is taken back; None without one.
    """

    name: str
    backend: str
    directory: Path
    unit: str
    uid: int
    health: tuple[str, ...]
    timeout_s: int
    version: str | tuple[str, ...] | None = None
    config: Path | None = None


@dataclass(frozen=True, slots=True)
class InstallerConfig:
    """The whole file.

    Attributes:
        products: by name; empty where there is no file.
    """

    products: Mapping[str, ProductConfig] = field(default_factory=dict)


def _unit(value: Any) -> str:
    unit: str = matching(
        re.compile(r"[A-Za-z0-9][A-Za-z0-9:_.@-]{0,119}\.service"), 'must be the name of a service, such as "pos.service"'
    )(value)
    if unit.startswith(_OWN_UNITS):
        raise BadValue("must not be a unit of the license agent itself; name the unit that runs the product")
    return unit


def _words(value: Any, where: str, start: str) -> tuple[str, ...]:
    words = value if isinstance(value, list) else []
    if (
        not 1 <= len(words) <= MAX_HEALTH_ARGUMENTS
        or not all(isinstance(word, str) and len(word) <= MAX_HEALTH_CHARS and "\0" not in word for word in words)
        or not words[0].startswith(start)
        or any(part in ("", ".", "..") for part in words[0].removeprefix(start).split("/"))
    ):
        raise BadValue(
            f'must be a list of a command of the product and its arguments, such as ["{start}bin/check", "--quick"]: 1 to '
            f"{MAX_HEALTH_ARGUMENTS} texts of at most {MAX_HEALTH_CHARS} characters, the first a path {where}, without '..'"
        )
    return tuple(words)


def _health(value: Any) -> tuple[str, ...]:
    return _words(value, "in the slot", "")


def _system_health(value: Any) -> tuple[str, ...]:
    return _words(value, "from the root", "/")


_LOOPBACK_URL = re.compile(r"http://(127(?:\.[0-9]{1,3}){3}|\[::1\]):([0-9]{1,5})(/[A-Za-z0-9._~/-]*)?")


def _version(value: Any) -> str | tuple[str, ...]:
    """A URL of this machine, since the product answers in a sandbox that reaches no other, or a command as `health`."""
    if isinstance(value, str):
        found = _LOOPBACK_URL.fullmatch(value)
        if len(value) > MAX_HEALTH_CHARS or found is None or not 0 < int(found[2]) < 65536:
            raise BadValue(
                'must be a URL of this machine such as "http://127.0.0.1:8080/system/info", or a command of the product and '
                'its arguments such as ["bin/pos", "--version"]'
            )
        return value
    return _health(value)


def _config(value: Any) -> Path:
    path = absolute_path(value)
    if len(path.parts) < 3 or path == DEFAULT_PATH.parent or DEFAULT_PATH.parent in path.parents:
        raise BadValue('must be a directory of the product alone, such as "/etc/pos", and not the agent\'s')
    return path


def _not_root(lookup: Lookup) -> Any:
    read = one_id("user", lookup)

    def uid(value: Any) -> int:
        found = read(value)
        if found == 0:
            raise BadValue("must not be root; name the user that the product runs as")
        return int(found)

    return uid


def schema(user: Lookup) -> Keys:
    """Returns the keys of each section `[product.NAME]`."""
    return {
        "backend": Key(one_of("slots", "deb", "rauc"), required=True),
        "directory": Key(absolute_path, required=True),
        "unit": Key(_unit, required=True),
        "user": Key(_not_root(user), required=True),
        "health": Key(_health, required=True),
        "timeout_s": Key(integer(1, MAX_TIMEOUT_S)),
        "version": Key(_version),
        "config": Key(_config),
    }


def system_schema(user: Lookup) -> Keys:
    """Returns the keys of the section of a whole system."""
    # RAUC itself says which version of a system runs, and its slots hold the configuration.
    others = ("directory", "version", "config")
    return {name: key for name, key in schema(user).items() if name not in others} | {
        "health": Key(_system_health, required=True)
    }


def parse_config(text: str, source: str = "installer.toml", user: Lookup = user_id) -> InstallerConfig:
    """Parses the file's text.

    Args:
        text: TOML.
        source: the file's name, for problems.
        user: finds the UID of a user's name.

    Raises:
        ConfigError: with every problem.
    """
    sections = Sections(text, source)
    sections.only(("product",))
    tables = sections.content.get("product", {})
    if not isinstance(tables, dict):
        sections.problem("'product' must be sections, [product.NAME]")
        tables = {}
    if len(tables) > MAX_PRODUCTS:
        sections.problem(f"more than {MAX_PRODUCTS} products; remove some")
    found = {}
    for name in tables:
        if not _PRODUCT.fullmatch(name):
            sections.problem(
                f"[product.{ascii(name)[1:-1][:40]}] is not the name of a product: a lowercase letter, then at most 31 "
                "lowercase letters, digits and hyphens"
            )
            continue
        if isinstance(tables[name], dict) and tables[name].get("backend") == "deb":
            sections.section(f"product.{name}", {"backend": Key(one_of("deb"), required=True)}, optional=True)
            if name != DEB_PRODUCT:
                sections.problem(f'[product.{name}]: only the agent\'s own package, [product.{DEB_PRODUCT}], can be a "deb"')
            found[name] = ProductConfig(name, "deb", _OWN_PACKAGES, "license-agent.service", 0, (), DEFAULT_TIMEOUT_S)
            continue
        whole = isinstance(tables[name], dict) and tables[name].get("backend") == "rauc"
        values = sections.section(f"product.{name}", (system_schema if whole else schema)(user), optional=True)
        if not sections.problems:
            values.setdefault("timeout_s", DEFAULT_TIMEOUT_S)
            values.setdefault("directory", _OWN_BUNDLES)
            found[name] = ProductConfig(name=name, uid=values.pop("user"), **values)
    systems = [product.name for product in found.values() if product.backend == "rauc"]
    if len(systems) > 1:
        sections.problem(f"[product.{systems[1]}]: a machine has one system; [product.{systems[0]}] is it")
    seen: dict[Path, str] = {}
    for product in found.values():
        for other, owner in seen.items():
            if product.directory == other or product.directory in other.parents or other in product.directory.parents:
                sections.problem(f"'directory' in [product.{product.name}] is within that of [product.{owner}], or the reverse")
        seen[product.directory] = product.name
    sections.check()
    return InstallerConfig(found)


def load_config(path: Path = DEFAULT_PATH, owners: Collection[int] = (0,)) -> InstallerConfig:
    """Reads the file, which only root may change. Without a file this machine has no products.

    Args:
        path: the file.
        owners: UIDs, one of which must own it.

    Raises:
        ConfigError: it cannot be used.
    """
    if not os.path.lexists(path):
        return InstallerConfig()
    file = read_file(path, MAX_CONFIG_BYTES, "create it (owner root, mode 0644)", follow=False)
    if problems := file.problems(owners, OTHERS_WRITE):
        raise ConfigError(problems)
    return parse_config(file.text(), str(path))
