"""What the exchange with agents and devices needs of the server's storage and keys. Forms only.

Times are seconds since 1970 UTC. What is not to be done raises `RequestRefused`; a database that is away, `SQLAlchemyError`.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from contracts.exchange import Reply
from server.web.peers import Peer


class Agent(Protocol):
    """An agent as it is registered."""

    @property
    def agent_id(self) -> str:
        """Its id."""

    @property
    def status(self) -> str:
        """`active`, `revoked` or `factory_only`."""

    @property
    def identity_key(self) -> dict[str, str]:
        """Public JWK that signs its requests."""


class Signer(Protocol):
    """The server's keys, as the exchange uses them."""

    def sign_reply(self, reply: Reply) -> str:
        """The JWS of a reply."""

    def challenge_key(self) -> bytes:
        """32 bytes that authenticate challenges."""

    def key_set_number(self) -> int:
        """Number of the newest key set."""


class AgentStore(Protocol):
    """Who is who, and what was answered."""

    def by_certificate(self, fingerprint: str) -> Agent | None:
        """The agent that a client certificate belongs to; None if it counts no more."""

    def by_lost_record(self, peer: Peer) -> Agent | None:
        """The agent that a certificate names which the registry has lost; None if it has not, or knows no such agent."""

    def adopt(self, peer: Peer, now: int) -> None:
        """Takes such a certificate in again."""

    def missed(self, peer: Peer, now: int) -> None:
        """Takes note of a certificate of an agent that the registry has lost."""

    def disputed(self, peer: Peer, now: int) -> None:
        """Takes note of a certificate that the registry has lost, whose holder does not sign with its agent's key."""

    def unit(self, agent_id: str) -> AbstractContextManager[Agent | None]:
        """All that this thread does within it is one transaction, alone with this agent; the agent as it is then."""

    def answer_of(self, agent_id: str, request_id: str) -> tuple[str, str] | None:
        """Digest of the request and the reply that was kept."""

    def keep_answer(self, agent_id: str, request_id: str, digest: str, reply: str, now: int) -> None:
        """Keeps a reply."""

    def saw(self, agent_id: str, now: int, fingerprint: str, audit_seq: int | None, audit_head: str | None) -> int | None:
        """Takes note of a contact; returns the acknowledged `audit_seq`."""

    def renew_certificate(self, agent_id: str, csr_pem: str, now: int) -> Sequence[str]:
        """A new client certificate and those above it, in PEM."""


class SecretStore(Protocol):
    """Secret versions."""

    def rotate(self, agent_id: str, current: int, key_check: str | None, highest: int, now: int) -> str:
        """The delivery of the version that is pending."""

    def confirm(self, agent_id: str, version: int, key_check: str, now: int) -> None:
        """The agent has sealed it."""

    def status(self, agent_id: str, current: int, key_check: str | None, highest: int, now: int) -> tuple[int, bool]:
        """The newest confirmed version, and whether to rotate at once."""


class LicenseStore(Protocol):
    """Licenses."""

    def reissue(self, agent_id: str, license_ids: Sequence[str], version: int, now: int) -> tuple[Sequence[str], Sequence[str]]:
        """New tokens, and the ids for which there is none."""

    def revocations(self, agent_id: str, now: int) -> tuple[int, int, Sequence[str]]:
        """Number, next update and revoked ids."""

    def validate(self, agent_id: str, token: str, now: int) -> tuple[bool, str, str | None, int | None]:
        """Whether the server stands by a token, the reason, the license and its end."""


class EnrollmentKeys(Protocol):
    """The server's keys, as provisioning uses them."""

    def sign_reply(self, reply: Reply) -> str:
        """The JWS of a reply."""

    def open_claim(self, jwe: str) -> bytes:
        """What is encrypted in a claim."""

    def key_set(self) -> str:
        """The key set that the root has signed."""

    def key_set_of(self, root: str) -> str | None:
        """The newest one that the root with this pin has signed."""


class Session(Protocol):
    """An attempt to be provisioned, between its two steps."""

    @property
    def claim_id(self) -> int:
        """The claim that was used."""

    @property
    def begin(self) -> bytes:
        """The first step's request, JSON."""

    @property
    def nonce(self) -> bytes:
        """The nonce that the keys must be certified with."""

    @property
    def credential(self) -> bytes | None:
        """The secret that only that TPM opens; None for software."""


class Activated(Protocol):
    """A device that is an agent now."""

    @property
    def agent_id(self) -> str:
        """Its id."""

    @property
    def serial(self) -> int:
        """Its number."""

    @property
    def certificates(self) -> Sequence[str]:
        """Its client certificate and those above it, in PEM."""


class ClaimStore(Protocol):
    """Claims, and attempts that are under way."""

    def use(self, text: str, hw_id: str, now: int) -> int:
        """The id of a claim that this device may use."""

    def start_attempt(
        self, session_id: str, claim_id: int, begin: bytes, nonce: bytes, credential: bytes | None, now: int
    ) -> None:
        """Keeps an attempt."""

    def attempt(self, session_id: str, now: int) -> Session:
        """An attempt that is under way."""


class ActivationStore(Protocol):
    """Where devices become agents."""

    def activate(
        self,
        claim_id: int,
        hw_id: str,
        backend: str,
        attestation_level: str,
        identity_key: dict[str, str],
        agreement_key: dict[str, str],
        attestation_key: dict[str, str],
        csr_pem: str,
        wanted_agent_id: str | None,
        now: int,
    ) -> Activated:
        """Makes the device an agent."""


class AuditLog(Protocol):
    """Where every operation is recorded."""

    def record(self, actor: str, event: str, outcome: str, now: int, **fields: Any) -> None:
        """Appends a record."""
