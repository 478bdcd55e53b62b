"""The updater's look at the repository: fresh by the time it is given, from the caller's root at each start, within bounds."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tufrepository import RELEASES, UpdateRepository, signer
from tests.updatetrust.facts import CUSTOM
from tests.vectors.make_directive import CONTENT, NOW, PACKAGE
from updatetrust.client import Repository, RepositoryUnreachable, refresh
from updatetrust.metadata import Fault, KeptVersions, MetadataRefused, verify_offline
from updatetrust.metadatafiles import MAX_ROOT_BYTES, MAX_ROOTS, parse_names

PATH = CONTENT["target"]
DAY = 86_400
LATER = 4_000_000_000  # 2096: no clock of a machine that runs this test says so


def published(now: int = NOW) -> UpdateRepository:
    repository = UpdateRepository(now)
    repository.publish(PATH, PACKAGE, CUSTOM)
    return repository


@pytest.mark.parametrize("now", [0, 946_684_800, NOW, LATER])
def test_python_tuf_takes_the_time_that_it_is_given(tmp_path: Path, now: int) -> None:
    """The contract with its private `_trusted_set.reference_time`: whatever the machine's clock says, only `now` counts."""
    repository = published(now)
    assert refresh(tmp_path, repository.source, repository.bootstrap, now + 2 * DAY - 1, [PATH])[0].find(PATH) is not None
    with pytest.raises(MetadataRefused, match="expired") as caught:
        refresh(tmp_path, repository.source, repository.bootstrap, now + 2 * DAY, [PATH])
    assert caught.value.fault is Fault.EXPIRED


def test_what_is_on_the_disk_is_no_trust(tmp_path: Path) -> None:
    """Somebody who wrote the directory has put a repository of their own there, root and all."""
    ours, theirs = published(), UpdateRepository(NOW)
    for role in ("root", "targets", RELEASES, "snapshot", "timestamp"):
        theirs.replace_keys(role, f"attacker-{role}-0", f"attacker-{role}-1")
    theirs.sign()
    theirs.bootstrap = theirs.history["metadata/1.root.json"]
    theirs.publish(PATH, b"malware", CUSTOM)
    refresh(tmp_path, theirs.source, theirs.bootstrap, NOW, [PATH])
    found = refresh(tmp_path, ours.source, ours.bootstrap, NOW, [PATH])[0].find(PATH)
    assert found is not None and found.sha256 == CONTENT["sha256"]


@pytest.mark.parametrize(
    "name", ["timestamp.json", "snapshot.json", "targets.json", "releases.json", "root_history/1.root.json"]
)
def test_a_spoiled_file_on_the_disk_is_read_again(tmp_path: Path, name: str) -> None:
    repository = published()
    repository.new_root()
    before = refresh(tmp_path, repository.source, repository.bootstrap, NOW, [PATH])
    (tmp_path / name).write_bytes(b"\0" * 100)
    assert refresh(tmp_path, repository.source, repository.bootstrap, NOW, [PATH])[0].kept == before[0].kept


def test_it_makes_no_link(tmp_path: Path) -> None:
    """The updater's profile forbids links, so python-tuf's private `_update_root_symlink` must stay replaced."""
    repository = published()
    repository.new_root()
    refresh(tmp_path, repository.source, repository.bootstrap, NOW, [PATH])
    assert [path for path in tmp_path.rglob("*") if path.is_symlink()] == []
    assert {path.name for path in tmp_path.iterdir()} == {
        "root_history", "timestamp.json", "snapshot.json", "targets.json", "releases.json",
    }  # fmt: skip


def test_its_files_are_what_the_installer_verifies(tmp_path: Path) -> None:
    repository = published()
    repository.new_root(repository.replace_keys("root", "next0", "next1", "next2"))
    verified, files = refresh(tmp_path, repository.source, repository.bootstrap, NOW, [PATH])
    assert verify_offline(files, repository.bootstrap, KeptVersions(), NOW).find(PATH) == verified.find(PATH)
    assert sorted(files.by_name()) == [
        "1.root.json", "2.root.json", "releases.json", "snapshot.json", "targets.json", "timestamp.json",
    ]  # fmt: skip


