"""Works out the fake's verdicts from licenses, secrets and a time, in the order in which the agent checks. Performs no IO.

A token's text is `fake-token.AGENT.VERSION.SERIAL.licenses-nothing`. The texts that were handed out are remembered; any other
text of that form has been changed, and gets `bad_signature`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..answers import NEAREST_FIRST, FeatureVerdict, HeldLicense, LicenseReason, Reason, UsageCount, Verdict
from ..bounds import COUNTS_KNOWN
from ..clientwire import METER_FEATURE

PREFIX, SUFFIX = "fake-token", "licenses-nothing"
AGENT_ID = "fake:pos-001"
"""No agent can have it: an id has no colon (`docs/protocol.md`, "License tokens")."""
OTHER_AGENT_ID = "fake:pos-002"
INTERVAL_S, GRACE_S = 86_400, 604_800
LISTS_LAST_S = 604_800


@dataclass(frozen=True, slots=True)
class License:
    """What was licensed. Times are seconds since 1970 UTC."""

    license_id: str
    features: tuple[str, ...]
    metadata: dict[str, str]
    begins: int
    expires: int


@dataclass(frozen=True, slots=True)
class Token:
    """A token that was handed out."""

    license_id: str
    version: int
    serial: int


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret version: `state` is ACTIVE, GRACE or INVALIDATED, as server or administrator said; time does the rest."""

    state: str
    valid_until: int
    grace_until: int


