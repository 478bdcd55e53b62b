"""What becomes of an order. Nothing here performs IO."""

from ipc.errors import RemoteProtocolError
from ipc.installermessages import INSTALLER_VERSION, Declined, Describe, Description, to_installer_decoder
from ipc.messages import Request

from . import VERSION

ORDERS: tuple[str, ...] = ()
"""Those of an update come with the update; until then nothing on the machine can be changed through here."""


def answer(frame: bytes) -> Request:
    """The answer to one frame, whatever it holds."""
    try:
        order = to_installer_decoder().decode(frame)
    except RemoteProtocolError as error:
        return Declined(v=INSTALLER_VERSION, id=error.request_id or 0, text=str(error)[:500])
    if isinstance(order, Describe):
        return Description(v=INSTALLER_VERSION, id=order.id, program=VERSION, orders=ORDERS)
    raise TypeError(f"an order without an answer: {type(order).__name__}")
