"""Declares the request by which an agent takes, renews and gives back seats of floating licenses, and the reply. Pure.

Used only where the server has announced `lease-seats`. A floating license belongs to a site. A seat of it is a license of its
own on one machine, whose tokens end with the seat: whatever happens to this request or its reply, a machine that is not told
anything any more loses the seat by itself, and until then the server counts it.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from contracts.claims import MAX_FEATURES, MAX_ID_CHARS, MAX_NAME_CHARS
from contracts.exchange import LicenseId, Reply, Request, SecretVersion, Time, Token

LEASE = "lease-seats"
"""The capability, and the purpose."""

MAX_FLOATING = 16
"""Floating licenses of a site."""
MAX_SEATS = 32
"""Seats that one request or reply names."""
MAX_LEASE_S, MAX_GRACE_S = 30 * 86_400, 90 * 86_400
MAX_SEAT_S = MAX_LEASE_S + MAX_GRACE_S
"""A token of a seat ends at most so long after it was made."""
SEAT_MARK = "#"
"""Between the floating license's id and the number of a seat, in the id of the seat. No number comes twice."""
MAX_SEAT_NUMBER_CHARS = 12
MAX_FLOATING_ID_CHARS = MAX_ID_CHARS - MAX_SEAT_NUMBER_CHARS - len(SEAT_MARK)

_Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
SeatIds = Annotated[tuple[LicenseId, ...], Meta(max_length=MAX_SEATS)]
FloatingIds = Annotated[tuple[LicenseId, ...], Meta(max_length=MAX_FLOATING)]


class FloatingLicense(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A floating license of the agent's site that may be used now.

    Attributes:
        license: its id.
        product: its metadata `product`; None where it names none.
        features: what a seat of it allows.
        expires: when it ends, seconds since 1970 UTC.
        idle_s: seconds after which an agent gives back a seat that nobody has used.
    """

    license: LicenseId
    product: str | None
    features: Annotated[tuple[_Name, ...], Meta(max_length=MAX_FEATURES)]
    expires: Time
    idle_s: Annotated[int, Meta(ge=1, le=2**31 - 1)]


class SeatLease(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A seat that the server counts as this agent's. Times are seconds since 1970 UTC.

    Attributes:
        license: the floating license.
        seat: the id of the seat, which is the `jti` of its tokens.
        lease_until: the agent renews the seat at its first contact from then on.
        grace_until: the `exp` of its newest token.
        token: a new one if the seat was taken or renewed by this request; else None.
    """

    license: LicenseId
    seat: LicenseId
    lease_until: Time
    grace_until: Time
    token: Token | None = None


class LeaseSeats(Request, frozen=True):
    """Takes, renews and gives back seats.

    Attributes:
        secret_version: the newest version that the agent holds; tokens are made with it.
        wanted: floating licenses of which the agent wants a seat, or wants to keep one for longer.
        held: the seats that it holds.
        released: seats that it has stopped using for good: it refuses them already, also after a restart.
    """

    secret_version: SecretVersion
    wanted: FloatingIds
    held: SeatIds
    released: SeatIds


class LeaseReply(Reply, frozen=True):
    """The agent's seats.

    Attributes:
        floating: all floating licenses of its site.
        seats: all seats that the server counts as the agent's.
        refused: those of `wanted` of which there is no seat for it now, or no longer one.
        ended: those of `held` that the agent must give back.
    """

    floating: Annotated[tuple[FloatingLicense, ...], Meta(max_length=MAX_FLOATING)]
    seats: Annotated[tuple[SeatLease, ...], Meta(max_length=MAX_SEATS)]
    refused: FloatingIds
    ended: SeatIds
