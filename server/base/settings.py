"""Reads and writes the settings of a server's directory, and names the files in it.

DIRECTORY/settings.toml       where the database and the master key are
DIRECTORY/server.db           the registry, if it is SQLite
DIRECTORY/master.key          the master key, if it is a file
DIRECTORY/updates/            the repository of updates, if there is one
DIRECTORY/offline/root.key    the root's private key, until the administrator moves it away
"""

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from settings.errors import ConfigError
from settings.file import read_file
from settings.sections import Key, Sections
from settings.values import BadValue, absolute_path, text

from . import privatefile
from .alertsettings import ALERTS, AlertsPlace, alerts_place, alerts_table
from .ddisettings import DDI, DdiPlace, ddi_place, table
from .errors import RegistryError

SETTINGS, DATABASE, MASTER_KEY, ROOT_KEY = "settings.toml", "server.db", "master.key", "offline/root.key"
UPDATES = "updates"
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
        webhook_networks: networks that webhooks may go to although they are not public.
        webhook_ca: file of the CAs of webhooks' receivers, in PEM; None for those of the system.
        updates_at: directory of the repository of updates; None for the one in the server's directory.
        ddi: the listener for devices that speak hawkBit's DDI; None for no such listener.
        alerts: where alerts are sent to besides webhooks; None for nowhere.
        master: path of the master key's file, or a PKCS #11 URI. A systemd credential takes precedence.
    """

    directory: Path
    url: str = field(repr=False)
    master: str
    stored_url: str | None = field(default=None, repr=False)
    webhook_networks: tuple[str, ...] = ()
    webhook_ca: Path | None = None
    updates_at: Path | None = None
    ddi: DdiPlace | None = None
    alerts: AlertsPlace | None = None

    @property
    def updates(self) -> Path:
        """The directory of the repository of updates."""
        return self.updates_at or self.directory / UPDATES


def _networks(value: Any) -> tuple[str, ...]:
    """Networks such as 10.20.0.0/16. Raises BadValue."""
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise BadValue("must be a list of networks")
    for each in value:
        try:
            ipaddress.ip_network(each)
        except ValueError:
            raise BadValue(f"must have networks such as 10.20.0.0/16, and {each!r} is not one") from None
    return tuple(value)


_KEYS = {
    "database": Key(text, required=True),
    "master_key": Key(text, required=True),
    "webhook_networks": Key(_networks),
    "webhook_ca": Key(absolute_path),
    "updates": Key(absolute_path),
    DDI: Key(table),
    ALERTS: Key(alerts_table),
}


def place_of(directory: Path) -> Place:
    """Reads the settings of the server in a directory.

    Raises:
        RegistryError: there is no server, or its settings are invalid.
    """
    path = directory / SETTINGS
    try:
        file = read_file(path, MAX_SETTINGS_BYTES, _way_out(directory))
        found = Sections(file.text(), str(path))
        values = found.section("", _KEYS)
        ddi, alerts = ddi_place(found), alerts_place(found)
        found.check()
    except ConfigError as error:
        raise RegistryError("; ".join(error.problems)) from None
    passed, stored = credential_url(), values["database"]
    return Place(
        directory,
        stored if passed is None else passed,
        values["master_key"],
        None if passed is None else stored,
        values.get("webhook_networks", ()),
        values.get("webhook_ca"),
        values.get("updates"),
        ddi,
        alerts,
    )


def _way_out(directory: Path) -> str:
    """What to do where there are no settings: a server that has lost them is not created again."""
    left = [name for name in (DATABASE, MASTER_KEY) if (directory / name).exists()]
    if not left:
        return f"run 'license-server init --dir {directory}' first"
    registry, master = (directory / DATABASE).absolute(), (directory / MASTER_KEY).absolute()
    lines = " and ".join(settings_of(Place(directory, f"sqlite:///{registry}", str(master))).decode().splitlines())
    there = f"{' and '.join(left)} {'is' if len(left) == 1 else 'are'}"
    return (
        f"a server's {there} there, so put the file back, or write it again with mode 0600. Its two lines, if registry and "
        f"master key are files in that directory: {lines}"
    )


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
    """The database's URL in a file that nobody else may read: its first line, without a byte order mark.

    Raises:
        RegistryError: it cannot be read, or its mode lets others read it.
    """
    try:
        found = privatefile.read(path, "the database URL").decode("utf-8-sig").split("\n", 1)[0].strip()
    except UnicodeDecodeError:
        found = ""
    if not found:
        raise RegistryError(f"{path} has no database URL in its first line")
    return found


def settings_of(place: Place) -> bytes:
    """The content of the settings file."""
    content: dict[str, Any] = {"database": place.stored_url or place.url, "master_key": place.master}
    if place.webhook_networks:
        content["webhook_networks"] = list(place.webhook_networks)
    if place.webhook_ca is not None:
        content["webhook_ca"] = str(place.webhook_ca)
    if place.updates_at is not None:
        content["updates"] = str(place.updates_at)
    if place.ddi is not None:
        content[DDI] = place.ddi.table()
    if place.alerts is not None:
        content[ALERTS] = place.alerts.table
    return tomli_w.dumps(content).encode()
