"""Downloads against a repository that behaves as a test says: what breaks off goes on, what lies is refused."""

import hashlib
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from ipc.byteranges import ByteRange, parse_range
from ipc.linkmessages import CHUNK_BYTES, MAX_ANSWER_BYTES
from ipc.updatermessages import UpdaterCode
from tests.support.repository import Repository, Response, StillClock
from updater import download as module
from updater import plan
from updater.download import REREAD_BYTES, Wanted, download
from updater.failures import UpdateFailed
from updater.pace import Watch
from updater.staging import PACKAGE, RESERVE_BYTES, Staging

DATA = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(10_000))  # 320,000 bytes
SHA256 = hashlib.sha256(DATA).hexdigest()
PATH = f"/targets/pos/{SHA256}.pos.tar"
WANTED = Wanted(PATH, len(DATA), SHA256)
Spoil = Callable[[Repository, Response], Response]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "updater"
    place.mkdir(mode=0o700)
    return place


@pytest.fixture
def staging(place: Path) -> Iterator[Staging]:
    staging = Staging(place)
    yield staging
    staging.close()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 100,000 bytes, so that there are some."""
    monkeypatch.setattr(module, "piece_for", lambda _rate: 100_000)


def get(repository: Repository, staging: Staging, wanted: Wanted = WANTED, **more: Any) -> list[tuple[int, int]]:
    reports: list[tuple[int, int]] = []
    part = download(repository, wanted, staging, StillClock(), lambda *at: reports.append(at), **more)  # type: ignore[arg-type]
    staging.stage(wanted.sha256, part, {"directive.jws": b"d", "metadata/timestamp.json": b"{}"})
    part.close()
    return reports


def failure(repository: Repository, staging: Staging, wanted: Wanted = WANTED) -> UpdateFailed:
    with pytest.raises(UpdateFailed) as caught:
        get(repository, staging, wanted)
    return caught.value


def kept(place: Path) -> int:
    """Bytes of the half package."""
    part = place / "partial" / f"{SHA256}.part"
    return part.stat().st_size if part.exists() else -1


def broken_off(after: int) -> Spoil:
    """The first answer breaks off after so many pieces, as when the link's hour is over."""

    def spoil(_: Repository, response: Response) -> Response:
        def stop() -> None:
            raise UpdateFailed(UpdaterCode.LINK, "the link broke off")

        return replace(response, pieces=[*response.pieces[:after], stop])

    return spoil


def test_a_package_comes_in_parts_and_gets_its_place(place: Path, staging: Staging) -> None:
    repository = Repository({PATH: DATA})
    reports = get(repository, staging)
    assert [headers.get("range") for _, headers in repository.asked] == [
        "bytes=0-99999",
        "bytes=100000-199999",
        "bytes=200000-299999",
        "bytes=300000-319999",
    ]
    assert [headers.get("if-range") for _, headers in repository.asked] == [None, '"tag-1"', '"tag-1"', '"tag-1"']
    where = place / "staged" / SHA256
    assert (where / PACKAGE).read_bytes() == DATA and (where / "metadata/timestamp.json").read_bytes() == b"{}"
    assert reports[-1] == (len(DATA), len(DATA)) and len(reports) == 2, "half a second has not passed in between"
    assert staging.names() == [SHA256] and os.listdir(place / "partial") == []
    assert {path.stat().st_mode & 0o077 for path in place.rglob("*")} == {0}


def test_a_small_package_comes_in_one_request_even_from_a_server_without_ranges(
    staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "piece_for", plan.piece_for)
    repository = Repository({PATH: DATA}, etag=None, ranges=False)
    get(repository, staging)
    assert repository.asked == [(PATH, {})]


def test_what_breaks_off_goes_on_from_there(place: Path, staging: Staging) -> None:
    assert failure(Repository({PATH: DATA}, spoil=broken_off(2)), staging).network
    assert kept(place) == 2 * CHUNK_BYTES
    repository = Repository({PATH: DATA})
    get(repository, staging)
    assert repository.asked[0] == (PATH, {"range": "bytes=65536-165535", "if-range": '"tag-1"'})
    assert (place / "staged" / SHA256 / PACKAGE).read_bytes() == DATA


def test_a_file_that_changed_meanwhile_is_dropped_and_comes_anew(place: Path, staging: Staging) -> None:
    failure(Repository({PATH: DATA}, spoil=broken_off(2)), staging)
    changed = Repository({PATH: DATA}, etag='"tag-2"')
    failed = failure(changed, staging)
    assert (failed.code, failed.network) == (UpdaterCode.CHANGED, True) and kept(place) == 0
    get(changed, staging)


