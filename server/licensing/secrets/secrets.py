"""Makes the agents' secrets, delivers each until the agent confirms it, and retires it. `secret_states` has the rules.

The server believes what an agent says of the versions it holds: the agent has sealed them. A registry that was restored from an
old backup therefore follows the agent's numbers, and skips ahead of them.
"""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from contracts.exchange import RefusalCode
from contracts.keyconfirmation import key_check
from server.agents.clones import EXTENSION_S
from server.agents.registry import REVOKED, enrolled, registered
from server.base.errors import NotFound, RegistryError
from server.base.refused import RequestRefused
from server.keys.jose import issue_delivery
from server.keys.keyring import Keyring
from server.registry import audit
from server.registry.agentcounts import shown_status
from server.registry.cipher import Cipher
from server.registry.models.core import Agent, Secret

from .demand import replace_pending
from .periods import backdate, periods
from .secret_states import ISSUING, Event, State, shown_state, step

SECRET_BYTES = 32
MAX_LIVE = 15
"""Versions whose grace has not ended, besides a new one: an agent holds 16."""
HALTED_RETRY_S = 3600


@dataclass(frozen=True, slots=True)
class SecretRow:
    """A secret version as administrators see it. Times are seconds since 1970 UTC."""

    def shown_state(self, now: int) -> str:
        """Its state as people see it: nothing changes the row when its grace ends."""
        return shown_state(self.state, self.grace_until, now)

    version: int
    state: str
    key_check: str
    valid_from: int
    valid_until: int
    grace_until: int
    confirmed_at: int | None


def version_of(row: Secret) -> SecretRow:
    """A version as administrators see it."""
    return SecretRow(row.version, row.state, row.key_check, row.valid_from, row.valid_until, row.grace_until, row.confirmed_at)


