"""Stores the data key in the registry, wrapped by the master key; by two master keys while a rotation is under way.

A wrap says how it was made, by what kind of master key, and when, and holds the encrypted data key. The newest comes first.
"""

import base64
import json
from dataclasses import dataclass

from sqlalchemy.orm import Session

from server.base.errors import RegistryError
from server.registry.models.core import Setting

from .masterkey import MasterKey, NotWrapped

NAME = "data_key"


@dataclass(frozen=True, slots=True)
class Wrap:
    """The data key under one master key.

    Attributes:
        way: `MasterKey.way`.
        kind: `MasterKey.kind`, for people.
        made_at: when this master key came into use; seconds since 1970 UTC.
        wrapped: the encrypted data key.
    """

    way: str
    kind: str
    made_at: int
    wrapped: bytes


def wraps(session: Session, *, lock: bool = False) -> list[Wrap]:
    """The wraps in the registry, the newest first.

    Raises:
        RegistryError: the registry has none.
    """
    row = session.get(Setting, NAME, with_for_update=lock)
    if row is None:
        raise RegistryError("the registry has no data key; run 'license-server init'")
    return parsed(row.value)


def parsed(text: str) -> list[Wrap]:
    """The wraps in the text that the registry stores them as, the newest first."""
    return [Wrap(w["way"], w["kind"], w["made_at"], base64.b64decode(w["wrapped"])) for w in json.loads(text)]


def create(session: Session, data_key: bytes, master: MasterKey, now: int) -> None:
    """Stores the data key of a new registry.

    Raises:
        RegistryError: the registry has one already.
    """
    if session.get(Setting, NAME) is not None:
        raise RegistryError("the database already has a server, which is not overwritten")
    session.add(Setting(name=NAME, value=_text([_wrap(data_key, master, now)])))


def opened(session: Session, master: MasterKey) -> bytes:
    """Unwraps the data key.

    Raises:
        RegistryError: this master key has not wrapped it.
    """
    return opened_from(wraps(session), master)


def opened_from(there: list[Wrap], master: MasterKey) -> bytes:
    """Unwraps the data key from one of the wraps. Raises as `opened`."""
    for wrap in there:
        data_key = unwrapped(wrap, master)
        if data_key is not None:
            return data_key
    raise RegistryError(
        f"the master key ({master.kind}) is not the one of this registry, which is: {', '.join(wrap.kind for wrap in there)}"
    )


def add(session: Session, old: MasterKey, new: MasterKey, now: int) -> None:
    """Wraps the data key with a second master key; from now on either opens it.

    Raises:
        RegistryError: the old master key does not open it.
    """
    there = wraps(session, lock=True)
    data_key = opened(session, old)
    # Wraps of earlier rotations that failed, by master keys other than the present one, are dropped.
    kept = [wrap for wrap in there if unwrapped(wrap, old) is not None]
    _set(session, [_wrap(data_key, new, now), *kept])


def keep_only(session: Session, master: MasterKey) -> int:
    """Deletes the wraps of other master keys and returns how many there were.

    Raises:
        RegistryError: this master key opens none.
    """
    there = wraps(session, lock=True)
    opened(session, master)
    kept = [wrap for wrap in there if unwrapped(wrap, master) is not None][:1]
    _set(session, kept)
    return len(there) - len(kept)


def unwrapped(wrap: Wrap, master: MasterKey) -> bytes | None:
    """Unwraps the data key; None if another master key wrapped it."""
    if wrap.way != master.way:
        return None
    try:
        return master.unwrap(wrap.wrapped)
    except NotWrapped:
        return None


def _wrap(data_key: bytes, master: MasterKey, now: int) -> Wrap:
    made = Wrap(master.way, master.kind, now, master.wrap(data_key))
    if master.unwrap(made.wrapped) != data_key:
        raise RegistryError(f"the master key ({master.kind}) does not unwrap what it has wrapped; nothing was changed")
    return made


def _text(there: list[Wrap]) -> str:
    return json.dumps(
        [
            {"way": w.way, "kind": w.kind, "made_at": w.made_at, "wrapped": base64.b64encode(w.wrapped).decode("ascii")}
            for w in there
        ]
    )


def _set(session: Session, there: list[Wrap]) -> None:
    row = session.get_one(Setting, NAME)
    row.value = _text(there)
