"""Reads time zones by their IANA names, from the files of the package tzdata, and says what is missing in words of use."""

import zoneinfo


class UnknownZone(ValueError):
    """The machine does not know the time zone. The text follows the name of a key: "'zone' TEXT"."""


def zone_of(name: str) -> zoneinfo.ZoneInfo:
    """The time zone of an IANA name; reads its file.

    Raises:
        UnknownZone: there is no such zone, or the package tzdata is not installed.
    """
    found = _read(name)
    if found is not None:
        return found
    if _read("Europe/Berlin") is None:
        raise UnknownZone("needs the time zones of the package tzdata, which is not installed; run 'apt-get install tzdata'")
    raise UnknownZone(f"names the time zone {name!r}, which does not exist; write one such as 'Europe/Berlin'")


def _read(name: str) -> zoneinfo.ZoneInfo | None:
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return None
