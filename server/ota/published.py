"""Says what a repository has published, and whether documents may be published next. Pure: files come through a function.

Everything is verified as a client would, from the first root on: the server publishes nothing that a machine would refuse, and
builds on nothing that somebody has put into the directory behind its back. Whether metadata has expired is no matter here: what
expired has to be replaced, and that begins with reading it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from server.base.errors import Conflict, Invalid, RegistryError
from updatetrust.metadata import twins

from . import documents, packages
from .words import PACKAGE_ROLES, RELEASES, ROOT, SNAPSHOT, TARGETS, TIMESTAMP

Read = Callable[[str], bytes | None]
"""Gives the content of a metadata file by its name; None if there is none."""


@dataclass(frozen=True, slots=True)
class Published:
    """What a repository has published.

    Attributes:
        roots: the root's versions, from 1 on.
        timestamp: verified by the newest root, as is all that follows.
        snapshot: that timestamp names.
        targets: that snapshot names.
        roles: of the roles for packages.
    """

    roots: tuple[Metadata[Root], ...]
    timestamp: Metadata[Timestamp]
    snapshot: Metadata[Snapshot]
    targets: Metadata[Targets]
    roles: dict[str, Metadata[Targets]]

    @property
    def root(self) -> Metadata[Root]:
        """The newest root."""
        return self.roots[-1]

    def versions(self) -> dict[str, int]:
        """The version of each role's metadata."""
        return {role: document.signed.version for role, document in self.documents().items()}

    def document(self, role: str) -> Metadata[Any]:
        """The metadata of a role."""
        return self.documents()[role]

    def documents(self) -> dict[str, Metadata[Any]]:
        """The metadata that counts now, by role."""
        online: dict[str, Metadata[Any]] = {SNAPSHOT: self.snapshot, TIMESTAMP: self.timestamp}
        return {ROOT: self.root, TARGETS: self.targets, **online, **self.roles}

    def ends(self) -> dict[str, int]:
        """When the metadata of each role expires, seconds since 1970 UTC."""
        return {role: documents.seconds_of(self.document(role).signed.expires) for role in self.documents()}


@dataclass(frozen=True, slots=True)
class Change:
    """Documents to be published, signed away from the server.

    Attributes:
        root: the next root; None keeps the present one.
        targets: the next targets; None keeps the present ones.
        roles: the next metadata of roles for packages.
    """

    root: Metadata[Root] | None = None
    targets: Metadata[Targets] | None = None
    roles: Mapping[str, Metadata[Targets]] = field(default_factory=dict)

    def documents(self) -> dict[str, Metadata[Any]]:
        """What it has, by role."""
        single: dict[str, Metadata[Any] | None] = {ROOT: self.root, TARGETS: self.targets}
        return {role: document for role, document in single.items() if document is not None} | dict(self.roles)


def file_name(role: str, version: int) -> str:
    """The name of a metadata file with consistent snapshots."""
    return f"{TIMESTAMP}.json" if role == TIMESTAMP else f"{version}.{role}.json"


def load(read: Read) -> Published | None:
    """What is published; None before the first publication.

    Args:
        read: of the directory `metadata`.

    Raises:
        RegistryError: the files are not a repository that a client would accept.
    """
    roots = load_roots(read)
    stamp = read(f"{TIMESTAMP}.json")
    if stamp is None:
        return None
    if not roots:
        raise RegistryError("1.root.json is missing from the repository of updates: restore it from a copy of the repository")
    root = roots[-1]
    timestamp = documents.read(TIMESTAMP, stamp, f"{TIMESTAMP}.json")
    _verify(root.signed, TIMESTAMP, timestamp)
    snapshot = _named(read, SNAPSHOT, timestamp.signed.snapshot_meta)
    _verify(root.signed, SNAPSHOT, snapshot)
    targets = _named(read, TARGETS, snapshot.signed.meta[f"{TARGETS}.json"])
    _verify(root.signed, TARGETS, targets)
    roles = {}
    for role in documents.delegator_roles(targets.signed):
        roles[role] = _named(read, role, snapshot.signed.meta[f"{role}.json"])
        _verify(targets.signed, role, roles[role])
    return Published(roots, timestamp, snapshot, targets, roles)


def load_roots(read: Read) -> tuple[Metadata[Root], ...]:
    """The root's versions, each verified by the one before it; none before the first publication. Raises RegistryError."""
    roots: list[Metadata[Root]] = []
    while (data := read(file_name(ROOT, len(roots) + 1))) is not None:
        root = documents.read(ROOT, data, file_name(ROOT, len(roots) + 1))
        verify_root(roots[-1] if roots else None, root)
        roots.append(root)
    return tuple(roots)


