"""Declares the table of events. The other tables are in `models`; `tables` has them all."""

from sqlalchemy import BigInteger, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from .models import Base


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
