"""Declares the forms of packages and deployment windows that acts share."""

from typing import Annotated

from pydantic import Field

from .act import Form

Path = Annotated[str, Field(min_length=3, max_length=256, pattern=r"^[a-z][a-z0-9-]{0,31}/[A-Za-z0-9][A-Za-z0-9._+~-]*$")]
TimeOfDay = Annotated[str, Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]


class Window(Form):
    """When an installation may begin: `days` are mon to sun, times are HH:MM in the zone."""

    zone: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}$")]
    days: Annotated[list[Annotated[str, Field(pattern="^(mon|tue|wed|thu|fri|sat|sun)$")]], Field(min_length=1, max_length=7)]
    start: TimeOfDay
    end: TimeOfDay