class Secrets:
    """The agents' secret versions. Every method works in the transaction of the session that it is given.

    Args:
        keyring: signs deliveries.
        cipher: seals secrets.
        random: returns this many random bytes.
    """

    def __init__(self, keyring: Keyring, cipher: Cipher, random: Callable[[int], bytes] = os.urandom) -> None:
        self._keyring = keyring
        self._cipher = cipher
        self._random = random

    # For agents

    def rotate(self, session: Session, agent_id: str, current: int, check: str | None, highest: int, now: int) -> str:
        """The delivery of the agent's next secret. Until the agent confirms it, it is the same secret each time.

        Args:
            session: of a writing transaction.
            agent_id: the agent.
            current: the newest version that it holds; 0 if it holds none.
            check: the key check of that version.
            highest: the highest version that it ever held.
            now: seconds since 1970 UTC.

        Raises:
            RequestRefused: too many versions are live; another one would end one under which licenses are still valid.
        """
        agent = registered(session, agent_id)
        rows = self._rows(session, agent_id, now, current)
        self._note(session, agent, rows, current, check, now)
        if agent.halted_at is not None:
            return self._deliver(agent, self._last(session, agent, rows, current, now), now)
        row = self._pending(rows, max(highest, current), now)
        if row is None:
            row = self._make(session, agent, rows, max(highest, current), now)
        return self._deliver(agent, row, now)

    def confirm(self, session: Session, agent_id: str, version: int, check: str, now: int) -> RequestRefused | None:
        """Notes that the agent has sealed a version: licenses are issued under it from now on.

        Returns:
            None, or the refusal if there is no such version, or the agent holds another secret under its number. It is returned
            and not raised: what the agent said stays noted.
        """
        agent = registered(session, agent_id)
        rows = self._rows(session, agent_id, now, version)
        row = rows.get(version)
        if row is None or State(row.state) is State.INVALIDATED:
            return RequestRefused(
                RefusalCode.UNKNOWN_VERSION, f"the server has no secret version {version}; request a rotation"
            )
        if not self._note(session, agent, rows, version, check, now):
            return RequestRefused(
                RefusalCode.KEY_MISMATCH, f"the server has another secret under version {version}; request a rotation"
            )
        return None

    def status(
        self, session: Session, agent_id: str, current: int, check: str | None, highest: int, now: int
    ) -> tuple[int, bool]:
        """The version that licenses are issued under (0 if none), and whether the agent must rotate at once."""
        agent = registered(session, agent_id, lock=False)
        rows = self._rows(session, agent_id, now, current, lock=agent.halted_at is not None)
        active = _active(rows)
        if agent.halted_at is not None:
            extension = self._extension(session, agent, rows, now)
            return (0 if active is None else active.version), extension is not None and current < extension.version
        return outlook(rows.values(), self._newest(session, agent_id), agent.urgent, (current, check, highest), now)

    def _last(self, session: Session, agent: Agent, rows: dict[int, Secret], current: int, now: int) -> Secret:
        """The version that every holder of a halted identity gets; raises RequestRefused for one that has it already."""
        row = self._extension(session, agent, rows, now)
        if row is None or current >= row.version:
            raise RequestRefused(
                RefusalCode.TOO_MANY_VERSIONS,
                "rotations are halted: two machines use this agent's identity; an operator of the license server must decide",
                HALTED_RETRY_S,
            )
        return row

    def _extension(self, session: Session, agent: Agent, rows: dict[int, Secret], now: int) -> Secret | None:
        """The version with the long grace, made when it is first needed; None once it has ended or was invalidated."""
        if agent.halted_at is None:
            return None
        if agent.halt_version is None:
            left = agent.halted_at + EXTENSION_S - now
            if left <= 0:
                return None
            for row in rows.values():
                if State(row.state) is State.PENDING:
                    row.state = step(State.PENDING, Event.REPLACED)
            # One more than usual, and only once: an agent holds 16.
            made = self._make(session, agent, rows, agent.seen_version or 0, now, left, 0, most=MAX_LIVE + 1)
            rows[made.version], agent.halt_version = made, made.version
        found = rows.get(agent.halt_version)
        return None if found is None or found.sealed is None or now >= found.valid_until else found

    # For administrators

    def rotate_by_hand(
        self, session: Session, agent_id: str, now: int, interval: int | None = None, grace: int | None = None
    ) -> str:
        """Makes a new secret and returns its delivery, to be carried by hand. The secret counts as confirmed.

        Args:
            session: of a writing transaction.
            agent_id: the agent.
            now: seconds since 1970 UTC.
            interval: seconds until its successor is due; None for the server's setting.
            grace: seconds of grace after that; None for the server's setting.

        Raises:
            RegistryError: there is no such agent, it is revoked or retired, or too many versions are live.
        """
        agent = _in_service(session, agent_id)
        if agent.halted_at is not None:
            raise RegistryError(f"the rotations of {agent_id!r} are halted; 'license-server clones' says why and what to do")
        rows = self._rows(session, agent_id, now)
        try:
            row = self._make(session, agent, rows, 0, now, interval, grace)
        except RequestRefused as refused:
            raise RegistryError(refused.text) from None
        rows[row.version] = row
        self._confirm(session, agent, rows, row, now)
        return self._deliver(agent, row, now)

    def demand(self, session: Session, agent_id: str, now: int) -> None:
        """Makes an agent rotate at its next contact. `demand` does so for all agents.

        Raises:
            RegistryError: there is no such agent, or it is revoked or retired.
        """
        _in_service(session, agent_id).urgent = True
        replace_pending(session, [agent_id])
        audit.record(session, "admin", "rotation.demanded", "ok", now, agent=agent_id)

    def invalidate(self, session: Session, agent_id: str, version: int, now: int) -> None:
        """Destroys a version on the server: no license is issued under it any more.

        Raises:
            RegistryError: there is no such agent or version.
        """
        agent = enrolled(session, agent_id)
        row = self._rows(session, agent_id, now, version).get(version)
        if row is None:
            raise NotFound(
                f"agent {agent_id!r} has no secret version {version}; "
                f"'license-server secrets list --agent {agent_id}' lists its versions"
            )
        row.state, row.sealed = step(State(row.state), Event.INVALIDATED), None
        agent.urgent = True
        audit.record(session, "admin", "secret.invalidated", "ok", now, agent=agent_id, version=version)

    def listed(
        self, session: Session, agent_id: str, state: str | None = None, after: int = 0, limit: int | None = None
    ) -> list[SecretRow]:
        """The agent's versions, oldest first; never a secret.

        Args:
            session: of any transaction.
            agent_id: the agent.
            state: only versions in this state.
            after: only versions behind this one.
            limit: at most so many.

        Raises:
            RegistryError: there is no such agent.
        """
        enrolled(session, agent_id, lock=False)
        query = select(Secret).where(Secret.agent_id == agent_id, Secret.version > after)
        query = query if state is None else query.where(Secret.state == state)
        rows = session.scalars(query.order_by(Secret.version).limit(limit))
        return [version_of(row) for row in rows]

    # For licenses

    def open(self, session: Session, agent_id: str, version: int | None) -> tuple[int, bytes] | None:
        """The number and the secret of a version that licenses may be issued under, or None.

        Args:
            session: of any transaction.
            agent_id: the agent.
            version: the version; None for the newest confirmed one.
        """
        if version is None:
            query = select(Secret).where(Secret.agent_id == agent_id, Secret.state.in_(ISSUING))
            row = session.scalars(query.order_by(Secret.version.desc()).limit(1)).first()
        else:
            row = session.get(Secret, (agent_id, version))
        if row is None or row.sealed is None or State(row.state) in (State.DIVERGED, State.INVALIDATED):
            return None
        return row.version, self._cipher.open("secret", f"{agent_id}/{row.version}", "sealed", row.sealed)

    # Rows

    def _rows(self, session: Session, agent_id: str, now: int, *also: int, lock: bool = True) -> dict[int, Secret]:
        """The versions that matter: those whose grace has not ended, those in use, and those named in `also`."""
        matters = or_(Secret.grace_until > now, Secret.state.in_((State.PENDING, State.ACTIVE)), Secret.version.in_(also))
        query = select(Secret).where(Secret.agent_id == agent_id, matters).order_by(Secret.version)
        return {row.version: row for row in session.scalars(query.with_for_update() if lock else query)}

    def _newest(self, session: Session, agent_id: str) -> int:
        return session.scalar(select(func.max(Secret.version)).where(Secret.agent_id == agent_id)) or 0

    def _note(self, session: Session, agent: Agent, rows: dict[int, Secret], current: int, check: str | None, now: int) -> bool:
        """Notes which version the agent holds; returns False if it holds another secret under that number."""
        row = rows.get(current)
        if row is None:
            return True
        state = State(row.state)
        if state is State.INVALIDATED:
            # Nothing that the agent says can revive it.
            return False
        if row.key_check != check:
            if state is not State.DIVERGED:
                row.state = step(state, Event.DIVERGED)
                audit.record(session, f"agent {agent.id}", "secret.diverged", "alert", now, version=current, was=state.value)
            return False
        if state in (State.PENDING, State.ENDED):
            self._confirm(session, agent, rows, row, now)
        return state is not State.DIVERGED

    def _confirm(self, session: Session, agent: Agent, rows: dict[int, Secret], row: Secret, now: int) -> None:
        for other in rows.values():
            if State(other.state) is State.ACTIVE and other.version != row.version:
                other.state = step(State.ACTIVE, Event.SUPERSEDED)
        if State(row.state) is State.PENDING:
            # A version that was replaced was made before the rotation that is still wanted.
            agent.urgent = False
        row.state = step(State(row.state), Event.CONFIRMED)
        row.confirmed_at = now
        audit.record(session, f"agent {agent.id}", "secret.confirmed", "ok", now, version=row.version)

    def _pending(self, rows: dict[int, Secret], above: int, now: int) -> Secret | None:
        found = None
        for row in rows.values():
            if State(row.state) is not State.PENDING:
                continue
            if row.version > above and row.sealed is not None and now < row.valid_until:
                found = row
            else:
                row.state = step(State.PENDING, Event.REPLACED)
        return found

    def _make(
        self,
        session: Session,
        agent: Agent,
        rows: dict[int, Secret],
        above: int,
        now: int,
        interval: int | None = None,
        grace: int | None = None,
        most: int = MAX_LIVE,
    ) -> Secret:
        live = sorted(row.grace_until for row in rows.values() if row.grace_until > now and row.state != State.INVALIDATED)
        if len(live) >= most:
            raise RequestRefused(
                RefusalCode.TOO_MANY_VERSIONS,
                f"{len(live)} secret versions are live; another one would end one under which licenses are valid",
                max(live[0] - now, 1),
            )
        usual = periods(session)
        interval, grace = usual[0] if interval is None else interval, usual[1] if grace is None else grace
        newest = self._newest(session, agent.id)
        former = session.get(Secret, (agent.id, newest))
        back = backdate(interval, None if former is None else now - former.made_at)
        version = max(above, newest) + 1
        secret = self._random(SECRET_BYTES)
        row = Secret(
            agent_id=agent.id,
            version=version,
            state=State.PENDING.value,
            sealed=self._cipher.seal("secret", f"{agent.id}/{version}", "sealed", secret),
            key_check=key_check(secret, agent.id, version),
            valid_from=now - back,
            valid_until=now + interval,
            grace_until=now + interval + grace,
            made_at=now,
        )
        session.add(row)
        # Destroys what cannot be used any more.
        ended = (Secret.agent_id == agent.id, Secret.grace_until <= now, Secret.state != State.ACTIVE)
        session.execute(update(Secret).where(*ended).values(sealed=None))
        audit.record(session, f"agent {agent.id}", "secret.made", "ok", now, version=version)
        return row

    def _deliver(self, agent: Agent, row: Secret, now: int) -> str:
        secret = self._cipher.open("secret", f"{agent.id}/{row.version}", "sealed", row.sealed or b"")
        dates = {
            "valid_from": row.valid_from,
            "valid_until": row.valid_until,
            "grace_until": row.grace_until,
            "issued_at": now,
        }
        return issue_delivery(
            agent.id, row.version, dates, secret, json.loads(agent.agreement_key), self._keyring.rotation_key()
        )


