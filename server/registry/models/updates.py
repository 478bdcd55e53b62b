"""Declares the tables of updates. Times are seconds since 1970 UTC."""

from sqlalchemy import BigInteger, Index, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from .core import Base


class UpdateKey(Base):
    """An online key of the update repository. `role`: snapshot, timestamp."""

    __tablename__ = "update_key"
    keyid: Mapped[str] = mapped_column(String(64), primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[int] = mapped_column(BigInteger)


class UpdatePackage(Base):
    """A package that is published, or was. `role`: releases, candidate, withdrawn. `hardware` is a JSON list."""

    __tablename__ = "update_package"
    path: Mapped[str] = mapped_column(String(256), primary_key=True)
    product: Mapped[str] = mapped_column(String(32))
    version: Mapped[str] = mapped_column(String(64))
    build_id: Mapped[str] = mapped_column(String(64), unique=True)
    kind: Mapped[str] = mapped_column(String(16))
    hardware: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(String(64))
    length: Mapped[int] = mapped_column(BigInteger)
    role: Mapped[str] = mapped_column(String(16))
    published_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)


class UpdateDirective(Base):
    """What an agent was ordered to install. `state`: see `server.ota.directive_states`; `window` is JSON.

    Nothing refers to the package: one that is withdrawn from the repository stays in what was ordered.
    """

    __tablename__ = "update_directive"
    agent_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    product: Mapped[str] = mapped_column(String(32))
    path: Mapped[str] = mapped_column(String(256))
    sha256: Mapped[str] = mapped_column(String(64))
    length: Mapped[int] = mapped_column(BigInteger)
    version: Mapped[str] = mapped_column(String(64))
    build_id: Mapped[str] = mapped_column(String(64))
    rollout: Mapped[str] = mapped_column(String(64))
    not_before: Mapped[int] = mapped_column(BigInteger)
    not_after: Mapped[int] = mapped_column(BigInteger)
    notice_until: Mapped[int] = mapped_column(BigInteger)
    window: Mapped[str | None] = mapped_column(Text)
    downgrade: Mapped[bool] = mapped_column()
    withdraws: Mapped[int | None] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(String(16))
    detail: Mapped[str] = mapped_column(Text)
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)


class UpdateAgent(Base):
    """An agent that updates concern. `known` is the highest number that it has named; `running` is a JSON list; `hardware` is
    the kind of machine that it says it is.
    """

    __tablename__ = "update_agent"
    agent_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger)
    known: Mapped[int] = mapped_column(BigInteger)
    running: Mapped[str] = mapped_column(Text)
    reported_at: Mapped[int | None] = mapped_column(BigInteger)
    paused_at: Mapped[int | None] = mapped_column(BigInteger)
    hardware: Mapped[str | None] = mapped_column(String(64))


Index("update_directive_state", UpdateDirective.state, UpdateDirective.not_after)
Index("update_package_product", UpdatePackage.product)
