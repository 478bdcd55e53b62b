"""Confines the daemon to the files that its configuration names, and checks whether a later configuration still fits.

Landlock is applied once, before the first thread starts, and cannot be widened. A process whose rules no longer fit must end
(`NeedsRestart`): the service manager starts another one with rules that fit.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from confine.basics import basic_rules
from confine.landlock import Access, PathRule, restrict

from .config.config import Config
from .identity import identified

_TPM_DEVICES = ("/dev/tpmrm0", "/dev/tpm0")
"""What the device TCTI tries by itself, if none is named (tpm2-tss, tcti-device.c)."""
_TCP_TCTIS = ("swtpm", "mssim")


@dataclass(frozen=True, slots=True)
class ConfinementStatus:
    """What the process may no longer do.

    Attributes:
        exec_forbidden: it cannot start a program, from any thread.
        landlock_abi: of the rules in force; None without rules.
    """

    exec_forbidden: bool = False
    landlock_abi: int | None = None

    def describe(self) -> str:
        """The same in words, for the log."""
        files = "this kernel has no Landlock" if self.landlock_abi is None else f"Landlock ABI {self.landlock_abi}"
        return f"{'no program can be started' if self.exec_forbidden else 'programs can be started'}; {files}"


NOT_CONFINED = ConfinementStatus()


def rules_for(config: Config, config_file: Path, own_sockets: bool) -> list[PathRule]:
    """What the daemon reads and writes because its configuration says so; `basic_rules` are what it needs in any case.

    Args:
        config: its configuration.
        config_file: where that was read. It is read again from there, and by then another file may have taken its place: the
            rule is for the directory, as with the other files that an administrator replaces.
        own_sockets: whether it made its sockets itself, which it removes when it stops.
    """
    paths = config.paths
    read = [_directory(config_file)]
    if config.audit.archive_key is not None:
        read.append(_directory(config.audit.archive_key))
    write = [paths.state_dir, paths.log_dir]
    if not config.tpm.enabled:
        write += [paths.key_dir, _directory(config.tpm.fallback_encrypted_storage)]
    if own_sockets:
        write.append(paths.run_dir)
    return [
        *(PathRule(path, Access.READ) for path in dict.fromkeys(read)),
        *(PathRule(path, Access.WRITE) for path in dict.fromkeys(write)),
        *(PathRule(path, Access.DEVICE) for path in (Path("/dev/null"), *_tpm_devices(config))),
    ]


def _directory(file: Path) -> Path:
    """Where a file lies. For one in the root directory, the file itself: its directory would be everything."""
    parent = Path(os.path.abspath(file)).parent
    return parent if parent != parent.parent else file


def _tpm_devices(config: Config) -> list[Path]:
    kind, _, place = config.tpm.tcti.partition(":")
    if not config.tpm.enabled or kind != "device":
        return []
    return [Path(place)] if place else [Path(device) for device in _TPM_DEVICES]


def needs_tcp(config: Config) -> bool:
    """Whether the TPM is reached by TCP: one that is simulated. Everything else that the daemon speaks to has a Unix socket."""
    return config.tpm.enabled and config.tpm.tcti.partition(":")[0] in _TCP_TCTIS


def _found(rules: list[PathRule]) -> list[tuple[int, int] | None]:
    """What is at the paths now: device and inode, or nothing."""
    found: list[tuple[int, int] | None] = []
    for rule in rules:
        try:
            info = os.stat(rule.path)
        except OSError:
            found.append(None)
        else:
            found.append((info.st_dev, info.st_ino))
    return found


class NeedsRestart(Exception):
    """The process is confined to other files than those that it would need now; only a new process can have them."""

    def __init__(self, text: str) -> None:
        super().__init__(f"{text}; restart the agent (systemctl restart license-agent)")


class Confinement:
    """The rules that this process runs under; creating one confines the process.

    Args:
        config: its configuration.
        config_file: where that was read.
        own_sockets: whether it made its sockets itself.

    Raises:
        ConfineError: the rules cannot be put in force.
    """

    def __init__(self, config: Config, config_file: Path, own_sockets: bool) -> None:
        self._file, self._own_sockets, self._config = config_file, own_sockets, config
        self._tcp, self._rules = needs_tcp(config), rules_for(config, config_file, own_sockets)
        self._found = _found(self._rules)
        self.landlock_abi = restrict([*basic_rules(), *self._rules], tcp=self._tcp)

    @property
    def status(self) -> ConfinementStatus:
        """What the process may no longer do; `main` forbids exec before anything else."""
        return ConfinementStatus(True, self.landlock_abi)

    def fits(self, config: Config) -> bool:
        """Whether the rules for this configuration would be the same."""
        return self.landlock_abi is None or (self._tcp, self._rules) == (
            needs_tcp(config),
            rules_for(config, self._file, self._own_sockets),
        )

    def narrowed(self, config: Config) -> tuple[Config, list[str]]:
        """A new configuration for the running process, with the old key for archives if the new one is out of reach.

        Returns:
            The configuration, and what of it needs a restart beyond the sections that do in any case.
        """
        key = config.audit.archive_key
        if self.landlock_abi is None or key is None or PathRule(_directory(key), Access.READ) in self._rules:
            return config, []
        return replace(config, audit=replace(config.audit, archive_key=self._config.audit.archive_key)), ["audit.archive_key"]

    def identified(self, config: Config) -> Config:
        """`identified`, by the state directory that is in use."""
        return config.with_agent_id(identified(replace(config, paths=self._config.paths)).agent.id)

    def moved(self) -> list[Path]:
        """Paths whose file was replaced since the rules were made; the rules do not cover the new one."""
        if self.landlock_abi is None:
            return []
        compared = zip(self._rules, self._found, _found(self._rules), strict=True)
        return [rule.path for rule, before, now in compared if before != now]
