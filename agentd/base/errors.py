"""Defines the errors that several rooms raise and handle."""

from hwsec.errors import NotEnrolled


class Refused(Exception):
    """A rule of the agent forbids the request; the text says which rule.

    The license server's own refusal is `contracts.exchange.Refused`.
    """


class NoSuchVersion(Refused):
    """The agent holds no secret version with this number."""


class NoSuchLicense(Refused):
    """The agent knows no license with this id."""


class StartError(Exception):
    """The daemon cannot start; the text says why and what to do."""


class StopError(Exception):
    """The daemon has stopped, and something of its last work is missing; the text says what and what to do."""


class NotProvisioned(NotEnrolled):
    """The device has never been an agent, or its provisioning did not finish: it waits to be provisioned."""
