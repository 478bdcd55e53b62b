"""Declares the tables of usage that agents have counted. They refer to nothing: what was used outlives license and agent."""

from sqlalchemy import BigInteger, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from .core import Base


class UsageCounter(Base):
    """The greatest total that an agent has reported of a counter's epoch.

    `counted_at`: when it last grew. `challenged_at`: the newest challenge that a report of it has answered. `alerted_at`: when
    a lower total last raised an alert.
    """

    __tablename__ = "usage_counter"
    agent_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    epoch: Mapped[str] = mapped_column(String(32), primary_key=True)
    license_id: Mapped[str] = mapped_column(String(128))
    meter: Mapped[str] = mapped_column(String(48))
    total: Mapped[int] = mapped_column(BigInteger)
    counted_at: Mapped[int] = mapped_column(BigInteger, index=True)
    challenged_at: Mapped[int] = mapped_column(BigInteger)
    alerted_at: Mapped[int | None] = mapped_column(BigInteger)


class UsageDay(Base):
    """What one agent has reported of a license and meter on a day, in days since 1970 UTC, by the server's clock.

    `since`: no part of it was counted before; missing where that is not known.
    """

    __tablename__ = "usage_day"
    license_id: Mapped[str] = mapped_column(String(128), primary_key=True)
    meter: Mapped[str] = mapped_column(String(48), primary_key=True)
    day: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    agent_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    amount: Mapped[int] = mapped_column(BigInteger)
    since: Mapped[int | None] = mapped_column(BigInteger)


Index("usage_day_listed", UsageDay.day, UsageDay.license_id, UsageDay.meter, UsageDay.agent_id)