def test_roles_that_nobody_asked_for_are_not_read(tmp_path: Path) -> None:
    repository = published()
    asked: list[str] = []

    def source(path: str) -> Iterator[bytes]:
        asked.append(path)
        return repository.source(path)

    verified, files = refresh(tmp_path, source, repository.bootstrap, NOW)
    assert asked == ["metadata/2.root.json", "metadata/timestamp.json", "metadata/2.snapshot.json", "metadata/1.targets.json"]
    assert files.roles == {} and verified.floors
    asked.clear()
    refresh(tmp_path, source, repository.bootstrap, NOW, [PATH])
    assert asked == ["metadata/2.root.json", "metadata/timestamp.json", "metadata/2.releases.json"]


def test_a_file_that_does_not_arrive_is_no_fault_of_the_update(tmp_path: Path) -> None:
    repository = published()

    def broken(path: str) -> Iterator[bytes]:
        yield next(repository.source(path))[:10]
        raise ConnectionError("the link is gone")

    for source in (broken, lambda path: broken(path) if "snapshot" in path else repository.source(path)):
        with pytest.raises(RepositoryUnreachable, match="did not arrive: the link is gone"):
            refresh(tmp_path, source, repository.bootstrap, NOW)


def test_a_file_that_is_not_there_is_no_fault_of_the_update(tmp_path: Path) -> None:
    repository = published()
    del repository.history["metadata/timestamp.json"]
    with pytest.raises(RepositoryUnreachable, match=r"has no metadata/timestamp.json"):
        refresh(tmp_path, repository.source, repository.bootstrap, NOW)


@pytest.mark.parametrize("name", ["metadata/2.root.json", "metadata/timestamp.json", "metadata/2.snapshot.json"])
def test_endless_data_is_read_no_further_than_its_bound(tmp_path: Path, name: str) -> None:
    repository, read = published(), [0]

    def endless(path: str) -> Iterator[bytes]:
        while path == name:
            read[0] += 4096
            yield b" " * 4096
        yield from repository.source(path)

    with pytest.raises(MetadataRefused) as caught:
        refresh(tmp_path, endless, repository.bootstrap, NOW)
    assert caught.value.fault is Fault.TOO_LARGE and read[0] <= MAX_ROOT_BYTES + 4096


def test_no_more_roots_are_followed_than_allowed(tmp_path: Path) -> None:
    """Each is signed by the vendor; with a new one for ever, a look at the repository would never end."""
    repository = published()
    for _ in range(MAX_ROOTS + 2):
        repository.root.version += 1
        repository._write("root", repository.root, repository.signers["root"])
    verified, files = refresh(tmp_path, repository.source, repository.bootstrap, NOW, [PATH])
    assert verified.kept.root == len(files.roots) == MAX_ROOTS
    assert parse_names(files.by_name()) == files


@pytest.mark.parametrize("bootstrap", [b"", b"{}", b'{"signed": {"_type": "root"}, "signatures": []}'])
def test_a_root_that_is_none_is_refused(tmp_path: Path, bootstrap: bytes) -> None:
    with pytest.raises(MetadataRefused):
        Repository(tmp_path, published().source, bootstrap, NOW)


def test_a_root_that_has_not_signed_itself_is_refused(tmp_path: Path) -> None:
    repository = published()
    content = json.loads(repository.bootstrap)
    content["signatures"] = content["signatures"][:1]
    with pytest.raises(MetadataRefused) as caught:
        Repository(tmp_path, repository.source, json.dumps(content).encode(), NOW)
    assert caught.value.fault is Fault.NOT_SIGNED


def test_other_kinds_of_keys_are_understood(tmp_path: Path) -> None:
    repository = published()
    repository.replace_keys(RELEASES, "ecdsa-releases")
    repository.replace_keys("timestamp", "ecdsa-timestamp")
    assert signer("ecdsa-releases").public_key.keytype == "ecdsa"
    repository.releases.version += 1
    repository.targets.version += 1
    repository.new_root()
    assert refresh(tmp_path, repository.source, repository.bootstrap, NOW, [PATH])[0].find(PATH) is not None
