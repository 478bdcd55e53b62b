"""Demands a rotation of all agents, batch by batch, so that no agent's contact waits for longer than one batch.

A note in the registry says how far it is. A run that was interrupted can be continued behind that, or repeated from the start:
what was demanded stays demanded, and to demand it twice does no harm.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select, text, update
from sqlalchemy.orm import Session

from server.base.errors import RegistryError
from server.registry import audit
from server.registry.agentcounts import counted
from server.registry.database import Database
from server.registry.models import Agent, Secret, Setting

from .secret_states import Event, State, step

BATCH = 1000
"""Agents that one transaction locks."""
NOTE = "rotation.demand"
"""The setting that says how far the last run came."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A run that has begun.

    Attributes:
        agents: how many agents there are.
        done: how many an earlier run had reached, if this one continues it; else 0.
        after: the last of them; empty at the start.
        interrupted: how many an earlier run had reached that this one does not continue; None if there is no such run.
    """

    agents: int
    done: int
    after: str
    interrupted: int | None


def begin(database: Database, now: int, *, resume: bool = False) -> Begun:
    """Begins a run, and records that.

    Args:
        database: the registry's.
        now: seconds since 1970 UTC.
        resume: continue the run that was interrupted.

    Raises:
        RegistryError: no run was interrupted.
    """
    with database.write() as session:
        note = session.get(Setting, NOTE)
        if resume and note is None:
            raise RegistryError("no rotation of all agents was interrupted: run 'license-server secrets rotate --all'")
        left: dict[str, Any] = {"done": 0, "after": ""} if note is None else json.loads(note.value)
        agents = sum(counted(session).values())
        done, after = (int(left["done"]), str(left["after"])) if resume else (0, "")
        _note(session, done, after)
        outcome = "resumed" if resume else "begun"
        audit.record(session, "admin", "rotation.demanded", outcome, now, agent="all", agents=agents, done=done)
        return Begun(agents, done, after, int(left["done"]) if note is not None and not resume else None)


def run(database: Database, begun: Begun, now: int, pause: Callable[[], None], reached: Callable[[int], None]) -> int:
    """Makes the agents rotate at their next contact, and records the end; returns how many.

    Args:
        database: the registry's.
        begun: the run.
        now: seconds since 1970 UTC.
        pause: waits a little between two batches: on SQLite, others that wait for its lock try again every 0.1 s at most.
        reached: called with the number of agents of each batch.
    """
    done, after = begun.done, begun.after
    while True:
        with database.write() as session:
            ids = _demand(session, after)
            if not ids:
                session.execute(delete(Setting).where(Setting.name == NOTE))
                audit.record(session, "admin", "rotation.demanded", "ok", now, agent="all", agents=done)
                return done
            done, after = done + len(ids), ids[-1]
            _note(session, done, after)
        reached(len(ids))
        pause()


def _demand(session: Session, after: str) -> list[str]:
    """The agents behind `after` that have to rotate from now on, at most `BATCH`."""
    # Locked in the order of their ids, so that two callers cannot wait for each other.
    batch = select(Agent.id).where(Agent.id > after).order_by(Agent.id).limit(BATCH).with_for_update()
    ids = list(session.scalars(batch))
    if ids:
        session.execute(update(Agent).where(Agent.id.in_(ids)).values(urgent=True))
        replace_pending(session, ids)
    return ids


def replace_pending(session: Session, agent_ids: list[str]) -> None:
    """What was made before is not what is asked for now. An agent that has sealed it may still confirm it."""
    pending = update(Secret).where(Secret.agent_id.in_(agent_ids), Secret.state == State.PENDING)
    session.execute(pending.values(state=step(State.PENDING, Event.REPLACED)))


def _note(session: Session, done: int, after: str) -> None:
    # In one statement: another run may remove the note at any moment.
    put = "INSERT INTO setting (name, value) VALUES (:name, :value) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
    session.execute(text(put), {"name": NOTE, "value": json.dumps({"done": done, "after": after})})
