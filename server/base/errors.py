"""The error that a command reports to the administrator. A request is refused with `refused.RequestRefused` instead."""


class RegistryError(Exception):
    """A command cannot do what the administrator asked for. The text says why, and what to do."""
