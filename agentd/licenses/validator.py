"""Validates tokens: one look-up, one ruling, by the checks that `verdict.CHECKS` numbers.

In memory only: no disk, TPM or network.

A token that was opened once stays in a bounded cache with its claims; what is judged again at each look is time, the standing
of its secret, revocation and newer tokens.
"""

from collections import OrderedDict
from collections.abc import Set
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag

from agentd.base.errors import Refused
from agentd.secrets.lifecycle import State
from agentd.secrets.revocations import NO_REVOCATIONS, Revocations
from agentd.secrets.ring import FOREVER, SecretRing
from agentd.secrets.withheld import NOTHING_WITHHELD, Withheld
from contracts.claims import Claims
from contracts.jose import BadSignature, MalformedToken
from contracts.licensetoken import SealedToken, WrongAudience, open_token, parse_token
from hwsec.vault import Vault, WrappedSecret
from ipc.answers import Reason

from .inventory import LicenseInventory
from .verdict import Ruling, judge, refusal

CACHED_TOKENS = 4096
AHEAD_STEP_S = 30


@dataclass(slots=True)
class Entry:
    """What the validator found out about a token.

    Attributes:
        ruling: the verdict, and for how long it holds.
        claims: what the license says; None where the token could not be opened.
        epoch: of the ring, when the ruling was made.
        serial: a number that no other ruling has; 0 where the token could not be opened.
        first: no caller has had a ruling on this token before; the caller that logs it sets this to False.
        reply: room for the caller to keep the encoded verdict.
    """

    ruling: Ruling
    claims: Claims | None = None
    epoch: int = 0
    serial: int = 0
    first: bool = True
    reply: tuple[object, bytes] | None = None


