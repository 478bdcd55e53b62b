"""Demands a rotation of all agents, batch by batch, so that no agent's contact waits for longer than one batch.

Each run has a note in the registry that says how far it is. A run that was interrupted can be continued behind that, or
repeated from the start: what was demanded stays demanded, and to demand it twice does no harm. Nobody can see whether the run
of a note is under way or was interrupted. So a run that ends removes its own note and those that it has overtaken, no others.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from sqlalchemy import delete, select, text, update
from sqlalchemy.orm import Session

from server.base.errors import NotFound, RegistryError
from server.registry import audit
from server.registry.agentcounts import counted
from server.registry.database import Database
from server.registry.dialect import by_bytes
from server.registry.models.core import Agent, Secret, Setting

from .secret_states import Event, State, step

BATCH = 1000
"""Agents that one transaction locks."""
NOTE = "rotation.demand"
"""How the settings begin that say how far a run came; its id follows. One without an id is of a program before that."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A run that has begun.

    Attributes:
        note: the setting that says how far it is.
        overtaken: the notes of earlier runs; all that these have not reached, this one will reach.
        agents: how many agents there are.
        done: how many an earlier run had reached, if this one continues it; else 0.
        after: the last of them; empty at the start.
        interrupted: how many an earlier run had reached that this one does not continue; None if there is no such run.
    """

    note: str
    overtaken: tuple[str, ...]
    agents: int
    done: int
    after: str
    interrupted: int | None


@dataclass(frozen=True, slots=True)
class _Left:
    """How far an earlier run came: the number of agents, and the last of them."""

    name: str
    done: int
    after: str


def begin(database: Database, now: int, *, resume: bool = False, random: Callable[[int], bytes] = os.urandom) -> Begun:
    """As `begin_within`, in a transaction of its own."""
    with database.write() as session:
        return begin_within(session, now, resume=resume, random=random)


def begin_within(session: Session, now: int, *, resume: bool = False, random: Callable[[int], bytes] = os.urandom) -> Begun:
    """Begins a run, and records that.

    Args:
        session: of a writing transaction.
        now: seconds since 1970 UTC.
        resume: continue the run that was interrupted; of several, the one that came least far.
        random: returns this many random bytes.

    Raises:
        RegistryError: no run was interrupted.
    """
    left = sorted(_left(session), key=lambda each: each.after)
    if resume and not left:
        raise RegistryError("no rotation of all agents was interrupted: run 'license-server secrets rotate --all'")
    agents = sum(counted(session).values())
    done, after = (left[0].done, left[0].after) if resume else (0, "")
    run_id = random(8).hex()
    begun = Begun(
        f"{NOTE}.{run_id}", tuple(each.name for each in left), agents, done, after,
        None if resume else max((each.done for each in left), default=None),
    )  # fmt: skip
    _note(session, begun, done, after)
    if resume:
        session.execute(delete(Setting).where(Setting.name == left[0].name))
    outcome = "resumed" if resume else "begun"
    audit.record(session, "admin", "rotation.demanded", outcome, now, agent="all", agents=agents, done=done, run=run_id)
    return begun


def found(session: Session, run_id: str) -> Begun:
    """A run that was begun and has not ended, as far as it is; nobody else continues it until the transaction ends.

    Args:
        session: of a writing transaction.
        run_id: the last part of its note.

    Raises:
        NotFound: there is no such run, or it has ended.
    """
    name = f"{NOTE}.{run_id}"
    row = session.get(Setting, name, with_for_update=True)
    if row is None:
        raise NotFound("this rotation of all agents has ended, or a later one has overtaken it")
    note = json.loads(row.value)
    agents = sum(counted(session).values())
    return Begun(name, tuple(note.get("overtaken", ())), agents, int(note["done"]), str(note["after"]), None)


def _left(session: Session) -> list[_Left]:
    rows = session.scalars(select(Setting).where(Setting.name.startswith(NOTE, autoescape=True)).with_for_update())
    found = []
    for row in rows:
        note = json.loads(row.value)
        # A note without an id may be that of several runs, and counts agents in another order: it says nothing.
        done, after = (0, "") if row.name == NOTE else (int(note["done"]), str(note["after"]))
        found.append(_Left(row.name, done, after))
    return found


def run(database: Database, begun: Begun, now: int, pause: Callable[[], None], reached: Callable[[int], None]) -> int:
    """Makes the agents rotate at their next contact, and records the end; returns how many.

    Args:
        database: the registry's.
        begun: the run.
        now: seconds since 1970 UTC.
        pause: waits a little between two batches: on SQLite, others that wait for its lock try again every 0.1 s at most.
        reached: called with the number of agents of each batch.
    """
    while True:
        with database.write() as session:
            done, ended = batch(session, begun, now)
        if ended:
            return done.done
        reached(done.done - begun.done)
        begun = done
        pause()


def batch(session: Session, begun: Begun, now: int) -> tuple[Begun, bool]:
    """Makes the next agents of a run rotate, at most `BATCH`; or records its end if there are none.

    Args:
        session: of a writing transaction.
        begun: the run, as far as it is.
        now: seconds since 1970 UTC.

    Returns:
        How far it is then, and whether it has ended.
    """
    ids = _demand(session, begun.after)
    if not ids:
        session.execute(delete(Setting).where(Setting.name.in_([begun.note, *begun.overtaken])))
        run_id = begun.note.removeprefix(f"{NOTE}.")
        audit.record(session, "admin", "rotation.demanded", "ok", now, agent="all", agents=begun.done, run=run_id)
        return begun, True
    done = replace(begun, done=begun.done + len(ids), after=ids[-1])
    _note(session, begun, done.done, done.after)
    return done, False


def _demand(session: Session, after: str) -> list[str]:
    """The agents behind `after` that have to rotate from now on, at most `BATCH`."""
    # Locked in the order of their ids, so that two callers cannot wait for each other.
    agent_id = by_bytes(session, Agent.id)
    batch = select(Agent.id).where(agent_id > after).order_by(agent_id).limit(BATCH).with_for_update()
    ids = list(session.scalars(batch))
    if ids:
        session.execute(update(Agent).where(Agent.id.in_(ids)).values(urgent=True))
        replace_pending(session, ids)
    return ids


def replace_pending(session: Session, agent_ids: list[str]) -> None:
    """What was made before is not what is asked for now. An agent that has sealed it may still confirm it."""
    pending = update(Secret).where(Secret.agent_id.in_(agent_ids), Secret.state == State.PENDING)
    session.execute(pending.values(state=step(State.PENDING, Event.REPLACED)))


def _note(session: Session, begun: Begun, done: int, after: str) -> None:
    # In one statement: a run that has overtaken this one may remove the note at any moment.
    put = "INSERT INTO setting (name, value) VALUES (:name, :value) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
    note = {"done": done, "after": after, "overtaken": begun.overtaken}
    session.execute(text(put), {"name": begun.note, "value": json.dumps(note)})
