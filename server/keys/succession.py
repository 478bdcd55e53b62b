"""Puts prepared keys in use when their day has come, and takes a change of keys back. Needs no root key.

A key is tried before it counts: opened from the registry, used once, and verified with what the newest key set says, as agents
do. A trial that fails changes nothing. After a change the server's keys are used once as it uses them; if that fails, the
change is taken back.
"""

import logging
from dataclasses import dataclass

from sqlalchemy.orm import Session

from server.base.errors import RegistryError
from server.registry import audit
from server.registry.cipher import Cipher
from server.registry.database import Database, next_number
from server.registry.models.core import ServerKey

from . import key_rows, trial
from .key_states import KEY_STATES, KeyEvent, KeyState
from .keyring import COUNTER, Keyring
from .lifecycle import LIFETIMES, OVERLAP_S, SIGNING, KeyLifecycle, held
from .schedule import Action, Due, due

WARN_EVERY_S = 7 * 86_400
"""How often the audit repeats that a key ends and has no successor."""
_log = logging.getLogger("license_server")


@dataclass(frozen=True, slots=True)
class Changed:
    """A change of keys: the kind, the key that is now in use, and the one that it replaced."""

    kind: str
    kid: str
    before: str


class Succession:
    """Changes which key of a kind is in use.

    Args:
        database: the registry's.
        cipher: opens private halves.
        keyring: uses the keys.
        lifecycle: makes TLS keys.
    """

    def __init__(self, database: Database, cipher: Cipher, keyring: Keyring, lifecycle: KeyLifecycle) -> None:
        self._database = database
        self._cipher = cipher
        self._keyring = keyring
        self._lifecycle = lifecycle
        self._warned: dict[str, int] = {}

    def use_next(self, kind: str, now: int, actor: str = audit.ADMIN) -> Changed:
        """Puts the prepared key of a kind in use.

        Args:
            kind: of the key.
            now: seconds since 1970 UTC.
            actor: who does it, as in the audit.

        Raises:
            RegistryError: no key is prepared, or it does not work; or the server's clock may be wrong.
        """
        return self._change(kind, KeyState.NEXT, now, actor)

    def use_next_within(self, session: Session, kind: str, now: int) -> Changed:
        """As `use_next`, by an operator, in the transaction of `session`. The caller has the keyring checked behind it."""
        return self._changed(session, kind, KeyState.NEXT, now, audit.ADMIN)

    def revert(self, kind: str, now: int, actor: str = audit.ADMIN) -> Changed:
        """Puts the key that was in use before back in use. The present one is still accepted.

        Args:
            kind: of the key.
            now: seconds since 1970 UTC.
            actor: who does it, as in the audit.

        Raises:
            RegistryError: there is no earlier key, it has ended, or it does not work; or the server's clock may be wrong.
        """
        return self._change(kind, KeyState.RETIRED, now, actor)

    def revert_within(self, session: Session, kind: str, now: int) -> Changed:
        """As `revert`, by an operator, in the transaction of `session`. The caller has the keyring checked behind it."""
        return self._changed(session, kind, KeyState.RETIRED, now, audit.ADMIN)

    def due(self, now: int, *, makes_tls: bool) -> list[Due]:
        """As `schedule.due`, for the keys of the registry."""
        return due(held(self._lifecycle.listed()), now, makes_tls=makes_tls)

    def run(self, now: int, *, makes_tls: bool) -> list[Changed]:
        """Does what is due, and asks for what only an administrator can do. Returns the changes.

        Args:
            now: seconds since 1970 UTC.
            makes_tls: as in `schedule.due`.

        Raises:
            RegistryError: something due could not be done; the rest is done.
        """
        done: list[Changed] = []
        failed: list[str] = []
        for each in self.due(now, makes_tls=makes_tls):
            if each.action is Action.PREPARE:
                self._ask(each, now)
                continue
            try:
                done.append(self._do(each, now))
            except RegistryError as problem:
                failed.append(f"{each.kind}: {problem}")
        if failed:
            raise RegistryError("; ".join(failed))
        return done

    def _do(self, what: Due, now: int) -> Changed:
        if what.action is Action.MAKE:
            return Changed(what.kind, self._lifecycle.rotate(what.kind, now, None, actor="server"), what.kid)
        return self.use_next(what.kind, now, "server")

    def _ask(self, what: Due, now: int) -> None:
        days = max(what.ends_at - now, 0) // 86_400
        does = "rotate tls" if what.kind == "tls" else f"prepare --kind {what.kind} --root-key FILE"
        fields = {"kind": what.kind, "days_left": days, "do": f"license-server keys {does}"}
        _log.warning("a key of the server ends soon and has no successor", extra={"fields": fields})
        # In the audit once a week; a server that has just started says it once more.
        if now - self._warned.get(what.kid, 0) < WARN_EVERY_S:
            return
        with self._database.write() as session:
            audit.record(session, "server", "keys.end_soon", "alert", now, kind=what.kind, kid=what.kid, days_left=days)
        self._warned[what.kid] = now

    def _change(self, kind: str, source: KeyState, now: int, actor: str) -> Changed:
        with self._database.write() as session:
            changed = self._changed(session, kind, source, now, actor)
        try:
            self._keyring.check()
        except RegistryError:
            self._take_back(changed, now)
            raise
        return changed

    def _changed(self, session: Session, kind: str, source: KeyState, now: int, actor: str) -> Changed:
        self._keyring.check_clock()
        # Every change of keys changes this counter, so they follow one another.
        next_number(session, COUNTER)
        present, other = key_rows.newest(session, kind), self._candidate(session, kind, source, now)
        trial.check(session, self._cipher, other)
        self._swap(present, other, source, now)
        event = "keys.rotated" if source is KeyState.NEXT else "keys.reverted"
        audit.record(session, actor, event, "ok", now, kind=kind, kid=other.kid, before=present.kid)
        return Changed(kind, other.kid, present.kid)

    def _candidate(self, session: Session, kind: str, source: KeyState, now: int) -> ServerKey:
        rows = [row for row in key_rows.live(session, kind) if row.state == source and row.sealed is not None]
        if source is KeyState.NEXT:
            if not rows:
                raise RegistryError(
                    f"no {kind} key is prepared; run 'license-server keys prepare --kind {kind} --root-key FILE'"
                )
            return rows[-1]
        usable = [row for row in rows if row.expires_at > now and trial.lasts(row, now)]
        if not usable:
            raise RegistryError(f"there is no earlier {kind} key that could be used again; see 'license-server keys list'")
        return usable[0]

    def _swap(self, present: ServerKey, other: ServerKey, source: KeyState, now: int) -> None:
        present.state = KEY_STATES.step(KeyState(present.state), KeyEvent.REPLACE).value
        present.expires_at = max(present.expires_at, now + OVERLAP_S)
        other.state = KEY_STATES.step(KeyState(other.state), KeyEvent.USE).value
        if source is KeyState.NEXT and other.kind in SIGNING:
            other.expires_at = now + LIFETIMES[other.kind]

    def _take_back(self, changed: Changed, now: int) -> None:
        """Undoes a change behind its commit: the server cannot use the new key."""
        with self._database.write() as session:
            next_number(session, COUNTER)
            new, old = session.get(ServerKey, changed.kid), session.get(ServerKey, changed.before)
            if new is not None and old is not None and new.state == KeyState.ACTIVE and old.state == KeyState.RETIRED:
                new.state, old.state = KeyState.RETIRED.value, KeyState.ACTIVE.value
                audit.record(session, "server", "keys.reverted", "alert", now, kind=changed.kind, kid=old.kid, before=new.kid)
        self._keyring.reload()
