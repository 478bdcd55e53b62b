"""Makes one archive for whoever supports the machine, with nothing secret in it."""

from .command import support_bundle

COMMANDS = (support_bundle,)
