"""Verifies a set of the update repository's metadata without a network and without trusting who brought it. Pure.

This is TUF's client workflow (specification 1.0, 5.3 to 5.6) but for one thing: whether timestamp and snapshot are fresh is not
asked. That is the updater's to check, once, when it downloads (`client`); root has no clock that it could trust for days. What
is checked here needs only what root keeps: signatures and thresholds, versions not below those that were seen before, and the
expiry of root, targets and delegated targets by a time that is certainly past.

Only roles that the top-level targets delegate to are looked at, and not what those delegate further.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, TypeVar

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from msgspec import Meta
from tuf.api.exceptions import LengthOrHashMismatchError, UnsignedMetadataError
from tuf.api.metadata import Key, Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError, SerializationError

from common.plain import msgspec_text
from contracts.directive import Product, VersionText

from .metadatafiles import MAX_ROLE_BYTES, MAX_ROLES, MAX_ROOT_BYTES, MAX_SNAPSHOT_BYTES, MAX_TIMESTAMP_BYTES, MetadataFiles
from .target import MAX_TARGETS_PER_ROLE, Target, read_target
from .version import Version

MAX_METADATA_VERSION = 2**31 - 1
FLOORS = "floors"
"""Member of the signed part of the top-level targets: the lowest version allowed of each product that exists."""

_Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_MetadataVersion = Annotated[int, Meta(ge=1, le=MAX_METADATA_VERSION)]
_Floors = Annotated[dict[Product, VersionText], Meta(max_length=64)]
_S = TypeVar("_S", Root, Timestamp, Snapshot, Targets)


class Fault(StrEnum):
    """Why metadata is refused. Append-only."""

    MALFORMED = "metadata-malformed"
    TOO_LARGE = "metadata-too-large"
    NOT_SIGNED = "metadata-not-signed"
    """Fewer valid signatures than the threshold."""
    ROLLED_BACK = "metadata-rolled-back"
    """Older than what was seen before, or a root that does not follow the one before it."""
    EXPIRED = "metadata-expired"
    MISMATCHED = "metadata-mismatched"
    """Not the file that the snapshot or timestamp names."""
    MISSING = "metadata-missing"
    """A role that may decide about the target was not brought."""


class MetadataRefused(Exception):
    """The metadata does not count.

    Attributes:
        fault: the reason.
        text: the reason in words.
    """

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(f"{text} ({fault.value})")
        self.fault = fault
        self.text = text


class KeptRole(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What is kept of a role.

    Attributes:
        version: the highest that was verified.
        keys: digest of the keys and threshold that it was verified with. With others the version counts no longer: that is how
            the vendor recovers when a stolen key has signed a very high version (TUF 5.3.11).
    """

    version: _MetadataVersion
    keys: _Digest