def verify_root(before: Metadata[Root] | None, root: Metadata[Root]) -> None:
    """Returns if a root follows the one before it: signed by both. Raises Invalid."""
    version = 1 if before is None else before.signed.version + 1
    if root.signed.version != version:
        raise Invalid(f"the root has version {root.signed.version}; the next one is {version}")
    _verify(root.signed, ROOT, root)
    if before is not None:
        _verify(before.signed, ROOT, root)


def _verify(delegator: Root | Targets, role: str, document: Metadata[Any]) -> None:
    try:
        result = delegator.get_verification_result(role, document.signed_bytes, document.signatures)
    except ValueError:
        raise Invalid(f"no keys are named for {role}") from None
    if twins(delegator, role):
        raise Invalid(f"one key is named for {role} under two ids, so its owner would count twice; name each key once")
    if not result.verified:
        raise Invalid(
            f"{role} version {document.signed.version} has {len(result.signed)} of the {result.threshold} signatures that "
            f"{'targets' if isinstance(delegator, Targets) else 'root'} version {delegator.version} asks for"
        )


def _named(read: Read, role: str, meta: MetaFile) -> Metadata[Any]:
    name = file_name(role, meta.version)
    data = read(name)
    if data is None:
        raise RegistryError(f"{name} is missing from the repository of updates: restore it from a copy of the repository")
    try:
        meta.verify_length_and_hashes(data)
    except RepositoryError:
        raise RegistryError(f"{name} is not the file that the snapshot names: restore it from a copy") from None
    found = documents.read(role, data, name)
    if found.signed.version != meta.version:
        raise RegistryError(f"{name} has version {found.signed.version}")
    return found


class AlreadyPublished(Conflict):
    """What is to be published already is."""


@dataclass(frozen=True, slots=True)
class Next:
    """What is to be published: all documents but those of the online roles.

    Attributes:
        before: the present root; None before the first publication.
        root: the root that counts afterwards.
        targets: likewise.
        roles: likewise.
        new: those that are new, by role.
    """

    before: Metadata[Root] | None
    root: Metadata[Root]
    targets: Metadata[Targets]
    roles: dict[str, Metadata[Targets]]
    new: dict[str, Metadata[Any]]


def judge(present: Published | None, change: Change, now: int) -> Next:
    """Decides whether documents may be published.

    Clients read root before everything else, so for a moment they meet the next root with the rest as it was, or the present
    root with the rest as it will be. That is why targets must satisfy both roots.

    Args:
        present: what is published.
        change: what is to be published.
        now: seconds since 1970 UTC.

    Raises:
        Invalid: signatures are missing, a version is not the next one, or something is malformed.
        Conflict: the documents do not fit together, or have expired.
    """
    new = change.documents()
    if present is None:
        if change.root is None or change.targets is None or set(change.roles) != set(PACKAGE_ROLES):
            raise Invalid(
                "nothing is published yet: the first publication needs root, targets, releases and candidate, each signed"
            )
        before, root, targets, roles = None, change.root, change.targets, dict(change.roles)
    else:
        if not new:
            raise Invalid("there is nothing to publish")
        # An earlier run was killed before its last step, or did all of it.
        new = {role: each for role, each in new.items() if each.to_bytes() != present.document(role).to_bytes()}
        if not new:
            raise AlreadyPublished("all of this is published already")
        before = present.root
        root, targets = change.root or before, change.targets or present.targets
        roles = {**present.roles, **change.roles}
    for role, document in new.items():
        _require_next(present, role, document, now)
    if ROOT in new:
        verify_root(before, root)
        if not root.signed.consistent_snapshot:
            raise Invalid("the root must ask for consistent snapshots")
    for each in {id(root): root, id(before): before}.values():
        if each is not None:
            _verify(each.signed, TARGETS, targets)
    if set(documents.delegator_roles(targets.signed)) != set(PACKAGE_ROLES):
        raise Invalid(f"targets must name the roles {' and '.join(PACKAGE_ROLES)}, and no others")
    if targets.signed.targets:
        raise Invalid("targets names packages itself; releases and candidate do that")
    for role in PACKAGE_ROLES:
        _verify(targets.signed, role, roles[role])
        if documents.delegator_roles(roles[role].signed):
            raise Invalid(f"{role} names further roles; it may name packages only")
    packages.check({RELEASES: roles[RELEASES], **roles}, documents.floors_in(targets.signed))
    return Next(before, root, targets, roles, new)


def _require_next(present: Published | None, role: str, document: Metadata[Any], now: int) -> None:
    version = 1 if present is None else present.document(role).signed.version + 1
    if document.signed.version != version:
        raise Conflict(
            f"{role} has version {document.signed.version}, and the next one is {version}: somebody has published meanwhile, "
            "so make the change again from what is published now"
        )
    if document.signed.is_expired(datetime.fromtimestamp(now, UTC)):
        raise Conflict(f"{role} version {document.signed.version} has expired: make it again")
