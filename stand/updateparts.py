"""Runs what installs updates on a stand: updater, installer, what systemd does for them, and the repository's web server.

The programs are in `standupdates`, which nothing imports: each is started as a process, with its socket as from systemd.
"""

import contextlib
import json
import os
import pwd
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .programs import READY_S, Service, StandError, answers
from .reachable import HERE
from .setup import LINK_STANDS_IN_UID, Layout

UPDATER_STANDS_IN_UID = 64992
"""Whom the updater runs as when the stand is started by root: another user than agent and link."""
POS_USERS = ("games", "daemon")
"""Likewise the sample POS application, as the first of these that there is: a user that the system knows, and that owns
nothing of worth; the installer does not accept `nobody`."""


@dataclass(frozen=True, slots=True)
class Users:
    """Who runs what.

    Attributes:
        me: who started the stand: installer, system and web server.
        core: the agent.
        link: the link.
        updater: the updater; the core's where the stand was not started by root, and the link takes it for the core then.
        pos: the sample POS application.
    """

    me: int
    core: int
    link: int
    updater: int
    pos: int


def users(core: int) -> Users:
    """Who runs what on a stand whose agent runs as `core`.

    Raises:
        StandError: this machine has no user for the POS application.
    """
    me = os.geteuid()
    if me != 0:
        try:
            pwd.getpwuid(me)
        except KeyError:
            raise StandError(f"the health command needs a user that has a name, and UID {me} has none") from None
        return Users(me, me, me, me, me)
    for name in POS_USERS:
        with contextlib.suppress(KeyError):
            return Users(me, core, LINK_STANDS_IN_UID, UPDATER_STANDS_IN_UID, pwd.getpwnam(name).pw_uid)
    raise StandError(f"this machine has no user {' or '.join(POS_USERS)}, whom the sample POS application runs as")


@dataclass(frozen=True, slots=True)
class Places:
    """Where a stand keeps what updates need.

    Attributes:
        layout: of the stand.
    """

    layout: Layout

    @property
    def top(self) -> Path:
        """All of it but configuration and sockets."""
        return self.layout.root / "ota"

    @property
    def vendor(self) -> Path:
        """The vendor's keys, packages and submissions."""
        return self.top / "vendor"

    @property
    def pos(self) -> Path:
        """The slots of the POS application."""
        return self.top / "pos"

    @property
    def data(self) -> Path:
        """Where the sample POS writes."""
        return self.top / "pos-data"

    @property
    def staged(self) -> Path:
        """The updater's own directory."""
        return self.top / "updater"

    @property
    def own(self) -> Path:
        """The installer's own directory."""
        return self.top / "installer"

    @property
    def certificate(self) -> Path:
        """Key and certificate of the web server."""
        return self.top / "web.pem"

    @property
    def ready(self) -> Path:
        """Says that everything is prepared, and on which port the repository is served."""
        return self.top / "ota.json"

    @property
    def repository(self) -> Path:
        """What the license server publishes."""
        return self.layout.server / "updates"

    @property
    def trust(self) -> Path:
        """What the machine trusts for updates."""
        return self.layout.config.with_name("update-trust.json")

    @property
    def installer_config(self) -> Path:
        """Which products the machine has."""
        return self.layout.config.with_name("installer.toml")

    def log(self, name: str) -> Path:
        """What a program writes."""
        return self.layout.root / f"{name}.log"


class UpdateParts:
    """The running programs.

    Args:
        layout: of a stand that `updates.begin` has prepared.
        core_uid: whom the agent runs as.
        commands: where they are, for the updater's user.
    """

    def __init__(self, layout: Layout, core_uid: int, commands: Path) -> None:
        places, who = Places(layout), users(core_uid)
        self._places = places
        self._port: int = json.loads(places.ready.read_text("utf-8"))["port"]
        trust, config = str(places.trust), str(places.installer_config)
        web = {"port": self._port, "directory": str(places.repository), "certificate": str(places.certificate)}
        updater = {
            "core_uid": who.core, "link": str(layout.link_socket), "link_uid": who.link, "trust": trust, "owner": who.me,
            "staged": str(places.staged),
        }  # fmt: skip
        installer = {
            "core_uid": who.core, "trust": trust, "config": config, "staged": str(places.staged), "own": str(places.own),
        }  # fmt: skip
        system = {"config": config, "own": str(places.own), "start": True}
        self._web = _service("webserver", places, web)
        self._others = [
            _service("updater", places, updater, who.updater, "updater.sock", who.core, commands),
            _service("installer", places, installer, listen="installer.sock", passed_to=who.core),
            _service("system", places, system),
        ]
        if who.updater != who.core:
            # As systemd/license-agent-link.socket has it: the updater is in the socket's group.
            os.chown(layout.link_socket, -1, who.updater)
            layout.link_socket.chmod(0o660)

    @property
    def _all(self) -> list[Service]:
        return [self._web, *self._others]

    def start(self) -> None:
        """Starts them.

        Raises:
            StandError: one does not start.
        """
        self._start(self._web)
        for service in self._others:
            self._start(service)

    def _start(self, service: Service) -> None:
        service.start((lambda: answers(self._port)) if service is self._web else (lambda: True))

    def watch(self) -> bool:
        """Starts again what has ended; returns whether something had."""
        ended = [service for service in self._all if not service.running]
        for service in ended:
            self._start(service)
        return bool(ended)

    def told(self) -> dict[str, Any]:
        """What stand.json says of them."""
        places = self._places
        return {
            "repository_url": f"https://127.0.0.1:{self._port}",
            "pos": str(places.pos),
            "pos_data": str(places.data),
            "vendor": str(places.vendor),
            "repository": str(places.repository),
            "pids": {service.name: service.pid for service in self._all},
            "logs": {service.name: str(places.log(service.name)) for service in self._all},
        }

    def close(self) -> None:
        """Ends them."""
        for service in reversed(self._all):
            service.close()


def _service(
    name: str,
    places: Places,
    options: dict[str, Any],
    uid: int | None = None,
    listen: str | None = None,
    passed_to: int | None = None,
    commands: Path = HERE,
) -> Service:
    other = None if uid in (None, os.geteuid()) else uid
    return Service(
        name,
        places.log(name),
        ["-m", "standupdates", name, json.dumps(options)],
        other,
        None if listen is None else places.layout.run / listen,
        None if passed_to == os.geteuid() else passed_to,
        commands if other is not None else HERE,
        command="python",
    )


LATE = f"updates were not ready within {READY_S:g} s; look at updater.log and installer.log"
