"""Reads and writes the settings of a server's directory, and names the files in it.

DIRECTORY/settings.toml       where the database and the master key are
DIRECTORY/server.db           the registry, if it is SQLite
DIRECTORY/master.key          the master key, if it is a file
DIRECTORY/offline/root.key    the root's private key, until the administrator moves it away
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

import tomli_w

from settings.errors import ConfigError
from settings.file import read_file
from settings.sections import Key, Sections
from settings.values import text

from . import privatefile
from .errors import RegistryError

SETTINGS, DATABASE, MASTER_KEY, ROOT_KEY = "settings.toml", "server.db", "master.key", "offline/root.key"
MAX_SETTINGS_BYTES = 64 * 1024
CREDENTIAL = "license-server-database"
"""The systemd credential that holds the database's URL."""
CREDENTIAL_URL = "postgresql+psycopg:///?service=set-by-the-credential-license-server-database"
"""Stands in the settings where only the credential has the URL: without it, libpq names this service as unknown."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server keeps its data.

    Attributes:
        directory: the server's directory.
        url: of the database: from a systemd credential, or else the stored one. It may contain a password.
        stored_url: of the settings file, if a credential takes precedence.
        master: path of the master key's file, or a PKCS #11 URI. A systemd credential takes precedence.
    """

    directory: Path
    url: str = field(repr=False)
    master: str
    stored_url: str | None = field(default=None, repr=False)


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
    passed = credential_url()
    if passed is None:
        return Place(directory, values["database"], values["master_key"])
    return Place(directory, passed, values["master_key"], values["database"])


def credential_url() -> str | None:
    """The database's URL that systemd has passed (LoadCredential=); None if it has passed none.

    Raises:
        RegistryError: it cannot be read.
    """
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    path = None if directory is None else Path(directory) / CREDENTIAL
    return None if path is None or not path.exists() else url_in(path)


def new_place(directory: Path, url: str | None, master: str) -> Place:
    """The place of a server that is created: the URL that was given, or a credential's, or a SQLite file's."""
    passed = credential_url() if url is None else None
    usual = f"sqlite:///{(directory / DATABASE).absolute()}"
    return Place(directory, url or passed or usual, master, None if passed is None else CREDENTIAL_URL)


def url_in(path: Path) -> str:
    """The database's URL in a file that nobody else may read: its first line.

    Raises:
        RegistryError: it cannot be read, or its mode lets others read it.
    """
    try:
        found = privatefile.read(path, "the database URL").decode().split("\n", 1)[0].strip()
    except UnicodeDecodeError:
        found = ""
    if not found:
        raise RegistryError(f"{path} has no database URL in its first line")
    return found


def settings_of(place: Place) -> bytes:
    """The content of the settings file."""
    return tomli_w.dumps({"database": place.stored_url or place.url, "master_key": place.master}).encode()