@dataclass(slots=True)
class Model:
    """Everything that the fake knows.

    Attributes:
        now: seconds since 1970 UTC.
        server_answers: whether rotations happen and revocation lists come.
        held_degraded: an administrator has switched degraded mode on.
        refuse_stale: licenses are refused while the revocation list is out of date.
        clock_suspect: verdicts say so.
    """

    now: int
    server_answers: bool = True
    held_degraded: bool = False
    refuse_stale: bool = False
    clock_suspect: bool = False
    secrets: dict[int, Secret] = field(default_factory=dict)
    lists_until: int = 0
    _next_version: int = 1
    _serial: int = 0
    _licenses: dict[str, License] = field(default_factory=dict)
    _tokens: dict[str, Token] = field(default_factory=dict)
    _revoked: set[str] = field(default_factory=set)
    _suspended: set[str] = field(default_factory=set)
    _seen: dict[str, str] = field(default_factory=dict)  # token to license: those that were valid, or asked about
    usage: dict[tuple[str, str], int] = field(default_factory=dict)  # by license and meter
    _counts: dict[bytes, tuple[str, int, str]] = field(default_factory=dict)
    _newest: dict[str, str] = field(default_factory=dict)  # license to re-issued token

    def __post_init__(self) -> None:
        self.lists_until = self.now + LISTS_LAST_S
        self.rotate()

    # Secrets

    @property
    def newest_version(self) -> int:
        """Number of the newest secret version that the agent has."""
        return max(self.secrets)

    def rotate(self, interval: int = INTERVAL_S, grace: int = GRACE_S, *, reissue: bool = True) -> int:
        """A new secret version takes the place of the newest; returns its number."""
        version, self._next_version = self._next_version, self._next_version + 1
        for number, secret in self.secrets.items():
            if secret.state == "ACTIVE":
                self.secrets[number] = replace(secret, state="GRACE")
        self.secrets[version] = Secret("ACTIVE", self.now + interval, self.now + interval + grace)
        if reissue:
            for license_id in sorted(set(self._seen.values())):
                if self.now < self._licenses[license_id].expires and license_id not in self._revoked | self._suspended:
                    self._newest[license_id] = self._token(license_id, version)
        return version

    def skip_version(self) -> int:
        """A secret version that the server has made and the agent never gets."""
        version, self._next_version = self._next_version, self._next_version + 1
        return version

    def invalidate(self, version: int) -> None:
        """Ends a version for good.

        Raises:
            KeyError: the agent has no such version.
        """
        self.secrets[version] = replace(self.secrets[version], state="INVALIDATED")

    def advance(self, seconds: int) -> None:
        """Lets time pass. Where the server answers, the agent rotates when that is due, and gets new revocation lists."""
        if seconds < 0:
            raise ValueError("time does not go back")
        self.now += seconds
        if self.server_answers:
            self.catch_up()

    def catch_up(self) -> None:
        """What an agent does that reaches its server."""
        newest = self.secrets[self.newest_version]
        if newest.state != "ACTIVE" or self.now >= newest.valid_until:
            self.rotate()
        if self.lists_until - self.now < LISTS_LAST_S // 2:
            self.lists_until = self.now + LISTS_LAST_S

    def _standing(self, version: int) -> tuple[str, Reason]:
        """State of a version now, and the reason why no license under it passes, or OK."""
        secret = self.secrets[version]
        state = secret.state
        if state == "ACTIVE" and self.now >= secret.valid_until:
            state = "GRACE"
        if state == "GRACE" and self.now >= secret.grace_until:
            state = "INVALIDATED"
        if state != "INVALIDATED":
            return state, Reason.OK
        newest = version == self.newest_version and secret.state == "ACTIVE"
        return state, Reason.DEGRADED_EXPIRED if newest else Reason.SECRET_INVALIDATED

    @property
    def degraded(self) -> bool:
        """Whether verdicts say that the agent works without its server."""
        newest = self.secrets[self.newest_version]
        overdue = newest.state == "ACTIVE" and self.now >= newest.valid_until
        return self.held_degraded or (overdue and not self.server_answers)

    # Licenses

    def issue(self, license: License, agent_id: str = AGENT_ID, version: int | None = None) -> str:
        """A token of a license, new or known.

        Raises:
            ValueError: a license ends before it begins, or another one has its id.
        """
        if license.expires <= license.begins:
            raise ValueError("a license ends after it begins")
        if self._licenses.setdefault(license.license_id, license) != license:
            raise ValueError(f"there is another license {license.license_id!r}")
        return self._token(license.license_id, version or self.newest_version, agent_id)

    def _token(self, license_id: str, version: int, agent_id: str = AGENT_ID) -> str:
        self._serial += 1
        text = f"{PREFIX}.{agent_id}.{version}.{self._serial:06d}.{SUFFIX}"
        self._tokens[text] = Token(license_id, version, self._serial)
        return text

    def license_of(self, token: str) -> License:
        """The license of a token.

        Raises:
            KeyError: the token was not made here.
        """
        return self._licenses[self._tokens[token].license_id]

    def deliver(self, license: License) -> str:
        """Issues a license that the agent holds from now on, without anyone having carried its token here."""
        token = self.issue(license)
        self._newest[license.license_id] = token
        return token

    def revoke(self, license_id: str) -> None:
        """Revokes a license for good."""
        self._revoked.add(license_id)

    def suspend(self, license_id: str, on: bool) -> None:
        """Suspends a license, or reinstates it."""
        (self._suspended.add if on else self._suspended.discard)(license_id)

    # Verdicts

    def verdict(self, token: str) -> Verdict:
        """The verdict on a token now."""
        verdict, license_id = self._judged(token)
        if verdict.valid and license_id is not None:
            self._seen[token] = license_id
        return replace(verdict, degraded=self.degraded, clock_suspect=self.clock_suspect)

    def _judged(self, token: str) -> tuple[Verdict, str | None]:
        parts = token.split(".")
        if len(parts) != 5 or parts[0] != PREFIX or parts[4] != SUFFIX or not parts[2].isdecimal() or not parts[2].isascii():
            return Verdict(False, Reason.MALFORMED), None
        if parts[1] != AGENT_ID:
            return Verdict(False, Reason.WRONG_AUDIENCE), None
        version, refreshed = int(parts[2]), self._has_successor(token)
        if version not in self.secrets:
            return Verdict(False, Reason.UNKNOWN_SECRET, refreshed=refreshed), None
        state, reason = self._standing(version)
        if reason is not Reason.OK and (token not in self._seen or self.secrets[version].state == "INVALIDATED"):
            # What was never opened cannot be opened any more; an administrator's invalidation destroys the secret.
            return Verdict(False, reason, secret_state=state, reissue_due=True, refreshed=refreshed), None
        known = self._tokens.get(token)
        if known is None:
            return Verdict(False, Reason.BAD_SIGNATURE, secret_state=state), None
        return self._judge_opened(known, state, reason), known.license_id

    def _judge_opened(self, known: Token, state: str, reason: Reason) -> Verdict:
        license = self._licenses[known.license_id]
        if reason is Reason.OK:
            if known.license_id in self._revoked | self._suspended:
                reason = Reason.REVOKED
            elif self.now < license.begins:
                reason = Reason.NOT_YET_VALID
            elif self.now >= license.expires:
                reason = Reason.EXPIRED
            elif self.refuse_stale and self.now >= self.lists_until:
                reason = Reason.REVOCATIONS_STALE
        valid = reason is Reason.OK
        superseded = known.version != self.newest_version or state == "INVALIDATED"
        newest = self._newest.get(known.license_id)
        return Verdict(
            valid=valid,
            reason=reason,
            expires_at=license.expires,
            features=license.features if valid else (),
            metadata=license.metadata if valid else {},
            secret_state=state,
            reissue_due=superseded,
            refresh_by=self.secrets[known.version].grace_until if superseded and state != "INVALIDATED" else None,
            refreshed=newest is not None and self._tokens[newest].serial > known.serial,
        )

    # The machine's licenses

    def _held(self) -> list[tuple[HeldLicense, Verdict]]:
        """Each license that the agent holds, with the verdict on its newest token; features and metadata are always there.

        One that cannot be opened has no dates. It is left out once its secret is gone and it was never valid here.
        """
        found = []
        for license_id, token in sorted(self._newest.items()):
            verdict, opened = self._judged(token)
            if verdict.valid:
                self._seen[token] = license_id
            reason = LicenseReason(verdict.reason.value)
            if verdict.reason is Reason.REVOKED and license_id in self._suspended:
                reason = LicenseReason.SUSPENDED
            if opened is not None:
                known = self._licenses[license_id]
                product = known.metadata.get("product") or None
                dates = known.begins, known.expires
                held = HeldLicense(license_id, verdict.valid, reason, *dates, product, known.features, known.metadata)
            elif reason is LicenseReason.SECRET_INVALIDATED and license_id not in self._seen.values():
                continue
            else:
                held = HeldLicense(license_id, False, reason)
            found.append((held, verdict))
        return found

    def require(self, feature: str, product: str | None) -> FeatureVerdict:
        """The verdict on a feature now."""
        found = self._held()
        able = [(held, verdict) for held, verdict in found if feature in held.features and product in (None, held.product)]
        able = able or [(held, verdict) for held, verdict in found if held.expires_at is None]
        answer = FeatureVerdict(False, LicenseReason.NO_LICENSE, degraded=self.degraded, clock_suspect=self.clock_suspect)
        if not able:
            return answer
        held, verdict = min(able, key=lambda pair: _nearness(pair[0]))
        return replace(
            answer,
            valid=held.valid,
            reason=held.reason,
            license_id=None if held.expires_at is None else held.license_id,
            product=held.product,
            expires_at=held.expires_at,
            features=held.features if held.valid else (),
            metadata=held.metadata if held.valid else {},
            secret_state=verdict.secret_state,
        )

    def licenses(self, after: str) -> list[HeldLicense]:
        """The licenses whose ids come after this one, in the order of their ids."""
        return [held for held, _ in self._held() if held.license_id > after]

    def count(self, meter: str, amount: int, count_id: bytes) -> UsageCount | None:
        """Counts usage; None if the id was used for another meter or amount."""
        before = self._counts.get(count_id)
        if before is not None:
            return UsageCount(True, True, LicenseReason.OK, before[2], count_id) if before[:2] == (meter, amount) else None
        verdict = self.require(METER_FEATURE + meter, None)
        if not verdict.valid or verdict.license_id is None:
            return UsageCount(False, False, verdict.reason, None, count_id)
        if len(self._counts) >= COUNTS_KNOWN:
            del self._counts[next(iter(self._counts))]
        self._counts[count_id] = meter, amount, verdict.license_id
        key = verdict.license_id, meter
        self.usage[key] = self.usage.get(key, 0) + amount
        return UsageCount(True, False, LicenseReason.OK, verdict.license_id, count_id)

    def _has_successor(self, token: str) -> bool:
        newest = self._newest.get(self._seen.get(token, ""))
        return newest is not None and newest != token

    def refreshed(self, token: str) -> tuple[str, str] | None:
        """License and newest token of a token that is not the newest."""
        license_id = self._judged(token)[1] or self._seen.get(token)
        newest = None if license_id is None else self._newest.get(license_id)
        if license_id is None or newest is None or newest == token or self._judged(newest)[1] != license_id:
            return None
        self._seen[token] = license_id
        return license_id, newest


def _nearness(held: HeldLicense) -> tuple[int, int, str]:
    return NEAREST_FIRST.index(LicenseReason(held.reason)), -(held.expires_at or 0), held.license_id


def new_license(
    number: int, now: int, features: tuple[str, ...], metadata: Mapping[str, str], begins_in: int, expires_in: int
) -> License:
    """A license with an id that counts up."""
    return License(f"fake-license-{number:04d}", features, dict(metadata), now + begins_in, now + expires_in)
