"""What `license-server ota` publishes is what a machine's own rules accept: read over the network, and brought as files."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tuf.api.metadata import Root

from server.ota import documents, packages
from server.ota.published import Change
from server.ota.words import CANDIDATE, DAY_S, ONLINE, PACKAGE_ROLES, RELEASES
from tests.server.ota.vendor import NOW, Vendor, new_signer
from updatetrust.client import NotThere, refresh
from updatetrust.metadata import Fault, KeptVersions, MetadataRefused, VerifiedTargets, verify_offline
from updatetrust.version import Version

OLD, CANDIDATES = "pos/pos-1.0.0-b1", "pos/pos-1.1.0-b2"


class Till:
    """A machine: the updater's directory and the versions that its installer keeps."""

    def __init__(self, vendor: Vendor, directory: Path) -> None:
        self.vendor, self.directory, self.kept = vendor, directory, KeptVersions()
        self.bootstrap = vendor.repository.read("1.root.json") or b""

    def source(self, path: str) -> Iterator[bytes]:
        file = self.vendor.repository.directory / path
        if not file.is_file():
            raise NotThere(path)
        yield file.read_bytes()

    def look(self, path: str, now: int = NOW) -> VerifiedTargets:
        """Looks as the updater does, and verifies what it would stage as the installer does."""
        online, files = refresh(self.directory, self.source, self.bootstrap, now, [path])
        offline = verify_offline(files, self.bootstrap, self.kept, now)
        assert offline.find(path) == online.find(path) and offline.kept.root == online.kept.root
        self.kept = offline.kept
        return offline


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Vendor:
    vendor = Vendor(tmp_path_factory.mktemp("vendor"))
    vendor.publish(vendor.first())
    vendor.release("1.0.0", "b1")
    vendor.release("1.1.0", "b2", CANDIDATE)
    return vendor


@pytest.fixture
def vendor(begun: Vendor, tmp_path: Path) -> Vendor:
    return begun.copied_to(tmp_path / "vendor")


def test_a_release_and_a_candidate_are_found_with_their_files(vendor: Vendor, tmp_path: Path) -> None:
    till = Till(vendor, tmp_path)
    for path, version in ((OLD, "1.0.0"), (CANDIDATES, "1.1.0")):
        found = till.look(path).find(path)
        assert found is not None and found.version == version
        data = (vendor.repository.directory / found.address()).read_bytes()
        assert len(data) == found.length
    assert till.look(OLD).floors == {"pos": Version.parse("1.0.0")}
    assert set(till.kept.roles) == {"timestamp", "snapshot", "targets", *PACKAGE_ROLES}


def _promote(vendor: Vendor) -> None:
    vendor.publish(vendor.roles(lambda roles: packages.promote(roles, CANDIDATES)))


def _withdraw(vendor: Vendor) -> None:
    vendor.publish(vendor.roles(lambda roles: packages.withdraw(roles, OLD), RELEASES))


def _replace_online_keys(vendor: Vendor) -> None:
    for role in ONLINE:
        vendor.online[role].append(new_signer())

    def change(root: Root) -> None:
        for role in ONLINE:
            documents.set_holders(root, role, vendor.who(role))

    vendor.publish(Change(root=vendor.next_root(change)))


def _renew(vendor: Vendor) -> None:
    vendor.renew(force=True)


def _raise_the_floor(vendor: Vendor) -> None:
    _promote(vendor)
    _withdraw(vendor)
    vendor.publish(Change(targets=vendor.next_targets(lambda targets: documents.set_floors(targets, {"pos": "1.1.0"}))))


@pytest.mark.parametrize(
    ("act", "gone"),
    [(_promote, False), (_withdraw, True), (_replace_online_keys, False), (_renew, False), (_raise_the_floor, True)],
    ids=["promote", "withdraw", "online keys", "renew", "floor"],
)
def test_a_machine_follows_each_act_of_the_vendor(
    vendor: Vendor, tmp_path: Path, act: Callable[[Vendor], None], gone: bool
) -> None:
    till = Till(vendor, tmp_path)
    till.look(OLD)
    till.look(CANDIDATES)
    act(vendor)
    assert (till.look(OLD).find(OLD) is None) == gone
    assert till.look(CANDIDATES).find(CANDIDATES) is not None
    new = Till(vendor, tmp_path / "new")
    new.directory.mkdir()
    new.look(OLD)
    assert new.look(CANDIDATES).find(CANDIDATES) is not None


def test_a_state_of_yesterday_is_refused_after_todays(vendor: Vendor, tmp_path: Path) -> None:
    till, yesterday = Till(vendor, tmp_path), vendor.copied_to(tmp_path / "yesterday")
    _withdraw(vendor)
    till.look(OLD)
    till.vendor = yesterday
    with pytest.raises(MetadataRefused) as caught:
        till.look(OLD)
    assert caught.value.fault is Fault.ROLLED_BACK
    # Whoever empties the updater's directory gains nothing: the installer remembers.
    shutil.rmtree(tmp_path / "root_history")
    for file in tmp_path.glob("*.json"):
        file.unlink()
    with pytest.raises(MetadataRefused) as caught:
        till.look(OLD)
    assert caught.value.fault is Fault.ROLLED_BACK


def test_a_repository_that_nobody_renews_is_noticed(vendor: Vendor, tmp_path: Path) -> None:
    with pytest.raises(MetadataRefused) as caught:
        Till(vendor, tmp_path).look(OLD, NOW + 60 * DAY_S)
    assert caught.value.fault is Fault.EXPIRED
