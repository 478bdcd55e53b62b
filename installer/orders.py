"""Answers one order. Nothing here performs IO."""

from ipc.errors import RemoteProtocolError
from ipc.installermessages import INSTALLER_VERSION, Describe, Description, Refused, to_installer_decoder
from ipc.messages import Request

from . import VERSION

ORDERS: tuple[str, ...] = ()
"""The orders of an update will be listed here; until then, no order changes anything on the machine."""


def answer(frame: bytes) -> Request:
    """Returns the answer to one frame, whatever it holds."""
    try:
        order = to_installer_decoder().decode(frame)
    except RemoteProtocolError as error:
        return Refused(v=INSTALLER_VERSION, id=error.request_id or 0, text=str(error)[:500])
    if isinstance(order, Describe):
        return Description(v=INSTALLER_VERSION, id=order.id, program=VERSION, orders=ORDERS)
    raise TypeError(f"an order without an answer: {type(order).__name__}")
