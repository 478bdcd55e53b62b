"""Defines the error of a process that cannot confine itself."""


class ConfineError(Exception):
    """A restriction cannot be applied; the text says which and why. The program must not go on without it."""
