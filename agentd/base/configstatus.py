"""Holds the configuration that is in force, and what is known of the one on disk."""

from dataclasses import dataclass

from .config import Config


@dataclass(slots=True)
class ConfigStatus:
    """What a reload has come to.

    Attributes:
        config: in force.
        problems: why the file was refused when it was last read; empty if it was accepted.
        needs_restart: sections and keys that were loaded and take effect at the next start.
        unloaded: the file holds another configuration than the one that was loaded.
    """

    config: Config
    problems: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()
    unloaded: bool = False

    def loaded(self, config: Config, needs_restart: list[str]) -> None:
        """Notes that the file was accepted."""
        self.config, self.needs_restart = config, tuple(needs_restart)
        self.problems, self.unloaded = (), False

    def refused(self, problems: list[str]) -> None:
        """Notes that the file was refused."""
        self.problems = tuple(problems)
