"""Reads the update repository by python-tuf's client, which checks what the installer cannot: that the metadata is fresh.

The trust begins at each start with the caller's root, never with what is on the disk. python-tuf has no public parameter for
the time, so `_trusted_set.reference_time` is set; a test fails if a release no longer uses it. Its own download copies by way
of a temporary file and is not used.
"""

import re
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import TargetFile
from tuf.api.serialization import DeserializationError, SerializationError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from .metadata import Fault, KeptVersions, MetadataRefused, VerifiedTargets, verify_offline
from .metadatafiles import (
    MAX_ROLE_BYTES,
    MAX_ROLES,
    MAX_ROOT_BYTES,
    MAX_ROOTS,
    MAX_SNAPSHOT_BYTES,
    MAX_TIMESTAMP_BYTES,
    BadMetadataFiles,
    MetadataFiles,
    read_bounded,
)

_BOUNDS = UpdaterConfig(
    max_root_rotations=MAX_ROOTS - 1,
    max_delegations=MAX_ROLES,
    root_max_length=MAX_ROOT_BYTES,
    timestamp_max_length=MAX_TIMESTAMP_BYTES,
    snapshot_max_length=MAX_SNAPSHOT_BYTES,
    targets_max_length=MAX_ROLE_BYTES,
)
_FAULTS: list[tuple[type[Exception], Fault]] = [
    (UnsignedMetadataError, Fault.NOT_SIGNED),
    (BadVersionNumberError, Fault.ROLLED_BACK),
    (ExpiredMetadataError, Fault.EXPIRED),
    (LengthOrHashMismatchError, Fault.MISMATCHED),
    (DownloadLengthMismatchError, Fault.TOO_LARGE),
    (RepositoryError, Fault.MALFORMED),
]


class _Updater(Updater):
    """python-tuf's client without the symbolic link that it keeps to the newest root.

    With a bootstrap nothing reads the link, and the updater's process may not make one, since root reads in its directory.
    """

    def _update_root_symlink(self) -> None:
        pass


class NotThere(Exception):
    """The repository has no such file."""


class RepositoryUnreachable(Exception):
    """A file did not arrive. It is no failed attempt: nothing was found wrong with the update."""


Source = Callable[[str], Iterator[bytes]]
"""Yields a file of the repository in pieces, by its path as `metadata/timestamp.json`. Raises NotThere if there is none; any
other exception means that it did not arrive."""