class Validator:
    """Validates tokens for one agent.

    Args:
        agent_id: the audience that licenses must name.
        ring: the secrets, and whose signatures count.
        inventory: the licenses of this machine.
        revocations: the list that was committed last.
        withheld: the licenses that the server has suspended or taken away, as they were committed last.

    Attributes:
        seats: the seats of this machine.
        degraded: the agent works without its server and a successor is overdue; verdicts say so.
    """

    def __init__(
        self,
        agent_id: str,
        ring: SecretRing,
        vault: Vault,
        inventory: LicenseInventory,
        revocations: Revocations = NO_REVOCATIONS,
        withheld: Withheld = NOTHING_WITHHELD,
    ) -> None:
        self.agent_id = agent_id
        self.ring = ring
        self.inventory = inventory
        self.seats = inventory.seats
        self._vault = vault
        self._refuse_stale = False
        self._cache: OrderedDict[str, Entry] = OrderedDict()
        self._tidied = -1
        self._trusted = ring.trust
        self._serial = 0
        self._revocations = revocations
        self._withheld = withheld
        self._refuse_named()
        self._ahead = 0
        self.degraded = False

    @property
    def ahead(self) -> int:
        """How much later it may be than the time that verdicts are asked for, in seconds; licenses may begin by then."""
        return self._ahead

    @ahead.setter
    def ahead(self, seconds: int) -> None:
        # The two clocks drift apart and every change ends an epoch, so small ones are passed over.
        if seconds != self._ahead and (not seconds or not self._ahead or abs(seconds - self._ahead) > AHEAD_STEP_S):
            self._ahead = seconds
            self.ring.touch()

    @property
    def revocations(self) -> Revocations:
        """The list that verdicts go by; it may be newer than the one that was last committed."""
        return self._revocations

    @revocations.setter
    def revocations(self, revocations: Revocations) -> None:
        self._revocations = revocations
        self._refuse_named()
        self.ring.touch()

    @property
    def withheld(self) -> Withheld:
        """The licenses that the server has suspended or taken away."""
        return self._withheld

    @withheld.setter
    def withheld(self, withheld: Withheld) -> None:
        changed, self._withheld = not withheld.same(self._withheld), withheld
        if changed:
            self._refuse_named()
            self.ring.touch()

    def _refuse_named(self) -> None:
        revoked = self._revocations.revoked
        self._refused = revoked | self._withheld.names()
        self._suspended = self._withheld.suspended.keys() - revoked

    def refuse_stale_revocations(self, refuse: bool) -> None:
        """Whether licenses are refused while the revocation list is stale."""
        self._refuse_stale = refuse
        self.ring.touch()

    @property
    def fresh_until(self) -> int:
        """When the revocation list becomes too old to go by, seconds since 1970 UTC; FOREVER where it never does."""
        lists = self._revocations
        return lists.next_update if self._refuse_stale and lists.next_update is not None else FOREVER

    @property
    def refused(self) -> Set[str]:
        """The ids of licenses that are refused although their tokens are in order."""
        return self._refused

    # The token's way

    def look(self, token: str, now: int) -> Entry:
        """The ruling on a token at a time.

        Args:
            token: as the POS application sent it.
            now: seconds since 1970 UTC.
        """
        entry = self._cache.get(token)
        if entry is not None and self.still_holds(entry, now):
            self._cache.move_to_end(token)
            return entry
        return self._look_again(token, now)

    def still_holds(self, entry: Entry, now: int) -> bool:
        """Whether the ruling on a token that was looked at before is the one that `look` would give now."""
        return entry.epoch == self.ring.epoch and entry.ruling.since <= now < entry.ruling.until

    def validate(self, token: str, now: int) -> Ruling:
        """The ruling on a token, for callers that do not log its first sight."""
        entry = self.look(token, now)
        entry.first = False
        return entry.ruling

    def is_known(self, token: str) -> bool:
        """Whether the token was opened before and is still in the cache."""
        self._tidy()
        return token in self._cache

    def _look_again(self, token: str, now: int) -> Entry:
        self._tidy()
        known = self._cache.get(token)
        if known is not None and known.claims is not None and known.ruling.secret_version is not None:
            entry = self._judged(known.claims, known.ruling.secret_version, now, first=known.first)
        else:
            opened = self._open(token, now)
            if isinstance(opened, Ruling):
                return Entry(opened)
            entry = self._judged(*opened, now, first=True)
        self._remember(token, entry)
        if entry.ruling.verdict.valid and entry.claims is not None:
            self.inventory.saw(token, entry.claims.jti, now)
        return entry

    def _tidy(self) -> None:
        """Forgets tokens of an earlier trust, and those whose secret was destroyed."""
        if self._tidied == self.ring.commits and self._trusted is self.ring.trust:
            return
        self._tidied = self.ring.commits
        if self._trusted is not self.ring.trust:
            self._trusted = self.ring.trust
            self._cache.clear()
        for token in [token for token, entry in self._cache.items() if not self._usable(entry)]:
            del self._cache[token]

    def _usable(self, entry: Entry) -> bool:
        version = entry.ruling.secret_version
        return version is not None and self.ring.usable(version)

    def _remember(self, token: str, entry: Entry) -> None:
        self._cache[token] = entry
        self._cache.move_to_end(token)
        if len(self._cache) > CACHED_TOKENS:
            self._cache.popitem(last=False)

    def _open(self, token: str, now: int) -> tuple[Claims, int] | Ruling:
        """Checks 1 to 5: the claims and the version that opened them, or why not."""
        try:
            sealed = parse_token(token)
        except MalformedToken:  # check 1
            return refusal(Reason.MALFORMED)
        version = sealed.version
        if sealed.agent_id != self.agent_id:  # check 2
            return refusal(Reason.WRONG_AUDIENCE, version)
        stored = self.ring.find(version)
        if stored is None:  # check 3
            return refusal(Reason.UNKNOWN_SECRET, version, refreshed=self._has_successor(token))
        standing = self.ring.standing(stored, now)
        if standing.reason is not Reason.OK or stored.secret is None:  # check 4
            reason = Reason.SECRET_INVALIDATED if standing.reason is Reason.OK else standing.reason
            return refusal(reason, version, State.INVALIDATED, refreshed=self._has_successor(token))
        try:  # check 5
            return self._open_with(sealed, stored.secret), version
        except WrongAudience:
            return refusal(Reason.WRONG_AUDIENCE, version, standing.state)
        except BadSignature:
            return refusal(Reason.BAD_SIGNATURE, version, standing.state)
        except MalformedToken:
            return refusal(Reason.MALFORMED, version, standing.state)

    def _open_with(self, sealed: SealedToken, secret: WrappedSecret) -> Claims:
        try:
            with self._vault.open(secret) as key:
                return open_token(sealed, key.view, self._trusted)
        except InvalidTag:
            raise RuntimeError("the process key does not open a secret that it wrapped") from None

    def _has_successor(self, token: str) -> bool:
        license_id = self.inventory.license_of(token)
        newest = None if license_id is None else self.inventory.newest(license_id)
        return newest is not None and newest != token

    def _judged(self, claims: Claims, version: int, now: int, *, first: bool) -> Entry:
        stored = self.ring.find(version)
        if stored is None:
            raise RuntimeError("a token was opened by a secret version that the ring does not hold")
        newer = self.inventory.newer(claims.jti, claims.iat, version)
        # Once a day the inventory notes that the license is in use.
        tomorrow = (now // 86_400 + 1) * 86_400
        standing = self.ring.standing(stored, now)
        ruling = judge(
            claims, version, standing, now, self._refused, newer, self.fresh_until, tomorrow, self._ahead, self._suspended
        )
        self._serial += 1
        return Entry(ruling, claims, self.ring.epoch, self._serial, first)

    # Newer tokens

    def refreshed(self, token: str, now: int) -> tuple[str, str] | None:
        """License and newest token of a token that is not the newest; None also where its license is not known."""
        license_id = self.validate(token, now).license_id or self.inventory.license_of(token)
        newest = None if license_id is None else self.inventory.newest(license_id)
        if license_id is None or newest is None or newest == token:
            return None
        # The inventory is not trusted: a token is handed out for the license that it was issued for, and no other.
        if self.validate(newest, now).license_id != license_id:
            return None
        # A till that cannot store the newer token asks with the old one for as long as it runs: its license stays known.
        self.inventory.still_used(token, now)
        return license_id, newest

    def refreshed_token(self, token: str, now: int) -> str | None:
        """The newest token of the same license if it is another one."""
        found = self.refreshed(token, now)
        return None if found is None else found[1]

    def deliver(self, license_id: str, token: str, expires: int, now: int) -> bool:
        """Keeps a token of a license that the server says belongs to this machine; False if there is no room for it.

        Whether the license is withheld is not asked: what the server has said of that is committed later than its tokens.

        Raises:
            Refused: no token of that license can be opened here.
        """
        opened = self._open(token, now)
        if isinstance(opened, Ruling):
            raise Refused(f"the token is not accepted: {opened.verdict.reason.value}")
        claims, version = opened
        if (claims.jti, claims.exp) != (license_id, expires):
            raise Refused("the token is not accepted: it is of another license, or has another end")
        if not self.inventory.hold(license_id, claims.iat, token, version, expires, now):
            return False
        self.ring.touch()
        return True

    def judge_import(self, token: str, now: int) -> Ruling:
        """The ruling on a re-issued token that the POS applications are to be offered; nothing is kept yet.

        Raises:
            Refused: the token is not valid here (one that begins later is accepted).
        """
        ruling = self.validate(token, now)
        if ruling.verdict.reason not in (Reason.OK, Reason.NOT_YET_VALID):
            raise Refused(f"the token is not accepted: {ruling.verdict.reason.value}")
        return ruling

    def import_token(self, token: str, now: int) -> None:
        """Keeps a re-issued token for the POS applications. Raises as `judge_import`."""
        ruling = self.judge_import(token, now)
        claims = self._cache[token].claims
        if claims is None or ruling.secret_version is None:
            raise RuntimeError("an accepted token must have been opened")
        if self.inventory.keep(claims.jti, claims.iat, token, ruling.secret_version):
            self.ring.touch()