def _other_etag(repository: Repository, response: Response) -> Response:
    """From the second part on, the file is another one, and the server does not care for If-Range."""
    return replace(response, headers={**response.headers, "etag": f'"{len(repository.asked)}"'})


def _other_part(_: Repository, response: Response) -> Response:
    return replace(response, headers={**response.headers, "content-range": f"bytes 0-9/{len(DATA)}"})


def _other_bytes(_: Repository, response: Response) -> Response:
    """The right part with the right tag, and other bytes in it."""
    return replace(response, pieces=[bytes(len(piece)) if isinstance(piece, bytes) else piece for piece in response.pieces])


def _endless(_: Repository, response: Response) -> Response:
    return replace(response, pieces=[b"x" * CHUNK_BYTES] * 1000)


def _truncated(_: Repository, response: Response) -> Response:
    return replace(response, pieces=response.pieces[:-1])


def _whole(_: Repository, response: Response) -> Response:
    return Response(200, {"content-length": str(len(DATA))}, response.pieces)


def _refused(code: UpdaterCode) -> Spoil:
    def spoil(_: Repository, response: Response) -> Response:
        raise UpdateFailed(code, "by the link")

    return spoil


@pytest.mark.parametrize(
    ("spoil", "code", "left"),
    [
        (_other_etag, UpdaterCode.CHANGED, 0),
        (_other_part, UpdaterCode.NO_RANGES, 0),
        (_other_bytes, UpdaterCode.DIGEST, 0),
        (_endless, UpdaterCode.TOO_LONG, 3 * CHUNK_BYTES),
        (_truncated, UpdaterCode.BAD_RESPONSE, 3 * CHUNK_BYTES),
        (_whole, UpdaterCode.NO_RANGES, 0),
        (_refused(UpdaterCode.REDIRECT), UpdaterCode.REDIRECT, 0),
        (_refused(UpdaterCode.NO_RANGES), UpdaterCode.NO_RANGES, 0),
    ],
)
def test_a_server_that_lies_is_no_failed_attempt_and_fills_no_disk(
    place: Path, staging: Staging, spoil: Spoil, code: UpdaterCode, left: int
) -> None:
    failed = failure(Repository({PATH: DATA}, spoil=spoil), staging)
    assert (failed.code, failed.network, kept(place)) == (code, True, left)
    assert staging.names() == []


def test_another_content_is_refused_and_nothing_of_it_stays(place: Path, staging: Staging) -> None:
    failed = failure(Repository({PATH: DATA[:-1] + b"?"}), staging)
    assert (failed.code, failed.network, kept(place)) == (UpdaterCode.DIGEST, True, 0)
    failed = failure(Repository({PATH: DATA + b"?"}), staging)
    assert (failed.code, failed.network, kept(place)) == (UpdaterCode.LENGTH, True, 0)
    assert staging.names() == []


def test_a_damaged_half_is_dropped_without_blaming_the_repository(place: Path, staging: Staging) -> None:
    failure(Repository({PATH: DATA}, spoil=broken_off(2)), staging)
    (place / "partial" / f"{SHA256}.part").write_bytes(bytes(2 * CHUNK_BYTES))  # as after a power cut
    failed = failure(Repository({PATH: DATA}), staging)
    assert (failed.code, failed.network, kept(place)) == (UpdaterCode.DAMAGED, True, 0)
    (place / "partial" / f"{SHA256}.part").write_bytes(DATA + b"more")
    get(Repository({PATH: DATA}), staging)


def test_a_rest_with_other_bytes_is_dropped_with_what_was_there(place: Path, staging: Staging) -> None:
    failure(Repository({PATH: DATA}, spoil=broken_off(2)), staging)
    failed = failure(Repository({PATH: DATA}, spoil=_other_bytes), staging)
    assert (failed.code, failed.network, kept(place)) == (UpdaterCode.DAMAGED, True, 0)
    get(Repository({PATH: DATA}), staging)
    assert staging.names() == [SHA256]


def test_a_server_that_drips_is_given_up(place: Path, staging: Staging) -> None:
    clock = StillClock()

    def drip(_: Repository, response: Response) -> Response:
        def wait() -> None:
            clock.now += 1.0

        return replace(response, pieces=[wait, b"x"] * 1000)

    with pytest.raises(UpdateFailed) as caught:
        download(Repository({PATH: DATA}, spoil=drip), WANTED, staging, clock, lambda *_: None)  # type: ignore[arg-type]
    assert caught.value.code == UpdaterCode.SLOW and clock.now == 1060.0


