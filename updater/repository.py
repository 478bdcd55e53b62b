"""Reads the update repository through the link: its metadata by updatetrust's client, and where a package lies in it."""

from collections.abc import Iterator
from pathlib import Path

from ipc.linkmessages import CHUNK_BYTES
from ipc.updatermessages import UpdaterCode
from updatetrust.client import NotThere, RepositoryUnreachable, refresh
from updatetrust.metadata import MetadataRefused, VerifiedTargets
from updatetrust.metadatafiles import MAX_ROLE_BYTES, MetadataFiles

from .clock import Clock
from .failures import UpdateFailed
from .linkclient import LinkSession
from .pace import Watch
from .staging import disk_failure

METADATA_TIMEOUT_MS = 120_000


def refused(error: MetadataRefused, *, network: bool = True) -> UpdateFailed:
    """The failure of an order for metadata that does not count.

    Args:
        network: it comes from the repository, whose mirror can show what it likes: no failed attempt of an update.
    """
    return UpdateFailed(error.fault.value, f"the repository's metadata is refused: {error.text}"[:500], network)


def package_path(target: str, sha256: str) -> str:
    """Where a package lies: in repositories with consistent snapshots the digest is a part of the file's name (TUF 1.0, 6.2).

    Args:
        target: as the metadata names it, `<product>/<file>`.
        sha256: of the package.
    """
    folder, _, name = target.rpartition("/")
    return f"/targets/{folder}/{sha256}.{name}"


class _Source:
    """Files of the repository. Remembers the failure that python-tuf puts into words of its own."""

    def __init__(self, session: LinkSession, clock: Clock) -> None:
        self._session = session
        self._clock = clock
        self.failed: UpdateFailed | None = None

    def __call__(self, path: str) -> Iterator[bytes]:
        try:
            watch = Watch(self._clock.monotonic())
            with self._session.get(f"/{path}", {}, MAX_ROLE_BYTES + CHUNK_BYTES, watch, METADATA_TIMEOUT_MS) as answer:
                for data in answer.chunks():
                    watch.received(len(data), self._clock.monotonic())
                    if answer.status == 200:  # what a server says of an error is read, so that the session can go on
                        yield data
            # A store of objects answers 403 for what is not there, unless one may list it.
            if answer.status in (403, 404):
                raise NotThere(path)
            if answer.status != 200:
                raise UpdateFailed(UpdaterCode.STATUS, f"the repository answered with status {answer.status} for {path}")
        except UpdateFailed as failed:
            self.failed = failed
            raise


def read_repository(
    session: LinkSession, directory: Path, bootstrap: bytes, now: int, target: str | None, clock: Clock
) -> tuple[VerifiedTargets, MetadataFiles]:
    """Brings the metadata to its newest state.

    Args:
        session: with the link.
        directory: keeps the metadata for the next time; it is there, and tidy (`Staging.tidy_metadata`).
        bootstrap: the root that the trust begins with.
        now: seconds since 1970 UTC.
        target: that the caller will ask for; None for a look at all of it.
        clock: seconds that pass.

    Raises:
        UpdateFailed: it does not arrive, or does not count.
    """
    source = _Source(session, clock)
    try:
        return refresh(directory, source, bootstrap, now, None if target is None else (target,))
    except MetadataRefused as error:
        raise refused(error) from None
    except RepositoryUnreachable as error:
        raise source.failed or UpdateFailed(UpdaterCode.UNREACHABLE, str(error)[:500]) from None
    except OSError as error:
        raise disk_failure(error, "the repository's metadata cannot be kept") from None
