"""The agents' secrets: made, handed out until they are confirmed, given up. The rules stand in `secretstates`.

Whatever an agent says of the versions it holds is true: it has sealed them. A registry that was restored from an old backup
therefore goes by the agent's numbers, and skips ahead of them.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from contracts.exchange import RefusalCode
from contracts.jose import b64encode
from contracts.servertime import CHALLENGE
from server.base.errors import RegistryError
from server.base.refused import RequestRefused
from server.keys.jose import issue_delivery, issue_server_time
from server.keys.keyring import Keys
from server.registry.audit import Audit
from server.registry.cipher import Cipher
from server.registry.database import Database
from server.registry.models import Agent, Secret, Setting

from .secret_states import MINTING, Event, State, step

SECRET_BYTES = 32
DEFAULT_INTERVAL_S, DEFAULT_GRACE_S = 86_400, 604_800
MAX_LIVE = 15
"""Versions whose grace has not ended, besides a new one: an agent holds 16."""
_KEY_CHECK_BYTES = 16


@dataclass(frozen=True, slots=True)
class SecretRow:
    """A secret version as administrators see it. Times are seconds since 1970 UTC."""

    version: int
    state: str
    key_check: str
    valid_from: int
    valid_until: int
    grace_until: int
    confirmed_at: int | None


def key_check(secret: bytes, agent_id: str, version: int) -> str:
    """What tells whether agent and server hold the same secret; 22 characters of base64url."""
    info = f"license-agent/key-check/{agent_id}/{version}".encode()
    return b64encode(HKDF(hashes.SHA256(), _KEY_CHECK_BYTES, salt=None, info=info).derive(secret))


class Secrets:
    """Acts on secrets.

    Args:
        database: of the registry.
        keys: sign deliveries.
        cipher: seals secrets.
        audit: records.
        random: gives that many random bytes.
    """

    def __init__(
        self,
        database: Database,
        keys: Keys,
        cipher: Cipher,
        audit: Audit,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._database = database
        self._keys = keys
        self._cipher = cipher
        self._audit = audit
        self._random = random

    # What agents ask for

    def rotate(self, agent_id: str, current: int, check: str | None, highest: int, now: int) -> str:
        """The delivery of the next secret: the same one until it is confirmed.

        Args:
            agent_id: whose.
            current: the newest version that the agent holds; 0 if none.
            check: its key check.
            highest: the highest version that the agent ever held.
            now: when.

        Raises:
            RequestRefused: it would end a version under which licenses still pass.
        """
        with self._database.transaction() as session:
            agent = self._agent(session, agent_id)
            rows = self._rows(session, agent_id, now, current)
            self._take_note(session, agent, rows, current, check, now)
            row = self._pending(rows, max(highest, current), now)
            if row is None:
                row = self._make(session, agent, rows, max(highest, current), now)
            return self._deliver(agent, row, now)

    def confirm(self, agent_id: str, version: int, check: str, now: int) -> None:
        """The agent has sealed a version: licenses are made with it from now on.

        Raises:
            RequestRefused: there is no such version, or the agent holds another secret under its number.
        """
        failed: RequestRefused | None = None
        with self._database.transaction() as session:
            agent = self._agent(session, agent_id)
            rows = self._rows(session, agent_id, now, version)
            row = rows.get(version)
            if row is None or State(row.state) is State.INVALIDATED:
                failed = RequestRefused(
                    RefusalCode.UNKNOWN_VERSION, f"there is no secret version {version}: ask for another one"
                )
            elif not self._take_note(session, agent, rows, version, check, now):
                # What was noted is kept; the agent is refused after the transaction.
                failed = RequestRefused(
                    RefusalCode.KEY_MISMATCH, f"secret version {version} differs on the server: request another"
                )
        if failed is not None:
            raise failed

    def status(self, agent_id: str, current: int, check: str | None, highest: int, now: int) -> tuple[int, bool]:
        """The version that licenses are made with (0 if none), and whether the agent is to rotate at once."""
        with self._database.reading() as session:
            agent = self._agent(session, agent_id, lock=False)
            rows = self._rows(session, agent_id, now, current, lock=False)
            active = _active(rows)
            row = rows.get(current)
            lost = current > 0 and (row is None or row.key_check != check or row.state == State.DIVERGED)
            # A version that was made by hand and has not been carried there yet is not waited for.
            behind = active is not None and active.version > current
            due = active is None or now >= active.valid_until or behind
            ahead = highest > self._newest(session, agent_id)
            return (0 if active is None else active.version), agent.urgent or lost or due or ahead

    # What administrators ask for

    def rotate_by_hand(self, agent_id: str, now: int, interval: int | None = None, grace: int | None = None) -> str:
        """A new secret's delivery, to be carried by hand: it counts as confirmed.

        Raises:
            RegistryError: there is no such agent, or too many versions are live.
        """
        with self._database.transaction() as session:
            agent = self._known(session, agent_id)
            rows = self._rows(session, agent_id, now)
            try:
                row = self._make(session, agent, rows, 0, now, interval, grace)
            except RequestRefused as refused:
                raise RegistryError(refused.text) from None
            rows[row.version] = row
            self._confirm(session, agent, rows, row, now)
            return self._deliver(agent, row, now)

    def demand(self, agent_id: str | None, now: int) -> int:
        """Has one agent, or all, rotate at their next contact; returns how many."""
        with self._database.transaction() as session:
            query = select(Agent) if agent_id is None else select(Agent).where(Agent.id == agent_id)
            # In an order, so that two who do this wait for each other in one direction only.
            agents = list(session.scalars(query.order_by(Agent.id).with_for_update()))
            if agent_id is not None and not agents:
                raise RegistryError(f"no agent {agent_id!r} is enrolled; 'license-server agents list' lists them")
            for agent in agents:
                agent.urgent = True
            self._audit.record("admin", "rotation.demanded", "ok", now, session=session, agent=agent_id or "all")
            return len(agents)

    def invalidate(self, agent_id: str, version: int, now: int) -> None:
        """Gives up a version here: no license is made with it any more, and its secret is destroyed.

        Raises:
            RegistryError: there is no such agent or version.
        """
        with self._database.transaction() as session:
            agent = self._known(session, agent_id)
            row = self._rows(session, agent_id, now, version).get(version)
            if row is None:
                raise RegistryError(f"agent {agent_id!r} has no secret version {version}")
            row.state, row.sealed = step(State(row.state), Event.INVALIDATED), None
            agent.urgent = True
            self._audit.record("admin", "secret.invalidated", "ok", now, session=session, agent=agent_id, version=version)

    def periods(self) -> tuple[int, int]:
        """Seconds until a secret's successor is due, and of grace after that, for secrets that are made from now on."""
        with self._database.reading() as session:
            return self._period(session, "interval", DEFAULT_INTERVAL_S), self._period(session, "grace", DEFAULT_GRACE_S)

    def set_periods(self, interval: int | None, grace: int | None, now: int) -> None:
        """Changes what `periods` tells; None leaves a period as it is. Secrets that exist keep their dates."""
        with self._database.transaction() as session:
            for name, value in (("interval", interval), ("grace", grace)):
                if value is not None:
                    session.merge(Setting(name=name, value=str(value)))
            self._audit.record("admin", "rotation.periods", "ok", now, session=session, interval=interval, grace=grace)

    def sign_time(self, agent_id: str, challenge: str, now: int) -> str:
        """The server's time, in answer to an agent's challenge that was carried here by hand.

        Raises:
            RegistryError: no such agent, or that is no challenge.
        """
        if not CHALLENGE.fullmatch(challenge):
            raise RegistryError("a challenge has 32 characters 0-9 and a-f, as 'license-agent-cli clock challenge' prints it")
        with self._database.transaction() as session:
            self._known(session, agent_id)
            self._audit.record("admin", "time.signed", "ok", now, session=session, agent=agent_id)
        return issue_server_time(agent_id, challenge, now, self._keys.rotation_key())

    def listed(self, agent_id: str) -> list[SecretRow]:
        """The agent's versions, oldest first; never a secret."""
        with self._database.reading() as session:
            self._known(session, agent_id, lock=False)
            rows = session.scalars(select(Secret).where(Secret.agent_id == agent_id).order_by(Secret.version)).all()
        return [
            SecretRow(row.version, row.state, row.key_check, row.valid_from, row.valid_until, row.grace_until, row.confirmed_at)
            for row in rows
        ]

    def open(self, session: Session, agent_id: str, version: int | None) -> tuple[int, bytes] | None:
        """A version to make licenses with, and its secret: that one, or the newest that is confirmed; None if there is none."""
        if version is None:
            query = select(Secret).where(Secret.agent_id == agent_id, Secret.state.in_(MINTING))
            row = session.scalars(query.order_by(Secret.version.desc()).limit(1)).first()
        else:
            row = session.get(Secret, (agent_id, version))
        if row is None or row.sealed is None or State(row.state) in (State.DIVERGED, State.INVALIDATED):
            return None
        return row.version, self._cipher.open("secret", f"{agent_id}/{row.version}", "sealed", row.sealed)

    # Rows

    def _agent(self, session: Session, agent_id: str, *, lock: bool = True) -> Agent:
        agent = session.get(Agent, agent_id, with_for_update=lock)
        if agent is None:
            raise RequestRefused(RefusalCode.UNKNOWN_AGENT, "this agent is not registered")
        return agent

    def _known(self, session: Session, agent_id: str, *, lock: bool = True) -> Agent:
        agent = session.get(Agent, agent_id, with_for_update=lock)
        if agent is None:
            raise RegistryError(f"no agent {agent_id!r} is enrolled; 'license-server agents list' lists them")
        return agent

    def _rows(self, session: Session, agent_id: str, now: int, *also: int, lock: bool = True) -> dict[int, Secret]:
        """The versions that still matter: those whose grace has not ended, those in use, and those named."""
        matters = or_(Secret.grace_until > now, Secret.state.in_((State.PENDING, State.ACTIVE)), Secret.version.in_(also))
        query = select(Secret).where(Secret.agent_id == agent_id, matters).order_by(Secret.version)
        return {row.version: row for row in session.scalars(query.with_for_update() if lock else query)}

    def _newest(self, session: Session, agent_id: str) -> int:
        return session.scalar(select(func.max(Secret.version)).where(Secret.agent_id == agent_id)) or 0

    def _take_note(
        self, session: Session, agent: Agent, rows: dict[int, Secret], current: int, check: str | None, now: int
    ) -> bool:
        """Takes in which version the agent holds; False if it holds another secret under that number."""
        row = rows.get(current)
        if row is None:
            return True
        state = State(row.state)
        if state is State.INVALIDATED:
            # Nothing that the agent says of it brings it back, or makes it worse.
            return False
        if row.key_check != check:
            if state is not State.DIVERGED:
                row.state = step(state, Event.DIVERGED)
                self._audit.record(
                    f"agent {agent.id}", "secret.diverged", "alert", now, session=session, version=current, was=state.value
                )
            return False
        if state in (State.PENDING, State.ENDED):
            self._confirm(session, agent, rows, row, now)
        return state is not State.DIVERGED

    def _confirm(self, session: Session, agent: Agent, rows: dict[int, Secret], row: Secret, now: int) -> None:
        for other in rows.values():
            if State(other.state) is State.ACTIVE and other.version != row.version:
                other.state = step(State.ACTIVE, Event.SUPERSEDED)
        row.state = step(State(row.state), Event.CONFIRMED)
        row.confirmed_at = now
        agent.urgent = False
        self._audit.record(f"agent {agent.id}", "secret.confirmed", "ok", now, session=session, version=row.version)

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
    ) -> Secret:
        live = sorted(row.grace_until for row in rows.values() if row.grace_until > now and row.state != State.INVALIDATED)
        if len(live) >= MAX_LIVE:
            raise RequestRefused(
                RefusalCode.TOO_MANY_VERSIONS,
                f"{len(live)} secret versions are live: another one would end one under which licenses pass",
                max(live[0] - now, 1),
            )
        interval = self._period(session, "interval", DEFAULT_INTERVAL_S) if interval is None else interval
        grace = self._period(session, "grace", DEFAULT_GRACE_S) if grace is None else grace
        version = max(above, self._newest(session, agent.id)) + 1
        secret = self._random(SECRET_BYTES)
        row = Secret(
            agent_id=agent.id,
            version=version,
            state=State.PENDING.value,
            sealed=self._cipher.seal("secret", f"{agent.id}/{version}", "sealed", secret),
            key_check=key_check(secret, agent.id, version),
            valid_from=now,
            valid_until=now + interval,
            grace_until=now + interval + grace,
            made_at=now,
        )
        session.add(row)
        # What nobody can use any more is not kept.
        ended = (Secret.agent_id == agent.id, Secret.grace_until <= now, Secret.state != State.ACTIVE)
        session.execute(update(Secret).where(*ended).values(sealed=None))
        self._audit.record(f"agent {agent.id}", "secret.made", "ok", now, session=session, version=version)
        return row

    def _period(self, session: Session, name: str, default: int) -> int:
        row = session.get(Setting, name)
        return default if row is None else int(row.value)

    def _deliver(self, agent: Agent, row: Secret, now: int) -> str:
        secret = self._cipher.open("secret", f"{agent.id}/{row.version}", "sealed", row.sealed or b"")
        dates = {
            "valid_from": row.valid_from,
            "valid_until": row.valid_until,
            "grace_until": row.grace_until,
            "issued_at": now,
        }
        return issue_delivery(agent.id, row.version, dates, secret, json.loads(agent.agreement_key), self._keys.rotation_key())


def _active(rows: dict[int, Secret]) -> Secret | None:
    found = [row for row in rows.values() if State(row.state) in MINTING]
    return max(found, key=lambda row: row.version, default=None)
