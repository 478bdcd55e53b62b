"""What the agent learned when it was provisioned: its server, its number, and whose word counts. Pure.

It stands in the sealed store. Only the agent's id stands outside as well: it is needed to open the store.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from contracts.exchange import AgentId, Number


class Binding(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The server that an agent belongs to.

    Attributes:
        agent_id: who this is, as the server says.
        serial: its number in the server's registry.
        url: where the server is.
        pins: of the keys in the server's TLS chain; one must be in it.
        roots: pins of the roots that may sign key sets.
        key_set: number of the newest key set.
        key_set_expires: when a newer one should be there, seconds since 1970 UTC.
        attestation: how sure the server was of the hardware.
    """

    agent_id: AgentId
    serial: Number
    url: str
    pins: Annotated[tuple[str, ...], Meta(min_length=1, max_length=8)]
    roots: Annotated[tuple[str, ...], Meta(min_length=1, max_length=4)]
    key_set: Number
    key_set_expires: int
    attestation: str


def encode(binding: Binding) -> bytes:
    """As it stands in the sealed store."""
    return msgspec.json.encode(binding)


def decode(data: bytes) -> Binding:
    """The binding in `data`.

    Raises:
        ValueError: it is not one.
    """
    try:
        return msgspec.json.decode(data, type=Binding)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a binding: {error}") from None
