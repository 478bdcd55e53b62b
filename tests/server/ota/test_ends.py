"""When update metadata ends, for the metrics: read when it has changed, and never passed over when it cannot be read."""

import shutil
from pathlib import Path

import pytest

from server.ota.ends import MetadataEnds
from server.ota.repository import Repository
from server.ota.words import LIFETIMES, ROOT, TIMESTAMP
from tests.server.ota.vendor import NOW, Vendor


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Vendor:
    vendor = Vendor(tmp_path_factory.mktemp("vendor"))
    vendor.publish(vendor.first())
    return vendor


def test_every_role_has_its_end(begun: Vendor) -> None:
    found = MetadataEnds(begun.repository).by_role()
    assert {ROOT: found[ROOT], TIMESTAMP: found[TIMESTAMP]} == {
        ROOT: NOW + LIFETIMES[ROOT], TIMESTAMP: NOW + LIFETIMES[TIMESTAMP],
    }  # fmt: skip
    assert {"targets", "snapshot", "releases"} <= set(found)


def test_without_a_repository_there_is_nothing_that_could_end(tmp_path: Path) -> None:
    assert MetadataEnds(Repository(tmp_path / "none")).by_role() == {}


def test_what_has_not_changed_is_not_read_again_and_what_cannot_be_read_has_ended(begun: Vendor, tmp_path: Path) -> None:
    place = tmp_path / "updates"
    shutil.copytree(begun.repository.directory, place)
    read: list[str] = []

    class Counting(Repository):
        def read(self, name: str) -> bytes | None:
            read.append(name)
            return super().read(name)

    ends = MetadataEnds(Counting(place))
    first = ends.by_role()
    assert len(read) > 3
    read.clear()
    assert ends.by_role() == first and read == ["timestamp.json"]
    (place / "metadata" / "timestamp.json").write_bytes(b"{")
    assert ends.by_role() == {TIMESTAMP: 0}
    shutil.copy(begun.repository.directory / "metadata" / "timestamp.json", place / "metadata" / "timestamp.json")
    assert ends.by_role() == first
