"""Puts what the machine's fleet sets over the configuration of its file, within the bounds that the file has for it.

Reads the files of time zones, nothing else. What the fleet may not set is left as the file has it, and said.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import time
from typing import Any, Final

from common.zones import UnknownZone, zone_of
from contracts.contact.configuration import (
    BOUNDS,
    MAX_DETAIL_CHARS,
    Members,
    digest_of,
    frozen_range,
    values_of,
    within,
)

from .config import Config
from .updatesconfig import WindowConfig

WINDOW: Final = "updates.window"
LAST: Final = "updates.consent_last"


@dataclass(frozen=True, slots=True)
class Effective:
    """A configuration with what a fleet sets.

    Attributes:
        config: what counts.
        set_by_fleet: the members whose values are the fleet's.
        limited: what of the fleet's was not done as it says, a sentence each.
        digest: of the values that count, of the members that the fleet has.
    """

    config: Config
    set_by_fleet: frozenset[str] = frozenset()
    limited: tuple[str, ...] = ()
    digest: str = digest_of({})


def overlaid(file: Config, members: Members) -> Effective:
    """The configuration of the file with what a fleet sets.

    Args:
        file: the configuration as the file has it.
        members: of the fleet's document.
    """
    wanted = values_of(members)
    limited: dict[str, str] = {}
    for name in wanted:
        if refusal := file.fleet.refusal(name, file.given):
            limited[name] = refusal
    values = {name: value for name, value in wanted.items() if name not in limited}
    for name in BOUNDS.keys() & values.keys():
        least, most = file.fleet.bounds(name)
        held = min(max(values[name], least), most)
        if held != values[name]:
            limited[name] = f"{values[name]} is not within this machine's bounds, {least} to {most}: it is {held}"
            values[name] = held
    if WINDOW in values:
        try:
            zone_of(values[WINDOW]["zone"])
        except UnknownZone as error:
            limited[WINDOW] = str(error)
            del values[WINDOW]
    config = _with(file, values)
    if (problem := _last_outside(config)) is not None:
        # Whichever the fleet has set gives way; the file's own two fit together.
        for name in (LAST, WINDOW):
            if name in values:
                limited[name] = problem
                del values[name]
                config = _with(file, values)
                if _last_outside(config) is None:
                    break
    found = tuple(f"{name}: {why}"[:MAX_DETAIL_CHARS] for name, why in sorted(limited.items()))
    return Effective(config, frozenset(values), found, digest_of({name: value_of(config, name) for name in wanted}))


def _last_outside(config: Config) -> str | None:
    window, last = config.updates.window, config.updates.consent_last
    if last is None:
        return None
    if window is None:
        return "updates.consent_last needs a window, within which it lies"
    if not within(_clock(window.start), _clock(window.end), _clock(last)):
        return f"updates.consent_last, {_clock(last)}, is not within the window, {_clock(window.start)} to {_clock(window.end)}"
    return None


def _clock(at: time) -> str:
    return f"{at:%H:%M}"


def _window(value: Mapping[str, Any]) -> WindowConfig:
    start, end = (time.fromisoformat(value[name]) for name in ("start", "end"))
    return WindowConfig(value["zone"], start, end, tuple(value["days"]))


_READ: Mapping[str, Callable[[Any], Any]] = {
    WINDOW: _window,
    "updates.freeze": lambda value: tuple(frozen_range(each) for each in value),
    LAST: time.fromisoformat,
}
"""How values of the document become those of the configuration; all others are the same."""


def _with(file: Config, values: Mapping[str, Any]) -> Config:
    changed: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        changed.setdefault(section, {})[key] = _READ[name](value) if name in _READ else value
    return replace(file, **{section: replace(getattr(file, section), **keys) for section, keys in changed.items()})


def value_of(config: Config, name: str) -> Any:
    """The value of a member in a configuration, as a document would say it; None if it has none."""
    section, _, key = name.partition(".")
    value = getattr(getattr(config, section), key)
    if isinstance(value, WindowConfig):
        return {"zone": value.zone, "days": list(value.days), "start": _clock(value.start), "end": _clock(value.end)}
    if isinstance(value, time):
        return _clock(value)
    if name == "updates.freeze":
        return [str(first) if first == last else f"{first}..{last}" for first, last in value]
    return value
