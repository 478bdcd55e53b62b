"""Holds the version of the client library; the wheel's build reads it here."""

__version__ = "0.1.0"
