"""The errors that an act reports to its caller. An agent's request is refused with `refused.RequestRefused` instead.

The subclasses say what kind of problem it is, where the operator API answers each kind with another HTTP status.
"""


class RegistryError(Exception):
    """What was asked for cannot be done. The text says why, and what to do."""


class NotFound(RegistryError):
    """What was named does not exist."""


class Conflict(RegistryError):
    """What exists does not allow it."""


class Invalid(RegistryError):
    """What was asked for is out of bounds: it could never be done."""


class NotAllowed(RegistryError):
    """The caller is known, and may not do this."""


class SecondPersonNeeded(RegistryError):
    """A second person must approve what was asked for; the text says how."""
