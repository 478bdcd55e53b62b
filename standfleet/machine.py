"""One virtual machine: its keys, what it runs, and what it says and does at a contact. Pure: time is a parameter."""

import copy
import hashlib
import hmac
from dataclasses import dataclass, field

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from contracts.contact.updates import Outcome, OutcomeState, RunningVersion, UpdatesReply, UpdatesRequest
from contracts.directive import Directive
from contracts.exchange import request_input, with_signature
from contracts.jose import b64decode, jwk_from_point

from .profiles import Profile, share

_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of the group P-256 (FIPS 186-5)."""
SLOW_CONTACTS = 4
"""Contacts that a slow machine needs for an update."""
OUTAGE_S = 3600.0
YEAR_S = 366 * 86_400
UNHEALTHY = "health check failed"


def key_of(seed: int, number: int, purpose: str) -> ec.EllipticCurvePrivateKey:
    """A key that seed, machine and purpose determine. Anybody who knows the seed has it: it protects nothing."""
    digest = hmac.digest(b"license-stand fleet", f"{seed}/{number}/{purpose}".encode(), "sha512")
    return ec.derive_private_key(int.from_bytes(digest, "big") % (_ORDER - 1) + 1, ec.SECP256R1())


def point_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public point, uncompressed."""
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def jwk_of(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    """The public key as a JWK."""
    return jwk_from_point(point_of(key))


def sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """An ES256 signature: r || s, 64 bytes."""
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


@dataclass(slots=True)
class Machine:
    """A machine.

    Attributes:
        seed: of the fleet.
        number: the machine's, from 1 on.
        agent_id: its id as an agent.
        profile: how it fails.
        runs: version and build id of the product.
        product: what is updated.
        hardware: the kind of machine that it says it is.
        certificates: PEM; its own client certificate first. Empty before it is enrolled.
        known: the highest number of a directive that it knows.
        order: what it is doing.
        left: contacts until that is done.
        outcomes: what the server has not acknowledged, by directive.
        contacts: how many worked.
        failures: that have failed in a row.
        had: numbers of the directives that it was given.
        twin: whether it is the second machine with these keys.
    """

    seed: int
    number: int
    agent_id: str
    profile: Profile
    runs: tuple[str, str]
    product: str = "pos"
    hardware: str = "till-mk1"
    certificates: str = ""
    known: int = 0
    order: Directive | None = None
    left: int = 0
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    contacts: int = 0
    failures: int = 0
    had: list[int] = field(default_factory=list)
    twin: bool = False
    _identity: ec.EllipticCurvePrivateKey | None = None

    @property
    def identity(self) -> ec.EllipticCurvePrivateKey:
        """The key that signs its requests."""
        if self._identity is None:
            self._identity = key_of(self.seed, self.number, "identity")
        return self._identity

    @property
    def hw_id(self) -> str:
        """What identifies the machine, as a software backend names it."""
        return hashlib.sha256(f"license-stand fleet/{self.seed}/{self.number}".encode()).hexdigest()

    @property
    def tls_pem(self) -> bytes:
        """Its TLS key and certificates in PEM, for `ssl`."""
        key = key_of(self.seed, self.number, "tls")
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + self.certificates.encode()

    @property
    def address(self) -> str:
        """The address that it comes from, of loopback: a server limits what comes from one address."""
        block = self.number // 16  # a shop with some tills
        return f"127.{1 + block // 65_536 % 250}.{block // 256 % 256}.{1 + block % 254}"

    def clone(self) -> "Machine":
        """A second machine with the same keys, as it is now."""
        twin = copy.copy(self)
        twin.outcomes, twin.had, twin.twin = dict(self.outcomes), list(self.had), True
        return twin

    def clock(self, now: float) -> int:
        """What its own clock says, at a time in seconds since 1970 UTC."""
        if self.profile is not Profile.CLOCK:
            return int(now)
        years = 1 + int(share(self.seed, self.number, "clock") * 20)
        return max(0, int(now) + (years if self.number % 2 else -years) * YEAR_S)

    def is_out(self, at: float) -> bool:
        """Whether its own network is down, at so many seconds since the fleet began."""
        if self.profile is not Profile.OUTAGE:
            return False
        begins = share(self.seed, self.number, "outage") * 2 * OUTAGE_S
        return begins <= at < begins + OUTAGE_S

    def work(self, now: float) -> None:
        """Does what it is ordered to do, as far as it comes until this contact; `now` is in seconds since 1970 UTC."""
        order = self.order
        if order is None or now < max(order.notice_until, order.not_before):
            return
        self.left -= 1
        if self.left > 0:
            self._says(order, OutcomeState.PROGRESS, "downloaded", now)
            return
        self.order = None
        if self.profile is Profile.ROLLS_BACK and not order.downgrade:
            self._says(order, OutcomeState.ROLLED_BACK, UNHEALTHY, now)
            return
        if self.profile is not Profile.LIES:
            self.runs = order.version, order.build_id
        self._says(order, OutcomeState.COMMITTED, "", now)

    def _says(self, order: Directive, state: OutcomeState, detail: str, now: float) -> None:
        self.outcomes[order.number] = Outcome(number=order.number, state=state, detail=detail, at=self.clock(now))

    def ask(self, challenge: str, now: float) -> tuple[UpdatesRequest, str]:
        """What it asks and reports, and that as a signed request.

        Args:
            challenge: the server's.
            now: seconds since 1970 UTC.
        """
        version, build = self.runs
        number = len(self.had), self.contacts, self.failures, self.twin, challenge
        content = UpdatesRequest(
            agent_id=self.agent_id,
            request_id=hashlib.sha256(f"{self.seed}/{self.number}/{number}".encode()).hexdigest()[:32],
            challenge=challenge,
            timestamp=self.clock(now),
            running=(RunningVersion(product=self.product, version=version, build_id=build),),
            directive=self.known,
            outcomes=tuple(self.outcomes.values())[-16:],
            hardware=self.hardware,
        )
        signed = request_input(content)
        return content, with_signature(signed, sign(self.identity, signed))

    def answered(self, reply: UpdatesReply) -> None:
        """Notes the server's answer: outcomes that it knows, and what it orders."""
        for number in reply.acknowledged:
            self.outcomes.pop(number, None)
        if reply.directive is None:
            return
        order = msgspec.json.decode(b64decode(reply.directive.split(".")[1]), type=Directive)
        if order.number <= self.known:
            return
        self.known, self.order = order.number, None if order.withdraws is not None else order
        if self.order is not None:
            self.had.append(order.number)
            self.left = SLOW_CONTACTS if self.profile is Profile.SLOW else 1


def make(seed: int, number: int, profile: Profile, runs: tuple[str, str], prefix: str = "sim") -> Machine:
    """A machine of a fleet.

    Args:
        seed: of the fleet.
        number: from 1 on.
        profile: how it fails.
        runs: version and build id.
        prefix: of its agent id.
    """
    return Machine(seed, number, f"{prefix}-{number:07d}", profile, runs)
