"""The daemon's core: no network, no root. `wiring` connects the components; each gets what it needs, time included."""

from common.version import VERSION as VERSION

RELEASED = 1_735_689_600
"""2025-01-01: this release was certainly made later, so no clock before it is believed. Seconds since 1970 UTC."""