def _in_service(session: Session, agent_id: str) -> Agent:
    """An agent that an administrator has named, locked, unless it gets no secrets any more; raises RegistryError then."""
    agent = enrolled(session, agent_id)
    if agent.status == REVOKED:
        raise RegistryError(
            f"agent {agent_id!r} is {shown_status(agent.status, agent.retired_at)} and gets no secret; 'license-server agents "
            f"reinstate {agent_id}' undoes that"
        )
    return agent


class Version(Protocol):
    """A secret version: a row of the registry, or what a statement has read."""

    version: Any
    state: Any
    key_check: Any
    valid_until: Any


def outlook(
    rows: Iterable[Version], newest: int, urgent: bool, held: tuple[int, str | None, int], now: int
) -> tuple[int, bool]:
    """The version that licenses are issued under (0 if none), and whether the agent must rotate at once.

    Args:
        rows: the agent's versions in use, and the one that it holds.
        newest: the number of its newest version; 0 if it has none.
        urgent: whether an administrator demands a rotation.
        held: the newest version that the agent holds (0 if none), its key check, and the highest that it ever held.
        now: seconds since 1970 UTC.
    """
    current, check, highest = held
    rows = list(rows)
    active = max((row for row in rows if State(row.state) in ISSUING), key=lambda row: row.version, default=None)
    row = next((row for row in rows if row.version == current), None)
    lost = current > 0 and (row is None or row.key_check != check or row.state == State.DIVERGED)
    # A version that was made by hand may not have been carried to the agent yet; a rotation replaces it.
    behind = active is not None and active.version > current
    due = active is None or now >= active.valid_until or behind
    return (0 if active is None else active.version), urgent or lost or due or highest > newest


def _active(rows: dict[int, Secret]) -> Secret | None:
    found = [row for row in rows.values() if State(row.state) in ISSUING]
    return max(found, key=lambda row: row.version, default=None)
