"""Shows and repairs the counter that serial numbers come from. Only `activation` and `lost_records` raise it otherwise."""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from server.base.errors import RegistryError
from server.registry import audit
from server.registry.database import present_number, set_number
from server.registry.models.core import Agent

COUNTER = "serial"
MAX_SERIAL = 10**15 - 1
"""A client certificate with a greater one would not be read as having any (`peers.MAX_SERIAL_DIGITS`)."""


@dataclass(frozen=True, slots=True)
class Serials:
    """The serial numbers.

    Attributes:
        last: the counter; the next new device gets the number after it.
        in_use: the greatest number that an agent in the registry has; 0 if none has one.
    """

    last: int
    in_use: int


def serials(session: Session) -> Serials:
    """The counter, and the greatest number in use."""
    return Serials(present_number(session, COUNTER), session.scalar(select(func.max(Agent.serial))) or 0)


def set_last(session: Session, last: int, now: int) -> None:
    """Sets the counter, for an operator who knows that it is wrong.

    Args:
        session: of a writing transaction.
        last: the last number that a device has; the next new device gets the one after it.
        now: seconds since 1970 UTC.

    Raises:
        RegistryError: an agent has a greater number, or `last` leaves no number for the next device.
    """
    before = set_number(session, COUNTER, last)
    # After the counter is locked: a device that is being activated holds it until its number is in the registry.
    in_use = serials(session).in_use
    if last < in_use:
        raise RegistryError(f"an agent has serial number {in_use}; the counter cannot be set to {last}, which is below that")
    if last >= MAX_SERIAL:
        raise RegistryError(f"the counter cannot be set to {last}; the greatest serial number is {MAX_SERIAL}")
    audit.record(session, "admin", "serial.set", "ok", now, serial=last, was=before)
