"""Makes the update metadata that is signed away from the server: root, targets, releases and candidate. Pure.

A document is unsigned when it is made; its signatures are added by whoever has the keys, on whatever machine.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    Role,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from server.base.errors import Invalid, RegistryError
from updatetrust.target import Target

from .words import LIFETIMES, MAX_METADATA_BYTES, PACKAGE_ROLES, ROOT, SNAPSHOT, TARGETS, TIMESTAMP

MAX_KEYS = 16
"""Keys of a role."""
_PATHS = ["*/*"]
"""What a role for packages may name: a file in the folder of any product."""
FLOORS = "floors"
"""The member of targets with the lowest version of each product that may be installed."""

KINDS: dict[str, type[Signed]] = {ROOT: Root, TARGETS: Targets, SNAPSHOT: Snapshot, TIMESTAMP: Timestamp}
"""The form of each role's metadata; roles for packages have that of targets."""
S = TypeVar("S", Root, Targets)


@dataclass(frozen=True, slots=True)
class Holders:
    """Who signs for a role.

    Attributes:
        keys: public keys of the holders.
        threshold: how many of them must sign.
    """

    keys: tuple[Key, ...]
    threshold: int

    def require(self, role: str) -> None:
        """Returns if the threshold can be reached. Raises Invalid."""
        ids = {key.keyid for key in self.keys}
        if len(ids) != len(self.keys):
            raise Invalid(f"a key for {role} is given twice: each holder has a key of their own")
        if not 1 <= self.threshold <= len(self.keys) <= MAX_KEYS:
            raise Invalid(
                f"{role} has {len(self.keys)} keys and a threshold of {self.threshold}: give 1 to {MAX_KEYS} keys, and a "
                "threshold from 1 to their number"
            )


def expiry(role: str, now: int, lasts_s: int | None = None) -> datetime:
    """When metadata of a role ends that is made now.

    Args:
        role: of it.
        now: seconds since 1970 UTC.
        lasts_s: how long it is valid; None for the lifetime of its role.
    """
    return datetime.fromtimestamp(now + (LIFETIMES[role] if lasts_s is None else lasts_s), UTC)


def seconds_of(moment: datetime) -> int:
    """A time of metadata as seconds since 1970 UTC."""
    return int(moment.timestamp())


def new_root(holders: dict[str, Holders], now: int, lasts_s: int | None = None) -> Metadata[Root]:
    """The first root.

    Args:
        holders: of root, targets, snapshot and timestamp.
        now: seconds since 1970 UTC.
        lasts_s: see `expiry`.

    Raises:
        Invalid: a threshold cannot be reached, or a key is there twice.
    """
    root = Root(version=1, expires=expiry(ROOT, now, lasts_s), consistent_snapshot=True)
    for role, who in holders.items():
        set_holders(root, role, who)
    return Metadata(root)


def set_holders(root: Root, role: str, who: Holders) -> None:
    """Replaces the keys and the threshold of a role in a root. Raises Invalid."""
    who.require(role)
    for keyid in list(root.roles[role].keyids):
        root.revoke_key(keyid, role)
    for key in who.keys:
        root.add_key(key, role)
    root.roles[role].threshold = who.threshold


def new_targets(holders: dict[str, Holders], floors: dict[str, str], now: int, lasts_s: int | None = None) -> Metadata[Targets]:
    """The first targets: which keys may name packages, and floors. It names no package itself.

    Args:
        holders: of releases and candidate.
        floors: lowest version by product.
        now: seconds since 1970 UTC.
        lasts_s: see `expiry`.

    Raises:
        Invalid: a threshold cannot be reached, or a key is there twice.
    """
    targets = Targets(version=1, expires=expiry(TARGETS, now, lasts_s))
    delegate(targets, holders)
    set_floors(targets, floors)
    return Metadata(targets)


