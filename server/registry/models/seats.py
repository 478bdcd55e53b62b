"""Declares the tables of floating licenses and their seats. Times are seconds since 1970 UTC."""

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from .core import Base


class FloatingLicense(Base):
    """The terms of a floating license. `mode`: hard, soft. `last_number` is that of the newest seat."""

    __tablename__ = "floating_license"
    license_id: Mapped[str] = mapped_column(ForeignKey("license.jti"), primary_key=True)
    seats: Mapped[int] = mapped_column(BigInteger)
    mode: Mapped[str] = mapped_column(String(8))
    lease_s: Mapped[int] = mapped_column(BigInteger)
    grace_s: Mapped[int] = mapped_column(BigInteger)
    idle_s: Mapped[int] = mapped_column(BigInteger)
    last_number: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)


class Seat(Base):
    """A seat that an agent has, or had. It counts until `counted_until`, also if its agent is deleted: so it refers to none.

    `over`: it was given beyond the number of seats.
    """

    __tablename__ = "seat"
    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    license_id: Mapped[str] = mapped_column(ForeignKey("floating_license.license_id"))
    number: Mapped[int] = mapped_column(BigInteger)
    agent_id: Mapped[str] = mapped_column(String(64))
    taken_at: Mapped[int] = mapped_column(BigInteger)
    lease_until: Mapped[int] = mapped_column(BigInteger)
    grace_until: Mapped[int] = mapped_column(BigInteger)
    counted_until: Mapped[int] = mapped_column(BigInteger)
    over: Mapped[bool] = mapped_column()


Index("seat_of_license", Seat.license_id, Seat.number)
Index("seat_of_agent", Seat.agent_id, Seat.license_id)
Index("seat_end", Seat.counted_until)