class Repository:
    """The update repository, as one look at it finds it. Not to be used again for a second look.

    Args:
        directory: keeps what was verified, for the next look; one process at a time may use it.
        source: reads the repository.
        bootstrap: the root that the trust begins with.
        now: seconds since 1970 UTC.

    Raises:
        MetadataRefused: `bootstrap` is no root that has signed itself.
    """

    def __init__(self, directory: Path, source: Source, bootstrap: bytes, now: int) -> None:
        self._directory = directory
        self._bootstrap = bootstrap
        self._now = now
        try:
            self._updater = _Updater(str(directory), "metadata/", fetcher=_Fetcher(source), config=_BOUNDS, bootstrap=bootstrap)
        except RepositoryError as error:
            raise _refused(error) from None
        self._updater._trusted_set.reference_time = datetime.fromtimestamp(now, UTC)

    def refresh(self) -> None:
        """Brings root, timestamp, snapshot and top-level targets to the newest state.

        Raises:
            MetadataRefused: the repository's metadata does not count, or is not fresh.
            RepositoryUnreachable: a file did not arrive.
            OSError: the directory cannot be written.
        """
        try:
            self._updater.refresh()
        except (RepositoryError, DownloadError) as error:
            raise _refused(error) from None

    def look_up(self, path: str) -> TargetFile | None:
        """What the repository says of a target; reads the roles that it is delegated to. Raises as `refresh`."""
        try:
            return self._updater.get_targetinfo(path)
        except (RepositoryError, DownloadError) as error:
            raise _refused(error) from None

    def delegated_paths(self) -> tuple[str, ...]:
        """Paths of which each is one that the top-level targets delegate to somebody; no target needs to have them."""
        known = self._updater._trusted_set.targets.delegations
        roles = () if known is None or known.roles is None else known.roles.values()
        return tuple(re.sub(r"[*?]", "x", pattern) for role in roles for pattern in role.paths or ())

    def root_version(self) -> int:
        """The version of the newest root that is trusted; `root_history/N.root.json` in the directory is that root."""
        version: int = self._updater._trusted_set.root.version
        return version

    def has_consistent_snapshots(self) -> bool:
        """Whether a target's address has its digest (`Target.address`); the project's own repositories always do."""
        return self._updater._trusted_set.root.consistent_snapshot is True

    def files(self) -> MetadataFiles:
        """The metadata that was verified: to stage it beside a package. Raises OSError."""
        trusted = self._updater._trusted_set
        known = trusted.targets.delegations
        roles = () if known is None else known.roles or ()
        try:
            return MetadataFiles(
                roots={
                    number: read_bounded(self._directory / "root_history" / f"{number}.root.json", MAX_ROOT_BYTES)
                    for number in range(1, trusted.root.version + 1)
                    if (self._directory / "root_history" / f"{number}.root.json").exists()
                },
                timestamp=self._read("timestamp", MAX_TIMESTAMP_BYTES),
                snapshot=self._read("snapshot", MAX_SNAPSHOT_BYTES),
                targets=self._read("targets", MAX_ROLE_BYTES),
                roles={name: self._read(name, MAX_ROLE_BYTES) for name in roles if trusted.contains(name, "targets")},
            )
        except BadMetadataFiles as error:
            raise MetadataRefused(Fault.MALFORMED, str(error)) from None

    def verified(self, kept: KeptVersions) -> VerifiedTargets:
        """What the installer will find, by the same rules and the present time. Raises as `verify_offline`."""
        return verify_offline(self.files(), self._bootstrap, kept, self._now)

    def _read(self, role: str, limit: int) -> bytes:
        return read_bounded(self._directory / f"{quote(role, '')}.json", limit)


def refresh(
    directory: Path, source: Source, bootstrap: bytes, now: int, paths: Collection[str] | None = ()
) -> tuple[VerifiedTargets, MetadataFiles]:
    """Brings the metadata to the newest state, and verifies it once more as the installer will.

    Args:
        directory: as in `Repository`.
        source: as in `Repository`.
        bootstrap: as in `Repository`.
        now: as in `Repository`.
        paths: targets that the caller will ask for; the roles that they are delegated to are read. None for all that are
            delegated.

    Returns:
        What the metadata says, and its files.

    Raises:
        MetadataRefused: the repository's metadata does not count, or is not fresh.
        RepositoryUnreachable: a file did not arrive.
        OSError: the directory cannot be written.
    """
    repository = Repository(directory, source, bootstrap, now)
    repository.refresh()
    for path in repository.delegated_paths() if paths is None else paths:
        repository.look_up(path)
    # Versions that went back were refused by the comparison with what is in the directory.
    return repository.verified(KeptVersions()), repository.files()


def _refused(error: Exception) -> Exception:
    if isinstance(error, DeserializationError | SerializationError):
        # python-tuf's words for it name its own functions, or nothing.
        return MetadataRefused(Fault.MALFORMED, "a file of it is not JSON of the form that TUF gives it")
    for kind, fault in _FAULTS:
        if isinstance(error, kind):
            return MetadataRefused(fault, str(error)[:300] or type(error).__name__)
    cause = error.__cause__
    return RepositoryUnreachable(str(error) if cause is None else f"{error}: {cause}")


class _Fetcher(FetcherInterface):
    """Reads files in memory, each within its bound."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def _fetch(self, url: str) -> Iterator[bytes]:
        return self._source(url)

    def download_bytes(self, url: str, max_length: int) -> bytes:
        data = bytearray()
        try:
            for piece in self._source(url):
                data += piece
                if len(data) > max_length:
                    raise DownloadLengthMismatchError(f"{url} has more than {max_length:,} bytes")
        except NotThere:
            raise DownloadHTTPError(f"the repository has no {url}", 404) from None
        except DownloadError:
            raise
        except Exception as error:  # whatever a source raises, the file did not arrive
            raise DownloadError(f"{url} did not arrive") from error
        return bytes(data)