def delegate(targets: Targets, holders: dict[str, Holders]) -> None:
    """Says which keys may name packages. Raises Invalid."""
    keys: dict[str, Key] = {}
    roles: dict[str, DelegatedRole] = {}
    for role in PACKAGE_ROLES:
        who = holders[role]
        who.require(role)
        keys |= {key.keyid: key for key in who.keys}
        ids = [key.keyid for key in who.keys]
        roles[role] = DelegatedRole(role, ids, who.threshold, terminating=False, paths=list(_PATHS))
    targets.delegations = Delegations(keys, roles)


def holders_in(delegator: Root | Targets, role: str) -> Holders:
    """Who signs for a role, as its delegator says.

    Raises:
        RegistryError: the delegator does not know the role.
    """
    try:
        found: Role = delegator.get_delegated_role(role)
        keys = tuple(delegator.get_key(keyid) for keyid in found.keyids)
    except ValueError:
        raise RegistryError(f"the metadata names no keys for {role}") from None
    return Holders(keys, found.threshold)


def set_floors(targets: Targets, floors: dict[str, str]) -> None:
    """Replaces the floors."""
    targets.unrecognized_fields[FLOORS] = dict(sorted(floors.items()))


def floors_in(targets: Targets) -> dict[str, str]:
    """The lowest version of each product that may be installed."""
    found = targets.unrecognized_fields.get(FLOORS, {})
    return dict(found) if isinstance(found, dict) else {}


def new_packages(role: str, now: int, lasts_s: int | None = None) -> Metadata[Targets]:
    """Metadata of a role for packages that names none yet."""
    return Metadata(Targets(version=1, expires=expiry(role, now, lasts_s)))


def target_file(target: Target) -> TargetFile:
    """How metadata names a package."""
    return TargetFile(target.length, {"sha256": target.sha256}, target.path, {"custom": target.custom()})


def successor(present: Metadata[S], role: str, now: int, lasts_s: int | None = None) -> Metadata[S]:
    """The next version of a document, unsigned and otherwise the same."""
    copy: Metadata[Any] = Metadata.from_bytes(present.to_bytes())
    copy.signatures.clear()
    copy.signed.version += 1
    copy.signed.expires = expiry(role, now, lasts_s)
    return copy


def read(role: str, data: bytes, where: str) -> Metadata[Any]:
    """Reads a document. Verifies nothing but its form.

    Args:
        role: whose it is.
        data: as it was stored.
        where: names it in errors.

    Raises:
        RegistryError: it is no metadata, or that of another role.
    """
    if len(data) > MAX_METADATA_BYTES:
        raise RegistryError(f"{where} has {len(data)} bytes; metadata has at most {MAX_METADATA_BYTES}")
    try:
        found: Metadata[Any] = Metadata.from_bytes(data)
    except RepositoryError:
        raise RegistryError(f"{where} is no update metadata in the form of TUF 1.0") from None
    kind = KINDS.get(role, Targets)
    if not isinstance(found.signed, kind):
        raise RegistryError(f"{where} is metadata of another role than {role}")
    return found


def sign(document: Metadata[Any], signers: Iterable[Signer]) -> None:
    """Adds signatures to a document."""
    for signer in signers:
        document.sign(signer, append=True)


def count_signatures(document: Metadata[Any], role: str, delegators: Sequence[Root | Targets]) -> list[tuple[int, int]]:
    """How many holders have signed a document and how many must, by each delegator that has to be satisfied."""
    found = []
    for delegator in delegators:
        if role in delegator_roles(delegator):
            result = delegator.get_verification_result(role, document.signed_bytes, document.signatures)
            found.append((len(result.signed), result.threshold))
    return found


def holders_of(delegator: Root | Targets, role: str) -> frozenset[str]:
    """The ids of the keys that may sign for a role; none if the delegator does not know it."""
    if role not in delegator_roles(delegator):
        return frozenset()
    return frozenset(delegator.get_delegated_role(role).keyids)


def delegator_roles(delegator: Root | Targets) -> tuple[str, ...]:
    """The roles whose keys a delegator names."""
    if isinstance(delegator, Root):
        return tuple(delegator.roles)
    delegations = delegator.delegations
    return () if delegations is None or delegations.roles is None else tuple(delegations.roles)
