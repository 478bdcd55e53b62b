"""Declares the tables of webhooks. Most other tables are in `core`; `tables` has them all."""

from sqlalchemy import BigInteger, ForeignKey, Index, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from .core import Base


class Webhook(Base):
    """An address that events are sent to, in the order of their numbers.

    `state`: active, paused. `kinds`: JSON, patterns of kinds of events. `after_seq`: the number of the last event that is done.
    `attempts`: failed ones of the event behind it; `failing_since`: when the first attempt after the last success failed.
    """

    __tablename__ = "webhook"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    url: Mapped[str] = mapped_column(Text)
    kinds: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16))
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    sealed_before: Mapped[bytes | None] = mapped_column(LargeBinary)
    overlap_until: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)
    after_seq: Mapped[int] = mapped_column(BigInteger)
    attempts: Mapped[int] = mapped_column(default=0, server_default="0")
    failing_since: Mapped[int | None] = mapped_column(BigInteger)
    problem: Mapped[str | None] = mapped_column(Text)
    last_success: Mapped[int | None] = mapped_column(BigInteger)
    due_at: Mapped[int] = mapped_column(BigInteger)
    holder: Mapped[str | None] = mapped_column(String(128))
    lease_until: Mapped[int | None] = mapped_column(BigInteger)
    dropped: Mapped[int] = mapped_column(default=0, server_default="0")


class DeadLetter(Base):
    """An event that a webhook's receiver has not taken. `again`: it is to be sent once more."""

    __tablename__ = "dead_letter"
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhook.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[int] = mapped_column(BigInteger)
    kind: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(128))
    fields: Mapped[str] = mapped_column(Text)
    died_at: Mapped[int] = mapped_column(BigInteger)
    problem: Mapped[str] = mapped_column(Text)
    again: Mapped[bool] = mapped_column(default=False)


Index("webhook_due", Webhook.state, Webhook.due_at)
Index("dead_letter_time", DeadLetter.died_at)
