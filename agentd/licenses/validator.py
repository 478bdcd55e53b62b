"""The heart of the daemon: judges tokens and holds the secrets' states. In memory only: no disk, no TPM, no network.

What it decides to change is handed out as `Contents` for the store; it takes them over once they are committed.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace

import msgspec
from cryptography.exceptions import InvalidTag

from agentd.secrets.lifecycle import MAX_VERSIONS, Event, Limits, State, state_at, step, valid_until
from contracts.claims import Claims
from contracts.jose import BadSignature, MalformedToken
from contracts.licensetoken import SealedToken, WrongAudience, open_token, parse_token
from contracts.trust import Trust
from hwsec.store import Contents, StoredVersion
from hwsec.storeformat import VersionMeta
from hwsec.vault import Vault, WrappedSecret
from ipc.clientwire import Reason

from .inventory import LicenseBook
from .revocations import NONE, Revocations
from .verdict import FOREVER, Ruling, Verdict, judge, refusal, secret_reason

CACHED_TOKENS = 4096


class EngineRefused(Exception):
    """A rule forbids the change; the text says which."""


class NoSuchVersion(EngineRefused):
    """There is no such secret version."""


@dataclass(slots=True)
class Known:
    """A token that has been opened, and the ruling on it.

    Attributes:
        claims: what it says.
        version: the secret version that opened it.
        ruling: the verdict and for how long it holds.
        epoch: when the ruling was made; one of an older epoch is made anew.
        serial: a number that no other ruling has; repeats are counted under it.
        reply: room for whoever answers, to keep the encoded verdict.
    """

    claims: Claims
    version: int
    ruling: Ruling
    epoch: int
    serial: int
    reply: tuple[object, bytes] | None = None


class Engine:
    """Judges tokens for one agent.

    Args:
        agent_id: of this machine.
        trust: whose signatures count.
        vault: opens secrets.
        book: the licenses of this machine.
        limits: what the configuration shortens.

    Attributes:
        overdue_from: when a successor of the newest secret is overdue.
        degraded: the agent works without its server, and a successor is overdue; verdicts are told so.
    """

    def __init__(self, agent_id: str, trust: Trust, vault: Vault, book: LicenseBook, limits: Limits) -> None:
        self.agent_id = agent_id
        self._trust = trust
        self.book = book
        self._vault = vault
        self._limits = limits
        self._versions: dict[int, StoredVersion] = {}
        self._newest = 0
        self._revocations = NONE
        self._refuse_stale = False
        self._cache: OrderedDict[str, Known] = OrderedDict()
        # Any change of secrets, limits or newest tokens starts an epoch; rulings of an older one are made anew.
        self._epoch = 0
        self._serial = 0
        self.overdue_from = FOREVER
        self.degraded = False

    # State

    @property
    def trust(self) -> Trust:
        """Whose signatures count."""
        return self._trust

    @trust.setter
    def trust(self, trust: Trust) -> None:
        self._trust = trust
        # What a key opened that does not count any more is not to be remembered.
        self._cache.clear()

    @property
    def revocations(self) -> Revocations:
        """Which licenses are revoked."""
        return self._revocations

    @revocations.setter
    def revocations(self, revocations: Revocations) -> None:
        self._revocations = revocations
        self._new_epoch()

    def refuse_stale_revocations(self, refuse: bool) -> None:
        """Whether licenses are refused while the revocation list is stale."""
        self._refuse_stale = refuse
        self._new_epoch()

    @property
    def limits(self) -> Limits:
        """What the configuration shortens."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        self._new_epoch()

    def _new_epoch(self) -> None:
        self._epoch += 1
        newest = self.newest
        overdue = newest is not None and State(newest.meta.state) is State.ACTIVE
        self.overdue_from = valid_until(newest.meta, self._limits) if newest is not None and overdue else FOREVER

    @property
    def versions(self) -> tuple[StoredVersion, ...]:
        """All versions, oldest first."""
        return tuple(self._versions[number] for number in sorted(self._versions))

    @property
    def newest(self) -> StoredVersion | None:
        """The newest version."""
        return self._versions.get(self._newest)

    def state_of(self, stored: StoredVersion, now: int) -> State:
        """A version's state at a time."""
        return state_at(stored.meta, now, self._limits)

    def take_over(self, contents: Contents) -> None:
        """Works with what has been committed from now on."""
        self._versions = {stored.meta.version: stored for stored in contents.versions}
        self._newest = max(self._versions, default=0)
        self._new_epoch()
        # Claims under a version that has been given up are not kept.
        for token in [token for token, entry in self._cache.items() if not self._usable(entry.version)]:
            del self._cache[token]

    def _usable(self, version: int) -> bool:
        stored = self._versions.get(version)
        return stored is not None and stored.secret is not None

    def overdue(self, now: int) -> bool:
        """Whether a successor of the newest secret is overdue."""
        return now >= self.overdue_from

    def ended(self, now: int) -> bool:
        """Whether grace of the newest secret has ended, and no administrator ended it."""
        newest = self.newest
        if newest is None or State(newest.meta.state) is not State.ACTIVE:
            return False
        return self.state_of(newest, now) is State.INVALIDATED

    # Verdicts

    def validate(self, token: str, now: int) -> Verdict:
        """The verdict on a token at a time."""
        entry = self.known(token, now)
        if entry is not None:
            return entry.ruling.verdict
        return self._validate_slowly(token, now, self._cache.get(token))

    def known(self, token: str, now: int) -> Known | None:
        """What is known of a token whose ruling still holds; None if it must be judged."""
        entry = self._cache.get(token)
        if entry is None or entry.epoch != self._epoch:
            return None
        ruling = entry.ruling
        if not ruling.since <= now < ruling.until:
            return None
        self._cache.move_to_end(token)
        return entry

    def is_known(self, token: str) -> bool:
        """Whether the token has been opened before and is still remembered."""
        return token in self._cache

    def _validate_slowly(self, token: str, now: int, entry: Known | None) -> Verdict:
        if entry is not None:
            ruling = self._rule(entry.claims, entry.version, now)
            self._remember(token, entry.claims, entry.version, ruling)
            if ruling.verdict.valid:
                self.book.saw(token, entry.claims.jti, now)
            return ruling.verdict
        try:
            sealed = parse_token(token)
        except MalformedToken:
            return refusal(Reason.MALFORMED)
        if sealed.agent_id != self.agent_id:
            return refusal(Reason.WRONG_AUDIENCE, sealed.version)
        opened = self._open(token, sealed, now)
        if isinstance(opened, Verdict):
            return opened
        ruling = self._rule(opened, sealed.version, now)
        self._remember(token, opened, sealed.version, ruling)
        if ruling.verdict.valid:
            self.book.saw(token, opened.jti, now)
        return ruling.verdict

    def _remember(self, token: str, claims: Claims, version: int, ruling: Ruling) -> None:
        self._serial += 1
        self._cache[token] = Known(claims, version, ruling, self._epoch, self._serial)
        self._cache.move_to_end(token)
        if len(self._cache) > CACHED_TOKENS:
            self._cache.popitem(last=False)

    def _open(self, token: str, sealed: SealedToken, now: int) -> Claims | Verdict:
        stored = self._versions.get(sealed.version)
        if stored is None:
            return refusal(Reason.UNKNOWN_SECRET, sealed.version, refreshed=self._has_successor(token))
        state = self.state_of(stored, now)
        reason = secret_reason(stored.meta, sealed.version == self._newest, state)
        if reason is not Reason.OK or stored.secret is None:
            reason = Reason.SECRET_INVALIDATED if reason is Reason.OK else reason
            return refusal(reason, sealed.version, State.INVALIDATED, refreshed=self._has_successor(token))
        try:
            return self._open_with(sealed, stored.secret)
        except WrongAudience:
            return refusal(Reason.WRONG_AUDIENCE, sealed.version, state)
        except BadSignature:
            return refusal(Reason.BAD_SIGNATURE, sealed.version, state)
        except MalformedToken:
            return refusal(Reason.MALFORMED, sealed.version, state)

    def _open_with(self, sealed: SealedToken, secret: WrappedSecret) -> Claims:
        try:
            with self._vault.open(secret) as key:
                return open_token(sealed, key.view, self._trust)
        except InvalidTag:
            raise RuntimeError("the process key does not open a secret that it wrapped") from None

    def _has_successor(self, token: str) -> bool:
        jti = self.book.license_of(token)
        newest = None if jti is None else self.book.newest(jti)
        return newest is not None and newest != token

    def _rule(self, claims: Claims, version: int, now: int) -> Ruling:
        newer = self.book.newer(claims.jti, claims.iat, version)
        meta = self._versions[version].meta
        lists = self._revocations
        fresh_until = lists.next_update if self._refuse_stale and lists.next_update is not None else FOREVER
        ruling = judge(claims, meta, version == self._newest, now, self._limits, lists.revoked, newer, fresh_until)
        # Once a day the book is told that the license is in use.
        tomorrow = (now // 86_400 + 1) * 86_400
        return ruling if ruling.until <= tomorrow else Ruling(ruling.verdict, ruling.since, tomorrow)

    def refreshed_token(self, token: str, now: int) -> str | None:
        """The newest token of the same license, if it is another one; None also where the license is not known."""
        verdict = self.validate(token, now)
        jti = verdict.jti or self.book.license_of(token)
        newest = None if jti is None else self.book.newest(jti)
        return None if newest == token else newest

    def judge_import(self, token: str, now: int) -> Verdict:
        """The verdict on a re-issued token that is to be kept for the POS applications; nothing is kept yet.

        Raises:
            EngineRefused: it is not valid here (one that begins later is taken).
        """
        verdict = self.validate(token, now)
        if verdict.reason not in (Reason.OK, Reason.NOT_YET_VALID):
            raise EngineRefused(f"the token is not taken over: {verdict.reason.value}")
        return verdict

    def import_token(self, token: str, now: int) -> None:
        """Keeps a re-issued token for the POS applications. Raises as `judge_import`."""
        self.judge_import(token, now)
        entry = self._cache[token]
        if self.book.keep(entry.claims.jti, entry.claims.iat, token, entry.version):
            self._new_epoch()

    # Changes

    def contents(self, sections: dict[str, bytes]) -> Contents:
        """The versions as they are, with other sections."""
        return Contents(self.versions, sections)

    def with_new_secret(self, stored: StoredVersion, sections: dict[str, bytes]) -> Contents:
        """The contents after a new version has come; the one before it goes to GRACE.

        Raises:
            EngineRefused: its number is not above all others, or its dates are not later.
        """
        newest = self.newest
        if newest is not None:
            if stored.meta.version <= newest.meta.version:
                raise EngineRefused(
                    f"secret version {stored.meta.version} is not newer than {newest.meta.version}: replayed or out of order"
                )
            if stored.meta.valid_from < newest.meta.valid_from:
                raise EngineRefused("the new secret's valid_from is before that of the present one")
        versions = [self._superseded(old) for old in self.versions]
        return Contents((*self._trimmed(versions), stored), sections)

    def _superseded(self, stored: StoredVersion) -> StoredVersion:
        state = State(stored.meta.state)
        if state is State.INVALIDATED:
            return stored
        return replace(stored, meta=_with_state(stored, step(state, Event.SUPERSEDED)))

    def _trimmed(self, versions: list[StoredVersion]) -> list[StoredVersion]:
        """At most MAX_VERSIONS with the new one: the oldest that have been given up go first, then the oldest."""
        while len(versions) >= MAX_VERSIONS:
            dead = [stored for stored in versions if stored.meta.state == State.INVALIDATED]
            versions.remove(dead[0] if dead else versions[0])
        return versions

    def with_invalidated(self, version: int, now: int, sections: dict[str, bytes]) -> Contents:
        """The contents after a version has been given up, its secret destroyed.

        Raises:
            NoSuchVersion: there is none with this number.
            EngineRefused: it has been given up before.
        """
        stored = self._versions.get(version)
        if stored is None:
            raise NoSuchVersion(f"there is no secret version {version}")
        if State(stored.meta.state) is State.INVALIDATED:
            raise EngineRefused(f"secret version {version} has been invalidated before")
        # Time may have ended it already; the stored state is what the table moves on.
        meta = _with_state(stored, step(State(stored.meta.state), Event.INVALIDATED), now)
        dead = StoredVersion(meta, None)
        return Contents(tuple(dead if old.meta.version == version else old for old in self.versions), sections)


def _with_state(stored: StoredVersion, state: State, invalidated_at: int | None = None) -> VersionMeta:
    return msgspec.structs.replace(stored.meta, state=state.value, invalidated_at=invalidated_at)
