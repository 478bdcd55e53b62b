"""Reads deployment windows and periods of notice of commands."""

import zoneinfo
from typing import Any

import click
import msgspec

from server.ota.windows import parse_window

from .options import DurationType

DEVICE_ZONE = "device"
"""As in `server.fleet.rollouts.policy`: the time zone of each device."""


def window_of(_ctx: click.Context, _param: click.Parameter, text: str | None) -> dict[str, Any] | None:
    """The window that an option has; None if it was not given."""
    if text is None:
        return None
    try:
        found: dict[str, Any] = msgspec.to_builtins(parse_window(text))
        if found["zone"] != DEVICE_ZONE:
            zoneinfo.ZoneInfo(found["zone"])
    except zoneinfo.ZoneInfoNotFoundError:
        raise click.BadParameter(f"there is no time zone {text.rpartition(' ')[2]!r}") from None
    except ValueError as problem:
        raise click.BadParameter(str(problem)) from None
    return found | {"days": list(found["days"])}


class NoticeType(DurationType):
    """A duration, or 0."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds."""
        return 0 if str(value) == "0" else super().convert(value, param, ctx)