class KeptVersions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Versions below which metadata is refused. They only grow, but for a role whose keys the vendor has replaced.

    Attributes:
        root: version of the root.
        roles: by name: timestamp, snapshot, targets and each delegated role that was brought.
    """

    root: Annotated[int, Meta(ge=0, le=MAX_METADATA_VERSION)] = 0
    roles: Annotated[dict[str, KeptRole], Meta(max_length=MAX_ROLES + 3)] = {}


@dataclass(frozen=True, slots=True)
class VerifiedTargets:
    """What verified metadata says. Times are seconds since 1970 UTC.

    Attributes:
        kept: what to keep, so that nothing older counts from now on.
        floors: the lowest version allowed of each product that the offline key knows.
        root_expires: when the root does.
        fresh_until: when timestamp or snapshot expire, whichever is first.
    """

    kept: KeptVersions
    floors: Mapping[str, Version]
    root_expires: int
    fresh_until: int
    _targets: Targets
    _roles: Mapping[str, Targets]

    def first_end(self) -> tuple[int, str]:
        """When the first role ends that people sign, and its name: root, targets, or one that targets delegates to.

        Timestamp and snapshot are not among them: a server signs them again every day.
        """
        ends = [(self.root_expires, "root"), (_seconds(self._targets), "targets")]
        return min(*ends, *((_seconds(role), name) for name, role in self._roles.items()))

    def find(self, path: str) -> Target | None:
        """The target at a path: of the top-level targets, else of the first role delegated to that has it; None if none has.

        Raises:
            MetadataRefused: a role that comes before, or might be it, was not brought.
            MalformedTarget: what the role says of it has another form.
        """
        if (found := self._targets.targets.get(path)) is not None:
            return _target(found)
        delegations = self._targets.delegations
        if delegations is None:
            return None
        for name, terminating in delegations.get_roles_for_target(path):
            role = self._roles.get(name)
            if role is None:
                raise MetadataRefused(Fault.MISSING, f"the metadata of the role {ascii(name)[:80]} is not there")
            if (found := role.targets.get(path)) is not None:
                return _target(found)
            if terminating:
                break
        return None

    def paths(self) -> Iterator[str]:
        """The paths that the roles brought list. `find` decides which of them count."""
        for role in (self._targets, *self._roles.values()):
            yield from role.targets


def _target(found: TargetFile) -> Target:
    return read_target(found.path, found.length, found.hashes, found.custom)


def verify_offline(files: MetadataFiles, tuf_root: bytes, kept: KeptVersions, floor_time: int) -> VerifiedTargets:
    """Verifies metadata, whoever brought it.

    Args:
        files: the metadata.
        tuf_root: root's own root of the repository (`UpdateTrust.root_bytes`), where the chain of roots begins at each call.
        kept: of the last call that succeeded.
        floor_time: a time that is certainly past, seconds since 1970 UTC.

    Raises:
        MetadataRefused: with the reason.
    """
    past = datetime.fromtimestamp(floor_time, UTC)
    root = _last_root(files, tuf_root)
    if root.version < kept.root:
        raise MetadataRefused(Fault.ROLLED_BACK, f"the root has version {root.version}; version {kept.root} was seen before")
    _refuse_expired(root, "root", past)

    versions: dict[str, KeptRole] = {}
    timestamp = _role(Timestamp, files.timestamp, MAX_TIMESTAMP_BYTES, root, "timestamp", None)
    _keep(versions, kept, root, "timestamp", timestamp.version)
    snapshot = _role(Snapshot, files.snapshot, MAX_SNAPSHOT_BYTES, root, "snapshot", timestamp.snapshot_meta)
    _keep(versions, kept, root, "snapshot", snapshot.version)
    targets = _targets_role(files.targets, root, "targets", snapshot, past)
    _keep(versions, kept, root, "targets", targets.version)

    known = {} if targets.delegations is None else targets.delegations.roles or {}
    if len(known) > MAX_ROLES:
        raise MetadataRefused(Fault.TOO_LARGE, f"the top-level targets delegate to more than {MAX_ROLES} roles")
    roles: dict[str, Targets] = {}
    for name, data in files.roles.items():
        if name not in known:
            raise MetadataRefused(Fault.MISMATCHED, f"the top-level targets delegate nothing to the role {ascii(name)[:80]}")
        roles[name] = _targets_role(data, targets, name, snapshot, past)
        _keep(versions, kept, targets, name, roles[name].version)
    # A role that was not brought this time keeps its version, as long as there is such a role.
    versions |= {name: role for name, role in kept.roles.items() if name in known and name not in versions}
    return VerifiedTargets(
        kept=KeptVersions(root.version, versions),
        floors=_floors(targets),
        root_expires=_seconds(root),
        fresh_until=min(_seconds(timestamp), _seconds(snapshot)),
        _targets=targets,
        _roles=roles,
    )


def _last_root(files: MetadataFiles, tuf_root: bytes) -> Root:
    """Follows the chain of roots from root's own: each is signed by the one before it and by itself (TUF 5.3.4)."""
    root = _role(Root, tuf_root, MAX_ROOT_BYTES, None, "root", None)
    for number in sorted(files.roots):
        if number <= root.version:
            continue  # the chain that comes with a bundle begins at the very first root
        following = _role(Root, files.roots[number], MAX_ROOT_BYTES, root, "root", None)
        if following.version != root.version + 1 or number != following.version:
            raise MetadataRefused(
                Fault.ROLLED_BACK, f"{number}.root.json has version {following.version} and comes after version {root.version}"
            )
        root = following
    return root


