"""An agent in memory: a vault, secret versions, licenses, and an engine whose time is told."""

from dataclasses import replace
from typing import Any

from agentd.licenses.inventory import LicenseBook
from agentd.licenses.validator import Engine
from agentd.secrets.lifecycle import Limits
from contracts.claims import Claims
from contracts.trust import parse_trust
from hwsec.secretmem import SecretBuffer
from hwsec.store import Contents, StoredVersion
from hwsec.storeformat import VersionMeta
from hwsec.vault import Vault
from server.keys.jose import mint_token
from tests.contracts.world import AGENT, CLAIMS, LICENSE_KEY, TRUST_FILE

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
    return mint_token(claims, secret(version), version, LICENSE_KEY)


class World:
    def __init__(self, *metas: VersionMeta, limits: Limits | None = None) -> None:
        self.vault = Vault()
        self.book = LicenseBook()
        self.engine = Engine(AGENT, parse_trust(TRUST_FILE), self.vault, self.book, limits or Limits())
        self.engine.take_over(Contents(tuple(self.stored(each) for each in metas)))

    def stored(self, each: VersionMeta, *, destroyed: bool = False) -> StoredVersion:
        if destroyed:
            return StoredVersion(each, None)
        with SecretBuffer(32) as buffer:
            buffer.view[:] = secret(each.version % 256)
            return StoredVersion(each, self.vault.wrap(buffer))

    def rotate(self, each: VersionMeta) -> None:
        self.engine.take_over(self.engine.with_new_secret(self.stored(each), {}))

    def invalidate(self, version: int, now: int = T0) -> None:
        self.engine.take_over(self.engine.with_invalidated(version, now, {}))
