"""Holds the configuration that is in force, reads the file again, and knows what the file holds now."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from settings.errors import ConfigError

from .config.config import Config
from .config.live import Effective
from .confinement import NeedsRestart

Read = Callable[[], tuple[Config, list[str]]]
"""Reads the file within the limits of this process. Returns what may take effect, and what needs a restart for want of reach.

Raises ConfigError or NeedsRestart.
"""


@dataclass(frozen=True, slots=True)
class OnDisk:
    """What the file holds.

    Attributes:
        config: the configuration; None if it is refused.
        unreachable: what of it needs a restart, since this process cannot reach it.
        problems: why it is refused.
        out_of_reach: why only a process that is started now could use it; one of the problems.
    """

    config: Config | None
    unreachable: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    out_of_reach: str = ""


@dataclass(slots=True)
class ConfigStatus:
    """The configuration of one run.

    Attributes:
        config: in force.
        read: reads the file; None where there is none, in tests.
        file: as it was loaded; parts of it may wait for a restart.
        needs_restart: sections and keys that were loaded and take effect at the next start.
        problems: why the file was refused when it was last read.
        unloaded: the file held another configuration than the one that was loaded, when it was last read.
        out_of_reach: why only a process that is started now could use the file, when it was last looked at.
        fleet: the fleet that sets something here, and the number of its configuration; None without one.
        set_by_fleet: the keys whose values are the fleet's, as `section.key`.
        limited: what the fleet wanted and this machine does not do, a sentence each.
    """

    config: Config
    read: Read | None = None
    file: Config | None = None
    needs_restart: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    unloaded: bool = False
    out_of_reach: str = ""
    fleet: tuple[str, int] | None = None
    set_by_fleet: frozenset[str] = frozenset()
    limited: tuple[str, ...] = ()

    def on_disk(self) -> OnDisk:
        """Reads the file. Blocks for it, and for the names of users and groups."""
        if self.read is None:
            return OnDisk(self.config)
        try:
            config, unreachable = self.read()
        except ConfigError as error:
            return OnDisk(None, problems=tuple(error.problems))
        except NeedsRestart as error:
            return OnDisk(None, problems=(str(error),), out_of_reach=str(error))
        return OnDisk(config, tuple(unreachable))

    def look(self) -> None:
        """Compares the file with what was loaded from it; blocks as `on_disk`."""
        found = self.on_disk()
        self.problems, self.out_of_reach = found.problems, found.out_of_reach
        self.unloaded = found.config is not None and _compared(found.config) != _compared(self.file or self.config)

    def loaded(self, file: Config, in_force: Config, needs_restart: list[str]) -> None:
        """Notes that the file was loaded."""
        self.file, self.config, self.needs_restart = file, in_force, tuple(needs_restart)
        self.problems, self.unloaded, self.out_of_reach = (), False, ""

    def go_by_fleet(self, fleet: tuple[str, int] | None, found: Effective) -> None:
        """Notes what counts now together with what the fleet sets."""
        self.file = self.file or self.config
        self.config, self.fleet = found.config, fleet
        self.set_by_fleet, self.limited = found.set_by_fleet, found.limited

    def refused(self, problems: tuple[str, ...]) -> None:
        """Notes that the file was refused."""
        self.problems = problems


def _compared(config: Config) -> Config:
    """What of a configuration counts as a change: the user of the REST interface does not, while it may not use the socket.

    It comes with its package, and nobody has edited the file then.
    """
    management = config.management
    return replace(config, management=replace(management, signing_uids=management.signing_uids & management.allowed_uids))
