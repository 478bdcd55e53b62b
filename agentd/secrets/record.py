"""Defines what the sealed store holds besides the secret versions, and how it is read and written. Performs no IO."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from agentd.base.clock.signedtime import Standing
from agentd.base.clock.timeanchor import Reading, TimeAnchor
from common.plain import json_text
from contracts.exchange import AgentId, Number
from contracts.jose import MalformedToken
from contracts.trust import Trust, parse_trust
from hwsec.errors import StoreCorrupt

from .revocations import NO_REVOCATIONS, Revocations
from .withheld import NOTHING_WITHHELD, Withheld

T = TypeVar("T")


class ServerRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The license server that an agent belongs to, as it learned when it was provisioned.

    Attributes:
        agent_id: what the server calls this agent.
        serial: the agent's number in the server's registry.
        url: where the server is.
        pins: of keys in the server's TLS chain; one of them must be in it.
        roots: pins of the roots that may sign key sets.
        key_set: number of the newest key set.
        key_set_expires: when a newer key set should have come, seconds since 1970 UTC.
        attestation: how sure the server was of the hardware.
    """

    agent_id: AgentId
    serial: Number
    url: str
    pins: Annotated[tuple[str, ...], Meta(min_length=1, max_length=8)]
    roots: Annotated[tuple[str, ...], Meta(min_length=1, max_length=4)]
    key_set: Number
    key_set_expires: int
    attestation: str


