"""Makes snapshot and timestamp for what is to be published. Pure: keys come as signers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from server.base.errors import RegistryError

from . import documents
from .published import Next, Published, file_name
from .words import ONLINE, PACKAGE_ROLES, RENEW_AHEAD_S, SNAPSHOT, TARGETS, TIMESTAMP

T = TypeVar("T", Snapshot, Timestamp)
Signers = Mapping[str, Sequence[Signer]]
"""By role: every online key that the server has, also those that only an earlier or a later root names."""


@dataclass(frozen=True, slots=True)
class Written:
    """A metadata file to be written."""

    name: str
    data: bytes


def files_of(present: Published | None, coming: Next, signers: Signers, now: int) -> list[Written]:
    """The metadata files of a publication, in the order in which they have to be written.

    A client reads root, timestamp, snapshot, targets, packages. So they are written in the opposite order, where nothing names
    what is not there yet; timestamp is what publishes. A new root comes behind it, because the root says who may sign
    timestamp: the new timestamp has the signatures that both roots ask for, the earlier one might not.

    Raises:
        RegistryError: the server has not the keys that the roots name.
    """
    files = [_written(role, coming.new[role]) for role in (*PACKAGE_ROLES, TARGETS) if role in coming.new]
    roots = [coming.root.signed] if coming.before in (None, coming.root) else [coming.before.signed, coming.root.signed]
    snapshot = new_snapshot(present, {TARGETS: coming.targets, **coming.roles}, roots, signers[SNAPSHOT], now)
    timestamp = new_timestamp(present, snapshot, roots, signers[TIMESTAMP], now)
    files.append(_written(SNAPSHOT, snapshot))
    root = [_written("root", coming.root)] if coming.root is not coming.before else []
    if present is None:
        # Without timestamp there is no repository yet, and with it there has to be everything.
        return [*root, *files, _written(TIMESTAMP, timestamp)]
    return [*files, _written(TIMESTAMP, timestamp), *root]


def renewed(present: Published, signers: Signers, now: int, *, force: bool = False) -> list[Written]:
    """The files that have to be signed again because they end soon, in the order in which they have to be written.

    Args:
        present: what is published.
        signers: see `Signers`.
        now: seconds since 1970 UTC.
        force: whether to sign both again in any case.

    Raises:
        RegistryError: the server has not the keys that the root names.
    """
    ends = present.ends()
    due = {role: force or ends[role] - now <= RENEW_AHEAD_S[role] for role in ONLINE}
    if not any(due.values()):
        return []
    roots = [each.signed for each in present.roots[-2:]]
    snapshot, files = present.snapshot, []
    if due[SNAPSHOT]:
        snapshot = new_snapshot(present, {TARGETS: present.targets, **present.roles}, roots, signers[SNAPSHOT], now)
        files.append(_written(SNAPSHOT, snapshot))
    return [*files, _written(TIMESTAMP, new_timestamp(present, snapshot, roots, signers[TIMESTAMP], now))]


def new_snapshot(
    present: Published | None,
    named: Mapping[str, Metadata[Targets]],
    roots: Sequence[Root],
    signers: Sequence[Signer],
    now: int,
    lasts_s: int | None = None,
) -> Metadata[Snapshot]:
    """The next snapshot, signed.

    Args:
        present: what is published; None before the first publication.
        named: targets and the roles for packages.
        roots: that it has to satisfy.
        signers: every key that the server has for it.
        now: seconds since 1970 UTC.
        lasts_s: how long it is valid, in seconds; None for the lifetime of its role.

    Raises:
        RegistryError: the server has not the keys that the roots name.
    """
    version = 1 if present is None else present.snapshot.signed.version + 1
    meta = {f"{role}.json": _meta(document) for role, document in named.items()}
    made = Metadata(Snapshot(version, None, documents.expiry(SNAPSHOT, now, lasts_s), meta))
    return _signed(made, SNAPSHOT, roots, signers)


def new_timestamp(
    present: Published | None,
    snapshot: Metadata[Snapshot],
    roots: Sequence[Root],
    signers: Sequence[Signer],
    now: int,
    lasts_s: int | None = None,
) -> Metadata[Timestamp]:
    """The next timestamp, signed. As `new_snapshot`."""
    version = 1 if present is None else present.timestamp.signed.version + 1
    made = Metadata(Timestamp(version, None, documents.expiry(TIMESTAMP, now, lasts_s), _meta(snapshot)))
    return _signed(made, TIMESTAMP, roots, signers)


def _meta(document: Metadata[Any]) -> MetaFile:
    return MetaFile.from_data(document.signed.version, document.to_bytes(), ["sha256"])


def _signed(document: Metadata[T], role: str, roots: Sequence[Root], signers: Sequence[Signer]) -> Metadata[T]:
    ids = {keyid for root in roots for keyid in root.roles[role].keyids}
    documents.sign(document, [signer for signer in signers if signer.public_key.keyid in ids])
    for root in roots:
        if not root.get_verification_result(role, document.signed_bytes, document.signatures).verified:
            raise RegistryError(
                f"root version {root.version} names {role} keys that this registry does not have: restore the registry that "
                "has them, or publish a root with this one's keys ('license-server ota keys' lists them)"
            )
    return document


def _written(role: str, document: Metadata[Any]) -> Written:
    return Written(file_name(role, document.signed.version), document.to_bytes())
