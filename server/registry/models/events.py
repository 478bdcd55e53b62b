"""Declares the table of events. Most other tables are in `core`; `tables` has them all."""

from sqlalchemy import BigInteger, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from .core import Base


class Event(Base):
    """What has happened to a license, an agent or a customer, for programs that follow it. `fields` is JSON: ids only."""

    __tablename__ = "event"
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[int] = mapped_column(BigInteger)
    kind: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(128))
    fields: Mapped[str] = mapped_column(Text)


Index("event_subject", Event.subject, Event.seq)
Index("event_time", Event.at)
