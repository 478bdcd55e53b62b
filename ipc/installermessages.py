"""Defines the orders that the core may send to the installer. Nothing here performs IO.

One order for each connection: the core sends it, the installer answers and closes. The only order so far asks what the
installer can do; the orders of an update come with the update.
"""

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from .frames import encode_frame
from .messages import Request, RequestDecoder

INSTALLER_VERSION: Final = 1
INSTALLER_MAX_FRAME_BYTES = 16 * 1024
ORDER_TIMEOUT_S = 5.0
"""A connection that has not sent its order after so long is closed."""


class Describe(Request, tag="describe", frozen=True):
    """Asks what the installer can do."""


class Description(Request, tag="description", frozen=True):
    """What the installer can do.

    Attributes:
        program: version of the program.
        orders: the orders that it carries out, besides `describe`.
    """

    program: Annotated[str, Meta(max_length=64)]
    orders: Annotated[tuple[str, ...], Meta(max_length=32)]


class Refused(Request, tag="declined", frozen=True):
    """The installer does not carry the order out. `id` is 0 where the order's id could not be read."""

    text: Annotated[str, Meta(max_length=500)]


_encoder = msgspec.msgpack.Encoder()


def to_installer_decoder() -> RequestDecoder[Any]:
    """Decodes orders; what is wrong with others is a `RemoteProtocolError`."""
    return RequestDecoder(Describe)


def from_installer_decoder() -> RequestDecoder[Any]:
    """Decodes `Description` and `Refused`; what is wrong with others is a `RemoteProtocolError`."""
    return RequestDecoder(Description | Refused)


def encode_installer(message: Request) -> bytes:
    """The frame of a message of either side.

    Raises:
        LocalProtocolError: it does not fit a frame.
    """
    return encode_frame(_encoder.encode(message), INSTALLER_MAX_FRAME_BYTES)
