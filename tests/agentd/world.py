"""An agent in memory: a vault, a ring of secret versions, an inventory, and a validator whose time is passed in."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentd.audit.core import Core
from agentd.audit.log import AuditLog
from agentd.base.clock.clock import Clock
from agentd.base.counters import Counters
from agentd.base.hardware import Hardware
from agentd.licenses.inventory import LicenseInventory
from agentd.licenses.validator import Validator
from agentd.secrets.lifecycle import Limits
from agentd.secrets.ring import SecretRing
from contracts.claims import Claims
from contracts.trust import parse_trust
from hwsec.owner import HardwareOwner
from hwsec.secretmem import SecretBuffer
from hwsec.store import Contents, SealedStore, StoredVersion
from hwsec.storeformat import VersionMeta
from hwsec.vault import Vault
from server.keys.jose import issue_token
from tests.contracts.world import AGENT, CLAIMS, LICENSE_KEY, TRUST_FILE
from tests.hwsec.memory_backend import MemoryBackend, MemoryDevice

_owner = HardwareOwner()
T0 = 1_800_000_000
DAY = 86_400


def secret(version: int) -> bytes:
    return bytes([version]) * 32


def meta(version: int = 1, state: str = "ACTIVE", start: int = T0, **changes: Any) -> VersionMeta:
    values: dict[str, Any] = {
        "version": version,
        "state": state,
        "valid_from": start,
        "valid_until": start + DAY,
        "grace_until": start + 8 * DAY,
        "installed_at": start,
    }
    return VersionMeta(**{**values, **changes})


def token(version: int = 1, **changes: Any) -> str:
    claims: Claims = replace(CLAIMS, **{"nbf": T0, "exp": T0 + 30 * DAY, **changes})
    return issue_token(claims, secret(version), version, LICENSE_KEY)


def core_of(clock: Clock, audit: AuditLog, vault: Vault, backend: MemoryBackend | None = None) -> Core:
    """The common parts over a backend in memory."""

    def make_store(made: Any, trace: Callable[[str], None]) -> SealedStore:
        return SealedStore(Path("/nonexistent/store"), made, vault, AGENT, lambda _state: 0, trace)

    hardware = Hardware(backend or MemoryBackend(MemoryDevice()), make_store, None, vault, _owner)
    return Core(AGENT, clock, audit, hardware, vault, Counters())


class World:
    def __init__(self, *metas: VersionMeta, limits: Limits | None = None) -> None:
        self.vault = Vault()
        self.inventory = LicenseInventory()
        self.ring = SecretRing(limits or Limits(), parse_trust(TRUST_FILE))
        self.validator = Validator(AGENT, self.ring, self.vault, self.inventory)
        self.ring.replace(Contents(tuple(self.stored(each) for each in metas)))

    def stored(self, each: VersionMeta, *, destroyed: bool = False) -> StoredVersion:
        if destroyed:
            return StoredVersion(each, None)
        with SecretBuffer(32) as buffer:
            buffer.view[:] = secret(each.version % 256)
            return StoredVersion(each, self.vault.wrap(buffer))

    def rotate(self, each: VersionMeta) -> None:
        self.ring.replace(self.ring.with_new_secret(self.stored(each), {}))

    def invalidate(self, version: int, now: int = T0) -> None:
        self.ring.replace(self.ring.with_invalidated(version, now, {}))
