"""Reads and writes the settings of a server's directory, and names the files in it.

DIRECTORY/settings.toml       where the database and the master key are
DIRECTORY/server.db           the registry, if it is SQLite
DIRECTORY/master.key          the master key, if it is a file
DIRECTORY/offline/root.key    the root's private key, until the administrator moves it away
"""

from dataclasses import dataclass
from pathlib import Path

import tomli_w

from settings.errors import ConfigError
from settings.file import read_file
from settings.sections import Key, Sections
from settings.values import text

from .errors import RegistryError

SETTINGS, DATABASE, MASTER_KEY, ROOT_KEY = "settings.toml", "server.db", "master.key", "offline/root.key"
MAX_SETTINGS_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server keeps its data.

    Attributes:
        directory: the server's directory.
        url: of the database.
        master: path of the master key's file, or a PKCS #11 URI. A systemd credential takes precedence.
    """

    directory: Path
    url: str
    master: str


def place_of(directory: Path) -> Place:
    """Reads the settings of the server in a directory.

    Raises:
        RegistryError: there is no server, or its settings are invalid.
    """
    path = directory / SETTINGS
    try:
        file = read_file(path, MAX_SETTINGS_BYTES, f"run 'license-server init --dir {directory}' first")
        found = Sections(file.text(), str(path))
        values = found.section("", {"database": Key(text, required=True), "master_key": Key(text, required=True)})
        found.check()
    except ConfigError as error:
        raise RegistryError("; ".join(error.problems)) from None
    return Place(directory, values["database"], values["master_key"])


def settings_of(place: Place) -> bytes:
    """The content of the settings file."""
    return tomli_w.dumps({"database": place.url, "master_key": place.master}).encode()
