"""Holds in memory what verdicts go by: the secret versions, and whose signatures count. Works out standing and changes; no IO.

A change is worked out as `Contents` for the sealed store; the ring goes by it once the store has committed it (`replace`).
"""

from dataclasses import dataclass, replace
from typing import Final

import msgspec

from agentd.base.errors import NoSuchVersion, Refused
from contracts.trust import Trust
from hwsec.store import Contents, StoredVersion
from hwsec.storeformat import VersionMeta
from ipc.answers import Reason

from .lifecycle import MAX_VERSIONS, Event, Limits, State, grace_until, next_change, state_at, step, valid_until

FOREVER: Final = 2**62
"""Later than any time that a license or secret can carry."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a secret version stands at a time. Times are seconds since 1970 UTC.

    Attributes:
        state: ACTIVE, GRACE or INVALIDATED.
        reason: `ok` if licenses under this version may pass, else why none may.
        newest: no later version exists.
        grace_until: when licenses under this version end, by the server's date or an earlier local one.
        next_change: when time will next change the state; FOREVER if it will not.
    """

    state: State
    reason: Reason
    newest: bool
    grace_until: int
    next_change: int


def standing_of(meta: VersionMeta, now: int, limits: Limits, *, newest: bool) -> Standing:
    """The standing of a version at a time.

    A version past its `grace_until` carries no license. If it is the newest and still stored as ACTIVE, the server was out of
    reach for too long; otherwise it was superseded or an administrator ended it.
    """
    state = state_at(meta, now, limits)
    reason = Reason.OK
    if state is State.INVALIDATED:
        reason = Reason.DEGRADED_EXPIRED if newest and State(meta.state) is State.ACTIVE else Reason.SECRET_INVALIDATED
    change = next_change(meta, now, limits)
    return Standing(state, reason, newest, grace_until(meta, limits), FOREVER if change is None else change)


