"""Downloads one package: what arrives is hashed, written and forgotten, so memory does not grow with the package.

The plan decides and judges (updater/plan.py); this file moves bytes.
"""

import hashlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Protocol

from ipc.updatermessages import PROGRESS_S, UpdaterCode

from .clock import Clock
from .failures import UpdateFailed
from .linkclient import Answer
from .pace import Limit, Watch
from .plan import Plan, piece_for
from .staging import Part, Staging, disk_failure

Report = Callable[[int, int], None]
"""Takes the bytes that are on disk and how many there will be."""
REREAD_BYTES = 1024 * 1024


class Source(Protocol):
    """What the link's session offers a download."""

    def get(self, path: str, headers: dict[str, str], max_body: int, watch: Watch) -> AbstractContextManager[Answer]:
        """As `LinkSession.get`."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be downloaded.

    Attributes:
        path: under the repository's base.
        length: bytes, by the signed metadata.
        sha256: by the signed metadata, hex.
    """

    path: str
    length: int
    sha256: str


class Reporter:
    """Reports progress now and then.

    Args:
        report: takes it.
        total: bytes that there will be.
        clock: seconds that pass.
    """

    def __init__(self, report: Report, total: int, clock: Clock) -> None:
        self._report = report
        self._total = total
        self._clock = clock
        self._next = clock.monotonic()

    def at(self, done: int) -> None:
        """Reports, if it is time for it or the package is whole."""
        now = self._clock.monotonic()
        if now >= self._next or done == self._total:
            self._next = now + PROGRESS_S
            self._report(done, self._total)


def download(source: Source, wanted: Wanted, staging: Staging, clock: Clock, report: Report, rate: int | None = None) -> Part:
    """Downloads a package, or the rest of one.

    Args:
        source: a session with the link.
        wanted: path, length and hash.
        staging: has the half package.
        clock: seconds that pass.
        report: takes the progress.
        rate: most bytes a second; None without a limit.

    Returns:
        The whole package, whose length and hash are right; the caller closes it.

    Raises:
        UpdateFailed: it is not whole. What has arrived stays, if it can be used.
    """
    try:
        part = staging.part(wanted.sha256)
    except OSError as error:
        raise disk_failure(error, "the package cannot be kept") from None
    try:
        return _download(source, wanted, part, staging, clock, report, rate)
    except UpdateFailed as failed:
        if failed.code in (UpdaterCode.CHANGED, UpdaterCode.LENGTH, UpdaterCode.DIGEST, UpdaterCode.DAMAGED):
            part.empty()
        part.close()
        raise
    except OSError as error:
        part.close()
        raise disk_failure(error, "the package cannot be written") from None
    except BaseException:
        part.close()
        raise


def _download(
    source: Source, wanted: Wanted, part: Part, staging: Staging, clock: Clock, report: Report, rate: int | None
) -> Part:
    if part.size > wanted.length:
        part.empty()
    digest = _digest_of(part)
    plan = Plan(wanted.length, piece_for(rate), part.size, part.etag)
    staging.check_space(wanted.length - part.size)
    reporter = Reporter(report, wanted.length, clock)
    watch = Watch(clock.monotonic(), rate)
    limit = Limit(rate, clock.monotonic()) if rate is not None else None
    while (ask := plan.next()) is not None:
        with ExitStack() as open_request:
            try:
                request = source.get(wanted.path, dict(ask.headers), ask.part.size, watch)
                answer = open_request.enter_context(request)
            except UpdateFailed as failed:
                raise plan.refused() if failed.code == UpdaterCode.NO_RANGES else failed from None
            plan.answered(answer.status, answer.headers)
            part.note_etag(plan.etag)
            for data in answer.chunks():
                plan.received(len(data))
                part.write(data)
                digest.update(data)
                reporter.at(plan.done)
                now = clock.monotonic()
                watch.received(len(data), now)
                if limit is not None and (pause := limit.spent(len(data), now)):
                    clock.sleep(pause)
                    watch.paused(pause)
            plan.ended()
    if digest.hexdigest() != wanted.sha256:
        if plan.resumed:
            raise UpdateFailed(
                UpdaterCode.DAMAGED, "what an earlier download had brought does not fit the rest; it was dropped"
            )
        raise UpdateFailed(
            UpdaterCode.DIGEST, f"the file in the repository has the SHA-256 {digest.hexdigest()}, not {wanted.sha256}"
        )
    return part


def _digest_of(part: Part) -> "hashlib._Hash":
    """The hash of what is on disk, to go on with."""
    digest, at = hashlib.sha256(), 0
    buffer = bytearray(REREAD_BYTES)
    view = memoryview(buffer)
    while at < part.size:
        count = os.preadv(part.descriptor, [view[: min(REREAD_BYTES, part.size - at)]], at)
        if not count:
            raise UpdateFailed(UpdaterCode.DAMAGED, "what an earlier download had brought cannot be read whole; it was dropped")
        digest.update(view[:count])
        at += count
    return digest
