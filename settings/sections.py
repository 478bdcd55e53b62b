"""Reads the sections of a TOML text and collects everything that is wrong with them. Nothing here performs IO."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError
from .values import BadValue, Reader


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a section.

    Attributes:
        read: reads its value.
        required: a section without it is a problem.
        unused: why it has no effect, if it has none any more; it is still read and checked, and warned of.
    """

    read: Reader
    required: bool = False
    unused: str = ""


Keys = Mapping[str, Key]
"""The keys of a section, by name."""


class Sections:
    """The sections of one text. Problems are collected; `check` raises them.

    Args:
        text: TOML.
        source: the file's name, for problems.

    Attributes:
        content: the tables of the text.
        problems: a sentence each.
        warnings: a sentence each, for keys without effect.

    Raises:
        ConfigError: the text is not TOML.
    """

    def __init__(self, text: str, source: str) -> None:
        try:
            self.content: dict[str, Any] = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError([f"{source}: not TOML: {error}"]) from None
        self._source = source
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def only(self, known: Iterable[str], within: str = "") -> list[str]:
        """Returns the names of the sections that are there and known; each other one is a problem.

        Args:
            known: the names of sections.
            within: the section that they are part of; "" for the file.
        """
        prefix = f"{within}." if within else ""
        content = self._table(within) if within else self.content
        brackets = {name: f"[{prefix}{name}]" for name in known}
        for name in content:
            if name not in brackets:
                self.problem(f"unknown section [{prefix}{name}]; {_hint(name, brackets)}")
        return [name for name in content if name in brackets]

    def section(self, name: str, keys: Keys, *, optional: bool = False) -> dict[str, Any]:
        """Returns the values of a section's keys that are there and can be used.

        Args:
            name: of the section; `upstream.server` is the section `server` within `upstream`, "" the file without sections.
            keys: the keys that it may have.
            optional: the section may be removed, which the text about a missing key then says.
        """
        before = len(self.problems)
        values = self._table(name)
        if len(self.problems) > before:
            return {}
        converted = {}
        within = f" in [{name}]" if name else ""
        quoted = {key: f"'{key}'" for key in keys}
        for key, value in values.items():
            if key not in keys:
                self.problem(f"unknown key '{key}'{within}; {_hint(key, quoted)}")
                continue
            try:
                converted[key] = keys[key].read(value)
            except BadValue as bad:
                self.problem(f"'{key}'{within} {bad}")
            if keys[key].unused:
                self.warnings.append(f"{self._source}: '{key}'{within} has no effect: {keys[key].unused}; remove the key")
        fix = "add it, or remove the section" if optional else "add it"
        for key in keys:
            if keys[key].required and key not in values:
                self.problem(f"the key '{key}' is missing{within}; {fix}")
        return converted

    def problem(self, text: str) -> None:
        """Notes a problem that concerns more than one key, or none."""
        self.problems.append(f"{self._source}: {text}")

    def check(self) -> None:
        """Raises what has been noted.

        Raises:
            ConfigError: with every problem, if there is one.
        """
        if self.problems:
            raise ConfigError(self.problems)

    def _table(self, name: str) -> dict[str, Any]:
        found: Any = self.content
        for part in name.split(".") if name else ():
            found = found.get(part, {}) if isinstance(found, dict) else {}
        if not isinstance(found, dict):
            self.problem(f"'{name}' must be a section, [{name}]")
            return {}
        return found


def _hint(name: str, known: Mapping[str, str]) -> str:
    """Says which of the known names, which are given with how they are written, was meant."""
    # Only a file with a mistake needs it.
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {known[close[0]]}?" if close else f"known are {', '.join(known.values())}"
