"""What can go wrong while a process locks itself in."""


class ConfineError(Exception):
    """A lock cannot be put on: the text says which and why. A program that meets it must not go on without the lock."""
