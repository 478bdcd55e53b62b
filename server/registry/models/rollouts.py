"""Declares the tables of rollouts. Times are seconds since 1970 UTC."""

from sqlalchemy import BigInteger, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from .core import Base


class Rollout(Base):
    """An update of many devices, in groups. `state`: see `server.fleet.rollouts.states`; `policy` is a JSON object.

    Its devices are those of the fleet, of them those that `selection` selects. `rolls_back` is the rollout whose devices this
    one takes back.
    """

    __tablename__ = "rollout"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    fleet_id: Mapped[str] = mapped_column(String(64), index=True)
    selection: Mapped[str | None] = mapped_column(Text)
    rolls_back: Mapped[str | None] = mapped_column(String(64))
    product: Mapped[str] = mapped_column(String(32))
    path: Mapped[str] = mapped_column(String(256))
    version: Mapped[str] = mapped_column(String(64))
    build_id: Mapped[str] = mapped_column(String(64))
    policy: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16))
    detail: Mapped[str] = mapped_column(Text)
    created_by: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[int] = mapped_column(BigInteger)
    started_at: Mapped[int | None] = mapped_column(BigInteger)
    ended_at: Mapped[int | None] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)
    revision: Mapped[int] = mapped_column(BigInteger)


class RolloutGroup(Base):
    """A group of a rollout's devices, and how many of them are in which state. Groups start in the order of their number.

    Each counter changes in the transaction that changes the state of the device that it counts. `seconds` is the sum of the
    times from the order to the proof, of those that have proved the update.
    """

    __tablename__ = "rollout_group"
    rollout_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    success_percent: Mapped[int] = mapped_column()
    failure_percent: Mapped[int] = mapped_column()
    total: Mapped[int] = mapped_column(BigInteger)
    waiting: Mapped[int] = mapped_column(BigInteger)
    under_way: Mapped[int] = mapped_column(BigInteger)
    proved: Mapped[int] = mapped_column(BigInteger)
    failed: Mapped[int] = mapped_column(BigInteger)
    left_out: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[int] = mapped_column(BigInteger)
    started_at: Mapped[int | None] = mapped_column(BigInteger)
    ended_at: Mapped[int | None] = mapped_column(BigInteger)


class RolloutDevice(Base):
    """A device of a rollout, and how far it is. `state`: see `server.fleet.rollouts.states`.

    `number` is that of its directive, or of its action if it is no agent. `before` is the version that it ran at
    `ordered_at`, when it was given its order. `deadline` is when its state ends if nothing is heard; missing where it may last.
    """

    __tablename__ = "rollout_device"
    rollout_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    device_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    group_number: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(String(16))
    number: Mapped[int | None] = mapped_column(BigInteger)
    before: Mapped[str | None] = mapped_column(String(64))
    ordered_at: Mapped[int | None] = mapped_column(BigInteger)
    detail: Mapped[str] = mapped_column(Text)
    deadline: Mapped[int | None] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)


_OPEN = RolloutDevice.state.in_(("waiting", "ordered", "under-way", "installed"))
Index("rollout_device_open", RolloutDevice.device_id, RolloutDevice.rollout_id, sqlite_where=_OPEN, postgresql_where=_OPEN)
Index(
    "rollout_device_state", RolloutDevice.rollout_id, RolloutDevice.group_number, RolloutDevice.state, RolloutDevice.device_id
)
_DEADLINE = RolloutDevice.deadline.is_not(None)
Index("rollout_device_deadline", RolloutDevice.deadline, sqlite_where=_DEADLINE, postgresql_where=_DEADLINE)
Index("rollout_state", Rollout.state, Rollout.id)


class AutomaticRollout(Base):
    """A fleet that gets each new release of a product without a person. `state`: on, halted; `policy` is a JSON object.

    Releases above `floor` are meant, the highest version that was published when two people wanted this, and none below
    `newest`, the highest version that was rolled out so. `detail` says why it was halted, or why nothing starts.
    """

    __tablename__ = "automatic_rollout"
    fleet_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    product: Mapped[str] = mapped_column(String(32), primary_key=True)
    selection: Mapped[str | None] = mapped_column(Text)
    policy: Mapped[str] = mapped_column(Text)
    floor: Mapped[str] = mapped_column(String(64))
    newest: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    detail: Mapped[str] = mapped_column(Text)
    set_by: Mapped[str] = mapped_column(String(128))
    set_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)