class SecretRing:
    """The secret versions of one agent, and the keys of its license server.

    Args:
        limits: periods by which the configuration shortens the server's dates.
        trust: whose signatures count.

    Attributes:
        epoch: grows with every change; what was worked out in an earlier epoch no longer counts.
        commits: grows with every change of the versions themselves.
        overdue_from: when a successor of the newest version becomes overdue, seconds since 1970 UTC.
    """

    def __init__(self, limits: Limits, trust: Trust) -> None:
        self._limits = limits
        self._trust = trust
        self._versions: dict[int, StoredVersion] = {}
        self._newest = 0
        # Worked out in this epoch: for which version, from when on it holds, and the standing.
        self._standings: dict[int, tuple[StoredVersion, int, Standing]] = {}
        self.epoch = 0
        self.commits = 0
        self.overdue_from = FOREVER

    @property
    def limits(self) -> Limits:
        """Periods by which the configuration shortens the server's dates."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        self.touch()

    @property
    def trust(self) -> Trust:
        """Whose signatures count."""
        return self._trust

    @trust.setter
    def trust(self, trust: Trust) -> None:
        self._trust = trust
        self.touch()

    def touch(self) -> None:
        """Starts an epoch; called for every change that may alter a verdict."""
        self.epoch += 1
        self._standings.clear()
        newest = self.newest
        active = newest is not None and State(newest.meta.state) is State.ACTIVE
        self.overdue_from = valid_until(newest.meta, self._limits) if newest is not None and active else FOREVER

    def replace(self, contents: Contents) -> None:
        """Goes by what the store has committed."""
        self._versions = {stored.meta.version: stored for stored in contents.versions}
        self._newest = max(self._versions, default=0)
        self.commits += 1
        self.touch()

    @property
    def versions(self) -> tuple[StoredVersion, ...]:
        """All versions, oldest first."""
        return tuple(self._versions[number] for number in sorted(self._versions))

    @property
    def newest(self) -> StoredVersion | None:
        """The newest version."""
        return self._versions.get(self._newest)

    @property
    def newest_number(self) -> int:
        """Number of the newest version; 0 before the first."""
        return self._newest

    def find(self, version: int) -> StoredVersion | None:
        """The version with this number."""
        return self._versions.get(version)

    def usable(self, version: int) -> bool:
        """Whether the version exists and its secret was not destroyed."""
        stored = self._versions.get(version)
        return stored is not None and stored.secret is not None

    def standing(self, stored: StoredVersion, now: int) -> Standing:
        """The standing of one of the versions at a time."""
        version = stored.meta.version
        kept = self._standings.get(version)
        if kept is not None and kept[0] is stored and kept[1] <= now < kept[2].next_change:
            return kept[2]
        standing = standing_of(stored.meta, now, self._limits, newest=version == self._newest)
        self._standings[version] = stored, now, standing
        return standing

    def passes(self, stored: StoredVersion, now: int) -> bool:
        """Whether licenses under one of the versions may pass at a time."""
        return stored.secret is not None and self.standing(stored, now).reason is Reason.OK

    def state_of(self, stored: StoredVersion, now: int) -> State:
        """The state of one of the versions at a time."""
        return state_at(stored.meta, now, self._limits)

    def overdue(self, now: int) -> bool:
        """Whether a successor of the newest version is overdue."""
        return now >= self.overdue_from

    def ended(self, now: int) -> bool:
        """Whether grace of the newest version has ended without an administrator's doing."""
        newest = self.newest
        return newest is not None and self.standing(newest, now).reason is Reason.DEGRADED_EXPIRED

    # Changes

    def contents(self, sections: dict[str, bytes]) -> Contents:
        """The versions as they are, with these sections."""
        return Contents(self.versions, sections)

    def with_new_secret(self, stored: StoredVersion, sections: dict[str, bytes], signed: int | None = None) -> Contents:
        """The contents once a new version has come; all live versions before it go to GRACE.

        Args:
            stored: the new version.
            sections: of the record.
            signed: when the server signed what brought it. A present version that begins later than that was dated by a wrong
                clock, and must not keep its successors out until then.

        Raises:
            Refused: its number is not above all others, or its dates are not later.
        """
        newest = self.newest
        if newest is not None:
            if stored.meta.version <= newest.meta.version:
                raise Refused(
                    f"secret version {stored.meta.version} is not newer than {newest.meta.version}: replayed or out of order"
                )
            misdated = signed is not None and newest.meta.valid_from > signed
            if stored.meta.valid_from < newest.meta.valid_from and not misdated:
                raise Refused("the new secret's valid_from is before that of the present one")
        return Contents((*_trimmed([_superseded(old) for old in self.versions]), stored), sections)

    def with_invalidated(self, version: int, now: int, sections: dict[str, bytes]) -> Contents:
        """The contents once a version is invalidated and its secret destroyed.

        Raises:
            NoSuchVersion: no version has this number.
            Refused: it was invalidated before.
        """
        stored = self._versions.get(version)
        if stored is None:
            raise NoSuchVersion(f"there is no secret version {version}")
        if State(stored.meta.state) is State.INVALIDATED:
            raise Refused(f"secret version {version} has been invalidated before")
        # Time may have ended it already; the table moves on from the stored state.
        meta = _with_state(stored, step(State(stored.meta.state), Event.INVALIDATED), now)
        dead = StoredVersion(meta, None)
        return Contents(tuple(dead if old.meta.version == version else old for old in self.versions), sections)


def _superseded(stored: StoredVersion) -> StoredVersion:
    state = State(stored.meta.state)
    if state is State.INVALIDATED:
        return stored
    return replace(stored, meta=_with_state(stored, step(state, Event.SUPERSEDED)))


def _trimmed(versions: list[StoredVersion]) -> list[StoredVersion]:
    """At most MAX_VERSIONS with the new one: the oldest invalidated ones go first, then the oldest."""
    while len(versions) >= MAX_VERSIONS:
        dead = [stored for stored in versions if stored.meta.state == State.INVALIDATED]
        versions.remove(dead[0] if dead else versions[0])
    return versions


def _with_state(stored: StoredVersion, state: State, invalidated_at: int | None = None) -> VersionMeta:
    return msgspec.structs.replace(stored.meta, state=state.value, invalidated_at=invalidated_at)