def test_the_bandwidth_limit_holds(staging: Staging) -> None:
    clock = StillClock()
    part = download(Repository({PATH: DATA}), WANTED, staging, clock, lambda *_: None, 16_000)  # type: ignore[arg-type]
    part.close()
    assert clock.slept == pytest.approx(len(DATA) / 16_000, abs=0.3)


def test_memory_does_not_grow_with_the_package(place: Path, staging: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "piece_for", plan.piece_for)
    piece = b"p" * CHUNK_BYTES

    def peak(count: int) -> int:
        digest = hashlib.sha256()
        for _ in range(count):
            digest.update(piece)
        wanted = Wanted(PATH, count * CHUNK_BYTES, digest.hexdigest())

        class Endless(Repository):
            @contextmanager
            def get(
                self, path: str, headers: dict[str, str], max_body: int, watch: Watch, timeout_ms: int = 0
            ) -> Iterator[Any]:
                part = parse_range(headers.get("range", "")) or ByteRange(0, wanted.length - 1)
                found = {"content-range": f"bytes {part.first}-{part.last}/{wanted.length}"}
                response = Response(206 if "range" in headers else 200, found, [])
                monkeypatch.setattr(response, "chunks", lambda: repeat(piece, part.size // CHUNK_BYTES))
                yield response

        tracemalloc.start()
        download(Endless({}), wanted, staging, StillClock(), lambda *_: None).close()  # type: ignore[arg-type]
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    small, large = peak(32), peak(3 * MAX_ANSWER_BYTES // CHUNK_BYTES)
    assert large < small + 64 * 1024 < 2 * REREAD_BYTES, f"{small} bytes for 1 MiB, {large} for 192 MiB"


def test_a_full_disk_is_seen_before_and_during(place: Path, staging: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    space = os.statvfs(place)
    greater = (space.f_bavail * space.f_frsize - RESERVE_BYTES) + 2**30
    huge = Wanted(PATH, greater, SHA256)
    repository = Repository({PATH: DATA})
    failed = failure(repository, staging, huge)
    assert (failed.code, failed.network, repository.asked) == (UpdaterCode.NO_SPACE, False, [])

    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "pwrite", full)
    assert failure(repository, staging).code == UpdaterCode.NO_SPACE


def test_links_in_the_directory_lead_nowhere(place: Path, staging: Staging, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_bytes(b"untouched")
    (place / "partial" / f"{SHA256}.part").symlink_to(victim)
    (place / "partial" / f"{SHA256}.etag").symlink_to(victim)
    (place / "staged" / SHA256).symlink_to(folder)
    (place / "staged" / f".{SHA256}.new").symlink_to(folder)
    get(Repository({PATH: DATA}), staging)
    assert not (place / "staged" / SHA256).is_symlink() and (place / "staged" / SHA256 / PACKAGE).read_bytes() == DATA
    (place / "partial" / f"{SHA256}.part").hardlink_to(victim)
    (place / "partial" / "other").symlink_to(folder)
    staging.discard(frozenset())
    (place / "partial" / f"{SHA256}.part").hardlink_to(victim)
    get(Repository({PATH: DATA}), staging)
    (place / "staged" / "x").symlink_to(folder)
    staging.discard(frozenset())
    assert os.listdir(place / "staged") == os.listdir(place / "partial") == []
    assert victim.read_bytes() == (folder / "file").read_bytes() == b"untouched"


@pytest.mark.parametrize("kind", ["mode", "link"])
def test_a_directory_that_is_not_ours_alone_is_refused(place: Path, tmp_path: Path, kind: str) -> None:
    if kind == "mode":
        place.chmod(0o750)
    else:
        (tmp_path / "link").symlink_to(place)
    with pytest.raises(UpdateFailed) as caught:
        Staging(place if kind == "mode" else tmp_path / "link")
    assert caught.value.code == UpdaterCode.DISK


def test_a_package_that_is_staged_gets_new_papers(place: Path, staging: Staging) -> None:
    get(Repository({PATH: DATA}), staging)
    staging.stage(SHA256, None, {"directive.jws": b"newer"})
    where = place / "staged" / SHA256
    assert sorted(os.listdir(where)) == ["directive.jws", PACKAGE] and (where / PACKAGE).read_bytes() == DATA
    assert (where / "directive.jws").read_bytes() == b"newer" and (where / PACKAGE).stat().st_nlink == 1


def test_one_half_package_is_kept_and_no_other(place: Path, staging: Staging) -> None:
    failure(Repository({PATH: DATA}, spoil=broken_off(2)), staging)
    other = Wanted("/targets/pos/x", 5, hashlib.sha256(b"other").hexdigest())
    get(Repository({other.path: b"other"}), staging, other)
    assert os.listdir(place / "partial") == [] and staging.names() == [other.sha256]
