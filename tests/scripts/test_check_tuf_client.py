"""The client that scripts/check-tuf hands to TUF's conformance suite keeps its protocol. The suite itself is not in CI."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import check_tuf_client
from tests.support.tufrepository import UpdateRepository
from tests.updatetrust.facts import CUSTOM
from tests.vectors.make_directive import CONTENT, NOW, PACKAGE

PATH = CONTENT["target"]


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch) -> UpdateRepository:
    """A repository at `http://r/`, and the time of the client."""
    made = UpdateRepository(NOW)
    made.publish(PATH, PACKAGE, CUSTOM)

    def http(url: str) -> Iterator[bytes]:
        return made.source(url.removeprefix("http://r/"))

    monkeypatch.setattr(check_tuf_client, "http", http)
    monkeypatch.setenv("CHECK_TUF_NOW", str(NOW))
    return made


def run(directory: Path, *command: str) -> int:
    metadata = directory / "metadata"
    metadata.mkdir(exist_ok=True)
    return check_tuf_client.main(["--metadata-dir", str(metadata), "--metadata-url", "http://r/metadata/", *command])


def test_init_refresh_and_download(tmp_path: Path, repository: UpdateRepository) -> None:
    (root := tmp_path / "initial_root.json").write_bytes(repository.bootstrap)
    repository.new_root()
    assert run(tmp_path, "init", str(root)) == 0
    assert (tmp_path / "metadata" / "root.json").read_bytes() == repository.bootstrap
    assert run(tmp_path, "refresh") == 0
    named = repository.files().by_name()
    for role in ("timestamp", "snapshot", "targets"):
        assert (tmp_path / "metadata" / f"{role}.json").read_bytes() == named[f"{role}.json"]
    assert (tmp_path / "metadata" / "root.json").read_bytes() == named["2.root.json"]
    wanted = ("--target-name", PATH, "--target-base-url", "http://r/targets/", "--target-dir", str(tmp_path), "download")
    assert run(tmp_path, *wanted) == 0
    (found,) = [path for path in tmp_path.iterdir() if path.is_file() and path != root]
    assert found.read_bytes() == PACKAGE
    repository.history = {
        name: b"changed" if name.startswith("targets/") else data for name, data in repository.history.items()
    }
    assert run(tmp_path, *wanted) == 0, "it is there already"
    found.unlink()
    assert run(tmp_path, *wanted) == 1


def test_what_is_refused_ends_with_1(tmp_path: Path, repository: UpdateRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    (root := tmp_path / "initial_root.json").write_bytes(repository.bootstrap)
    assert run(tmp_path, "init", str(root)) == 0
    monkeypatch.setenv("CHECK_TUF_NOW", str(NOW + 3 * 86_400))
    repository.root.version += 1
    repository._write("root", repository.root, repository.signers["root"])
    assert run(tmp_path, "refresh") == 1
    # The root that was verified before that counts.
    assert (tmp_path / "metadata" / "root.json").read_bytes() == repository.history["metadata/2.root.json"]