def _role(kind: type[_S], data: bytes, limit: int, delegator: Root | Targets | None, name: str, named: MetaFile | None) -> _S:
    """Parses and verifies one file.

    Args:
        kind: what it must be.
        data: the file.
        limit: its greatest size.
        delegator: says which keys sign it; a root must be signed by itself as well. None for root's own.
        name: of the role.
        named: what the file above says of it; None where nothing does.
    """
    shown = ascii(name)[1:-1][:80]
    if len(data) > limit:
        raise MetadataRefused(Fault.TOO_LARGE, f"the metadata of {shown} has more than {limit:,} bytes")
    try:
        if named is not None:
            named.verify_length_and_hashes(data)
        metadata: Metadata[Any] = Metadata.from_bytes(data)
        signed = metadata.signed
        if not isinstance(signed, kind) or type(signed.version) is not int or signed.version > MAX_METADATA_VERSION:
            raise MetadataRefused(Fault.MALFORMED, f"the metadata of {shown} is of another type, or its version is no number")
        for signer in (delegator, signed if isinstance(signed, Root) else None):
            if signer is not None:
                if twins(signer, name):
                    raise MetadataRefused(Fault.MALFORMED, f"one key is named for {shown} under two ids; name each key once")
                signer.verify_delegate(name, metadata.signed_bytes, metadata.signatures)
    except LengthOrHashMismatchError:
        raise MetadataRefused(Fault.MISMATCHED, f"the metadata of {shown} is not the file that the repository names") from None
    except UnsignedMetadataError as error:
        raise MetadataRefused(Fault.NOT_SIGNED, f"too few valid signatures: {error}") from None
    except (DeserializationError, SerializationError):
        # python-tuf's words for it name its own functions, or nothing.
        raise MetadataRefused(Fault.MALFORMED, f"the metadata of {shown} is not JSON of the form that TUF gives it") from None
    except (ValueError, TypeError) as error:
        raise MetadataRefused(Fault.MALFORMED, f"the metadata of {shown} is malformed: {error}"[:300]) from None
    if named is not None and signed.version != named.version:
        raise MetadataRefused(
            Fault.MISMATCHED, f"the metadata of {shown} has version {signed.version}; the repository names {named.version}"
        )
    return signed


def twins(delegator: Root | Targets, role: str) -> bool:
    """Whether one public key is named for a role under two ids: its owner alone would be two of the threshold.

    TUF leaves ids to the signer, and python-tuf counts signatures by id.
    """
    known = _keys_of(delegator)
    found = [_public(known[keyid]) for keyid in delegator.get_delegated_role(role).keyids if keyid in known]
    return len(set(found)) != len(found)


def _keys_of(delegator: Root | Targets) -> Mapping[str, Key]:
    if isinstance(delegator, Root):
        return delegator.keys
    return delegator.delegations.keys if delegator.delegations else {}


def _public(key: Key) -> bytes:
    """The public key, however it is written."""
    text = str(key.keyval.get("public", ""))
    try:
        return load_pem_public_key(text.encode()).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):  # ed25519, for one, is written in hex
        return "".join(text.split()).lower().encode()


def _targets_role(data: bytes, delegator: Root | Targets, name: str, snapshot: Snapshot, past: datetime) -> Targets:
    named = snapshot.meta.get(f"{name}.json")
    if named is None:
        raise MetadataRefused(Fault.MISMATCHED, f"the snapshot does not name the role {ascii(name)[:80]}")
    targets = _role(Targets, data, MAX_ROLE_BYTES, delegator, name, named)
    _refuse_expired(targets, name, past)
    if len(targets.targets) > MAX_TARGETS_PER_ROLE:
        raise MetadataRefused(
            Fault.TOO_LARGE, f"the role {ascii(name)[:80]} has more than {MAX_TARGETS_PER_ROLE:,} targets; remove old ones"
        )
    return targets


def _refuse_expired(signed: Root | Targets, name: str, past: datetime) -> None:
    if signed.is_expired(past):
        ended = signed.expires.strftime("%Y-%m-%d %H:%M UTC")
        raise MetadataRefused(Fault.EXPIRED, f"the metadata of {ascii(name)[1:-1][:80]} expired at {ended}")


def _keep(versions: dict[str, KeptRole], kept: KeptVersions, delegator: Root | Targets, name: str, version: int) -> None:
    """Notes a role's version, and refuses one below that which was seen with the same keys."""
    found = KeptRole(version, _digest_of_keys(delegator, name))
    before = kept.roles.get(name)
    if before is not None and before.keys == found.keys and version < before.version:
        raise MetadataRefused(
            Fault.ROLLED_BACK,
            f"the metadata of {ascii(name)[1:-1][:80]} has version {version}; version {before.version} was seen before",
        )
    versions[name] = found


def _digest_of_keys(delegator: Root | Targets, name: str) -> str:
    role = delegator.get_delegated_role(name)
    known = _keys_of(delegator)
    # An id without a key signs nothing, and is no error in TUF.
    keys = sorted((keyid, known[keyid].to_dict()) for keyid in role.keyids if keyid in known)
    text = json.dumps([role.threshold, keys], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _floors(targets: Targets) -> dict[str, Version]:
    try:
        found = msgspec.convert(targets.unrecognized_fields.get(FLOORS, {}), _Floors, strict=True)
    except msgspec.ValidationError as error:
        text = f"the top-level targets' {FLOORS} are malformed: {msgspec_text(str(error))}"
        raise MetadataRefused(Fault.MALFORMED, text[:300]) from None
    return {product: Version.parse(text) for product, text in found.items()}


def _seconds(signed: Root | Timestamp | Snapshot | Targets) -> int:
    return int(signed.expires.timestamp())
