"""Makes one archive for the people who support the machine, with nothing secret in it."""

from .command import support_bundle

COMMANDS = (support_bundle,)
