"""Reads the section [ddi] of the server's settings: the listener for devices that speak hawkBit's DDI. Pure."""

import re
from dataclasses import dataclass
from typing import Any

from settings.sections import Key, Sections
from settings.values import BadValue, integer, matching

DDI = "ddi"
"""The section's name."""
MIN_POLL_S, MAX_POLL_S = 10, 86_399
"""Of `poll_s`: hawkBit writes it as HH:MM:SS, and a client reads no more than a day."""
_LISTEN = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):(?P<port>[0-9]{1,5})")
_URL = re.compile(r"https://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?")
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True)
class DdiPlace:
    """The listener for devices that speak hawkBit's DDI.

    Attributes:
        listen: host and port.
        url: how devices reach it, `https://HOST:PORT` without a slash at the end; links in its answers begin with it.
        tenant: the first part of its paths.
        poll_s: how often a device asks, in seconds, unless its fleet's policy says something else.
    """

    listen: tuple[str, int]
    url: str
    tenant: str = "default"
    poll_s: int = 300

    def table(self) -> dict[str, Any]:
        """The section's content."""
        host, port = self.listen
        listen = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return {"listen": listen, "url": self.url, "tenant": self.tenant, "poll_s": self.poll_s}


def table(value: Any) -> dict[str, Any]:
    """Reads the section as a whole; `ddi_place` reads what is in it."""
    if not isinstance(value, dict):
        raise BadValue("must be a section, [ddi]")
    return value


def _listen(value: Any) -> tuple[str, int]:
    found = _LISTEN.fullmatch(value) if isinstance(value, str) else None
    if found is None or int(found["port"]) > 65_535:
        raise BadValue('must be an address such as "0.0.0.0:8444"')
    return found["host"].removeprefix("[").removesuffix("]"), int(found["port"])


_KEYS = {
    "listen": Key(_listen, required=True),
    "url": Key(matching(_URL, "must be an address such as https://updates.example.com:8444, without a path"), required=True),
    "tenant": Key(matching(_TENANT, "must be a text of at most 32 letters, digits, '-' and '_'")),
    "poll_s": Key(integer(MIN_POLL_S, MAX_POLL_S)),
}


def ddi_place(sections: Sections) -> DdiPlace | None:
    """The listener that the settings describe; None without the section. Problems stay in `sections`, for its `check`."""
    if DDI not in sections.content:
        return None
    before = len(sections.problems)
    found = sections.section(DDI, _KEYS, optional=True)
    return None if len(sections.problems) > before else DdiPlace(**found)
