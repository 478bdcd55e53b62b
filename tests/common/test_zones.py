"""Time zones by name, and a machine that has none."""

import zoneinfo
from pathlib import Path

import pytest

from common.zones import UnknownZone, zone_of


def test_an_unknown_zone_is_refused_with_what_to_write_instead() -> None:
    with pytest.raises(UnknownZone, match="'Europe/Nowhere', which does not exist; write one such as"):
        zone_of("Europe/Nowhere")
    with pytest.raises(UnknownZone):
        zone_of("../etc/passwd")
    assert zone_of("Europe/Berlin").key == "Europe/Berlin"


def test_a_machine_without_tzdata_is_told_which_package_it_needs(tmp_path: Path) -> None:
    former = zoneinfo.TZPATH
    zoneinfo.reset_tzpath([str(tmp_path)])
    zoneinfo.ZoneInfo.clear_cache()
    try:
        with pytest.raises(UnknownZone, match="apt-get install tzdata"):
            zone_of("Europe/Berlin")
    finally:
        zoneinfo.reset_tzpath(list(former))