class SealedTlsKey(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A TLS key at rest.

    Attributes:
        certificates: PEM; the agent's own, then those between it and the root.
        sealed: the private scalar, sealed under the KEK (`hwsec.sealedblob`).
    """

    certificates: tuple[str, ...]
    sealed: bytes


class SealedTlsKeys(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True, rename={"pending": "following"}):
    """The TLS key in use, and one whose certificate has not worked yet."""

    current: SealedTlsKey
    pending: SealedTlsKey | None = None


class SealedWebhookKey(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A key that requests to the webhook are signed with, at rest.

    Attributes:
        id: names it to people; made at random.
        created_at: seconds since 1970 UTC.
        sealed: its 32 bytes, sealed under the KEK (`hwsec.sealedblob`).
    """

    id: str
    created_at: int
    sealed: bytes


class UnconfirmedTime(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A server-signed time that was not taken (`agentd.base.clock.signedtime`).

    Attributes:
        standing: provisional, held or behind.
        time: with what the counters showed when it came.
        clock: what the agent's own clock said then, seconds since 1970 UTC.
    """

    standing: Standing
    time: TimeAnchor
    clock: int


class SettledKeySet(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What the newest key set says by itself, while the keys of the one before it are kept beside it.

    Attributes:
        trust_file: as in `contracts.trust`.
        roots: pins of the roots that may sign key sets.
    """

    trust_file: bytes
    roots: Annotated[tuple[str, ...], Meta(min_length=1, max_length=4)]


class UsedBreakGlass(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A break-glass certificate that was used: it never begins again.

    Attributes:
        certificate: SHA-256 of its DER, hex.
        began: CLOCK_BOOTTIME at its first act.
        ends: when the certificate ends, seconds since 1970 UTC; later nobody has to remember it.
        over: its time was ended before it was over.
    """

    certificate: str
    began: Reading
    ends: int
    over: bool = False


class AdminAccess(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What must outlive the process of how administrators are authenticated.

    Attributes:
        latched: administrators need certificates, whatever becomes of the files.
        revoked: digests of certificates that do not count any more, hex.
        break_glass: those that were used.
    """

    latched: bool = False
    revoked: tuple[str, ...] = ()
    break_glass: tuple[UsedBreakGlass, ...] = ()


NO_ADMIN_ACCESS = AdminAccess()

SECTION_TRUST = "trust"
SECTION_TIME = "server_time"
SECTION_HARDWARE = "hardware_id"
SECTION_SERVER = "server"
SECTION_REVOCATIONS = "revocations"
SECTION_TLS = "tls"
# Release 0.1.0 does not know the sections below; it keeps them as they are.
SECTION_UNCONFIRMED = "unconfirmed_time"
SECTION_SETTLED = "settled_key_set"
SECTION_CAPABILITIES = "server_capabilities"
SECTION_WITHHELD = "withheld_licenses"
SECTION_ADMIN_ACCESS = "admin_access"
SECTION_WEBHOOK = "webhook_keys"
SECTIONS = frozenset((
    SECTION_TRUST, SECTION_TIME, SECTION_HARDWARE, SECTION_SERVER, SECTION_REVOCATIONS, SECTION_TLS, SECTION_UNCONFIRMED,
    SECTION_SETTLED, SECTION_CAPABILITIES, SECTION_WITHHELD, SECTION_ADMIN_ACCESS, SECTION_WEBHOOK,
))  # fmt: skip
"""The sections that this release knows. One that release 0.1.0 reads has no other members than there; what is new is a section
of its own, which the release before keeps as it is (ADR 75)."""


@dataclass(frozen=True, slots=True)
class AgentRecord:
    """What the store holds besides the secret versions.

    Attributes:
        trust_file: whose signatures count, as in `contracts.trust`.
        time: the last server-signed time that was taken; None before the first.
        hardware_id: of the hardware that the agent was enrolled on; None where it has none.
        server: None for an agent whose secrets are carried by hand.
        tls: present where `server` is.
        revocations: the newest list.
        others: sections that this release does not know; they are kept as they are.
        unconfirmed: the server-signed time that was not taken; None where there is none.
        settled: the newest key set by itself, while keys of the one before it count as well; None once it has settled.
        capabilities: what the server has announced beyond release 0.1.0, as far as this agent uses it; by name.
        withheld: the licenses that the server has suspended or taken away.
        access: how administrators are authenticated, and whose certificates do not count.
        webhook_keys: the present key of the webhook, then the former one while it is being replaced; empty without a webhook.
    """

    trust_file: bytes
    time: TimeAnchor | None = None
    hardware_id: str | None = None
    server: ServerRecord | None = None
    tls: SealedTlsKeys | None = None
    revocations: Revocations = NO_REVOCATIONS
    others: Mapping[str, bytes] = field(default_factory=dict)
    unconfirmed: UnconfirmedTime | None = None
    settled: SettledKeySet | None = None
    capabilities: tuple[str, ...] = ()
    withheld: Withheld = NOTHING_WITHHELD
    access: AdminAccess = NO_ADMIN_ACCESS
    webhook_keys: tuple[SealedWebhookKey, ...] = ()

    def trust(self) -> Trust:
        """Whose signatures count."""
        return parse_trust(self.trust_file)

    def sections(self) -> dict[str, bytes]:
        """The record as sections of the store."""
        made: dict[str, bytes] = {**self.others, SECTION_TRUST: self.trust_file}
        if self.hardware_id is not None:
            made[SECTION_HARDWARE] = self.hardware_id.encode("ascii")
        if self.revocations is not NO_REVOCATIONS:
            made[SECTION_REVOCATIONS] = msgspec.json.encode(self.revocations)
        for name, value in (
            (SECTION_TIME, self.time),
            (SECTION_SERVER, self.server),
            (SECTION_TLS, self.tls),
            (SECTION_UNCONFIRMED, self.unconfirmed),
            (SECTION_SETTLED, self.settled),
            (SECTION_CAPABILITIES, self.capabilities or None),
            (SECTION_WITHHELD, None if self.withheld == NOTHING_WITHHELD else self.withheld),
            (SECTION_ADMIN_ACCESS, None if self.access == NO_ADMIN_ACCESS else self.access),
            (SECTION_WEBHOOK, self.webhook_keys or None),
        ):
            if value is not None:
                made[name] = msgspec.json.encode(value)
        return made


def read_record(sections: Mapping[str, bytes]) -> AgentRecord:
    """The record in the sections of a store.

    Raises:
        StoreCorrupt: a section does not hold what it should. The store's seal is whole, so an agent wrote it that way.
    """
    try:
        trust_file = sections[SECTION_TRUST]
        parse_trust(trust_file)
    except KeyError:
        raise StoreCorrupt("the store holds no trust; initialize this agent again") from None
    except MalformedToken as error:
        raise StoreCorrupt(f"the store holds no usable trust ({error}); initialize this agent again") from None
    server = _decoded(sections, SECTION_SERVER, ServerRecord)
    tls = _decoded(sections, SECTION_TLS, SealedTlsKeys)
    if server is not None and tls is None:
        raise StoreCorrupt("the store names a license server and holds no TLS key; provision this agent again")
    hardware = sections.get(SECTION_HARDWARE)
    return AgentRecord(
        trust_file,
        _decoded(sections, SECTION_TIME, TimeAnchor),
        None if hardware is None else hardware.decode("ascii", "replace"),
        server,
        tls,
        _decoded(sections, SECTION_REVOCATIONS, Revocations) or NO_REVOCATIONS,
        {name: data for name, data in sections.items() if name not in SECTIONS},
        _decoded(sections, SECTION_UNCONFIRMED, UnconfirmedTime),
        _decoded(sections, SECTION_SETTLED, SettledKeySet),
        _decoded(sections, SECTION_CAPABILITIES, tuple[str, ...]) or (),
        _decoded(sections, SECTION_WITHHELD, Withheld) or NOTHING_WITHHELD,
        _decoded(sections, SECTION_ADMIN_ACCESS, AdminAccess) or NO_ADMIN_ACCESS,
        _decoded(sections, SECTION_WEBHOOK, tuple[SealedWebhookKey, ...]) or (),
    )


def _decoded(sections: Mapping[str, bytes], name: str, kind: type[T]) -> T | None:
    data = sections.get(name)
    if data is None:
        return None
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        why = json_text(error)
        raise StoreCorrupt(f"the section '{name}' of the store cannot be read ({why}); provision this agent again") from None
