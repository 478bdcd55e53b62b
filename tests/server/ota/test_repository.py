"""A repository of updates: whatever interrupts a publication, a client of python-tuf finds it valid. No network, no clock."""

import copy
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tuf.api.exceptions import DownloadError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Key, Metadata, Root

from server.base.errors import Conflict, Invalid, RegistryError
from server.ota import documents, packages
from server.ota.documents import Holders
from server.ota.published import Change, verify_root
from server.ota.repository import Repository
from server.ota.words import CANDIDATE, DAY_S, KEEP_VERSIONS, ONLINE, RELEASES, ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from tests.server.ota.vendor import NOW, Killed, Machine, Vendor, killing, new_signer, target_of


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Vendor:
    """A repository with a release and a candidate, to be copied."""
    vendor = Vendor(tmp_path_factory.mktemp("vendor"))
    vendor.publish(vendor.first())
    vendor.release("1.0.0", "b1")
    vendor.release("1.1.0", "b2", CANDIDATE)
    return vendor


@pytest.fixture
def vendor(begun: Vendor, tmp_path: Path) -> Vendor:
    return begun.copied_to(tmp_path / "vendor")


OLD, NEW = "pos/pos-1.0.0-b1", "pos/pos-1.1.0-b2"
Prepared = tuple[Change, dict[str, Path]]


def _release(vendor: Vendor) -> Prepared:
    package, source = vendor.package("1.2.0", "b3")
    return vendor.roles(lambda roles: packages.add(roles, package), RELEASES), {package.path: source}


def _promote(vendor: Vendor) -> Prepared:
    return vendor.roles(lambda roles: packages.promote(roles, NEW)), {}


def _withdraw(vendor: Vendor) -> Prepared:
    return vendor.roles(lambda roles: packages.withdraw(roles, OLD), RELEASES), {}


def _replace_online_keys(vendor: Vendor) -> Prepared:
    for role in ONLINE:
        vendor.online[role].append(new_signer())

    def change(root: Root) -> None:
        for role in ONLINE:
            documents.set_holders(root, role, vendor.who(role))

    return Change(root=vendor.next_root(change)), {}


def _replace_offline_keys(vendor: Vendor) -> Prepared:
    """Two new holders of the root and a new key for targets: both roots, and both keys of targets, sign."""
    *people, key = [new_signer() for _ in range(3)]
    coming = [vendor.holders[ROOT][0], *people]

    def change(root: Root) -> None:
        documents.set_holders(root, ROOT, Holders(tuple(each.public_key for each in coming), 2))
        documents.set_holders(root, TARGETS, Holders((key.public_key,), 1))

    root, targets = vendor.next_root(change), vendor.next_targets()
    documents.sign(root, people)
    documents.sign(targets, [key])
    return Change(root=root, targets=targets), {}


PUBLICATIONS: dict[str, tuple[Callable[[Vendor], Prepared], str, int]] = {
    "release": (_release, OLD, 11),
    "promote": (_promote, NEW, 12),
    "withdraw": (_withdraw, NEW, 9),
    "online keys": (_replace_online_keys, OLD, 9),
    "offline keys": (_replace_offline_keys, OLD, 12),
}
"""How to prepare each publication, a package that a machine finds before and after it, and how many steps it has."""


@pytest.mark.parametrize("name", PUBLICATIONS)
def test_a_publication_that_is_killed_leaves_a_valid_repository(vendor: Vendor, tmp_path: Path, name: str) -> None:
    """Behind each write: for a machine that was there before, and for one that is new. The same again completes it."""
    prepare, path, steps = PUBLICATIONS[name]
    first_root = vendor.repository.read("1.root.json") or b""
    before = Machine(tmp_path / "before", first_root)
    before.look(vendor.repository.directory, NOW)
    change, sources = prepare(vendor)
    for step in range(steps):
        run = vendor.copied_to(tmp_path / f"run-{step}")
        run.trace(killing(step))
        with pytest.raises(Killed):
            run.publish(change, sources)
        run.trace()
        old = before.copied_to(tmp_path / f"old-{step}")
        for machine in (old, Machine(tmp_path / f"new-{step}", first_root)):
            assert machine.look(run.repository.directory, NOW, path), (name, step)
        try:
            run.publish(change, sources)
        except Conflict as problem:
            assert "published already" in str(problem)
        present = run.present().documents()
        assert all(present[role].to_bytes() == each.to_bytes() for role, each in change.documents().items()), step
        assert old.look(run.repository.directory, NOW, path), (name, step)
    vendor.trace(killing(steps))
    vendor.publish(change, sources)


def test_a_first_publication_that_is_killed_publishes_all_or_nothing(tmp_path: Path) -> None:
    steps = 0
    while True:
        vendor = Vendor(tmp_path / f"run-{steps}")
        vendor.trace(killing(steps))
        change = vendor.first()
        try:
            vendor.publish(change)
            break
        except Killed:
            vendor.trace()
            if vendor.repository.load() is None:
                vendor.publish(change)
            root = vendor.repository.read("1.root.json") or b""
            Machine(tmp_path / f"machine-{steps}", root).look(vendor.repository.directory, NOW)
        steps += 1
    assert steps >= 12


def test_a_root_that_was_written_is_never_replaced(tmp_path: Path) -> None:
    """A run was killed behind its first root: another root would be a second beginning of the chain."""
    vendor, other = Vendor(tmp_path / "one"), Vendor(tmp_path / "two")
    vendor.trace(killing(3))
    with pytest.raises(Killed):
        vendor.publish(vendor.first())
    vendor.trace()
    other.repository = vendor.repository
    with pytest.raises(Conflict, match=r"1\.root\.json was published with another content"):
        other.publish(other.first())


def test_a_machine_refuses_a_repository_that_nobody_has_signed_for_days(vendor: Vendor, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "machine", vendor.repository.read("1.root.json") or b"")
    with pytest.raises(ExpiredMetadataError):
        machine.look(vendor.repository.directory, NOW + 4 * DAY_S)


def test_what_ends_soon_is_signed_again_and_nothing_else(vendor: Vendor, tmp_path: Path) -> None:
    assert vendor.renew() == []
    vendor.now += DAY_S
    assert vendor.renew() == ["timestamp.json"]
    vendor.now += 15 * DAY_S
    snapshot = vendor.present().versions()[SNAPSHOT]
    assert vendor.renew() == [f"{snapshot + 1}.snapshot.json", "timestamp.json"]
    machine = Machine(tmp_path / "machine", vendor.repository.read("1.root.json") or b"")
    assert machine.look(vendor.repository.directory, vendor.now + 2 * DAY_S, OLD)


def test_versions_and_packages_that_nothing_names_are_removed_but_no_root(vendor: Vendor) -> None:
    for _ in range(KEEP_VERSIONS + 3):
        vendor.publish(Change(root=vendor.next_root()))
    vendor.publish(*_withdraw(vendor))
    names = {path.name for path in (vendor.repository.directory / "metadata").iterdir()}
    assert {f"{number}.root.json" for number in range(1, KEEP_VERSIONS + 5)} <= names
    assert len([name for name in names if name.endswith(".snapshot.json")]) == KEEP_VERSIONS
    files = [path.name for path in (vendor.repository.directory / "targets" / "pos").iterdir()]
    assert len(files) == 1 and files[0].endswith("pos-1.1.0-b2")


def test_a_copy_is_made_in_steps_each_of_which_is_valid(vendor: Vendor, tmp_path: Path) -> None:
    root = vendor.repository.read("1.root.json") or b""
    target = tmp_path / "copy"
    assert vendor.repository.export(target) == 8
    assert vendor.repository.export(target) == 0
    vendor.publish(*_replace_online_keys(vendor))
    vendor.now += DAY_S
    vendor.renew()
    for step in range(100):
        vendor.trace(killing(step))
        try:
            vendor.repository.export(target)
        except Killed:
            assert Machine(tmp_path / f"machine-{step}", root).look(target, NOW + DAY_S, OLD)
        else:
            break
    assert Repository(target).present().versions() == vendor.present().versions()


def test_a_web_server_may_read_what_is_published_whatever_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        vendor = Vendor(tmp_path / "vendor")
        vendor.publish(vendor.first())
        vendor.release("1.0.0", "b1")
    finally:
        os.umask(before)
    found = {path: path.stat().st_mode & 0o777 for path in (vendor.repository.directory).rglob("*") if path.name != ".lock"}
    assert {mode for path, mode in found.items() if path.is_dir()} == {0o755}
    assert {mode for path, mode in found.items() if path.is_file()} == {0o644}


def test_only_one_publishes_at_a_time(vendor: Vendor) -> None:
    with vendor.repository.locked(), pytest.raises(Conflict, match="somebody else publishes"), vendor.repository.locked():
        pass


def test_a_root_that_names_one_key_under_two_ids_is_not_published() -> None:
    """Its owner alone would be two of the threshold, and machines would refuse it."""
    one = new_signer()
    two = copy.deepcopy(one)
    two.public_key.keyid = "e" * 64
    root = Metadata(Root(version=1, consistent_snapshot=True))
    for each in (one, two):
        root.signed.add_key(each.public_key, ROOT)
    root.signed.roles[ROOT].threshold = 2
    for each in (one, two):
        root.sign(each, append=True)
    with pytest.raises(Invalid, match="under two ids"):
        verify_root(None, root)


def test_a_package_that_is_not_the_signed_one_is_not_published(vendor: Vendor) -> None:
    package, source = vendor.package("1.2.0", "b3")
    change = vendor.roles(lambda roles: packages.add(roles, package), RELEASES)
    before = vendor.present().versions()
    source.write_bytes(b"something else")
    with pytest.raises(RegistryError, match="is not the package that was signed for pos/"):
        vendor.publish(change, {package.path: source})
    with pytest.raises(RegistryError, match="is missing"):
        vendor.publish(change)
    assert vendor.present().versions() == before
    assert not list((vendor.repository.directory / "targets" / "pos").glob(".*"))


def test_a_directory_that_somebody_has_changed_is_found_out(vendor: Vendor) -> None:
    folder = vendor.repository.directory / "metadata"
    for name in ("timestamp.json", "2.releases.json", "1.targets.json", "1.root.json"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data.replace(b'"version":', b'"version": '))  # the same meaning, another file
        changed = data.replace(b'"spec_version":"1.0', b'"spec_version":"1.1')
        (folder / name).write_bytes(changed)
        with pytest.raises(RegistryError):
            vendor.repository.present()
        (folder / name).write_bytes(data)
        assert vendor.repository.present()


# Which documents are published


def _unsigned(vendor: Vendor) -> Change:
    return Change(roles={RELEASES: documents.successor(vendor.present().roles[RELEASES], RELEASES, NOW)})


def _by_another_key(vendor: Vendor) -> Change:
    change = _unsigned(vendor)
    documents.sign(change.roles[RELEASES], vendor.holders[CANDIDATE])
    return change


def _one_root_key(vendor: Vendor) -> Change:
    root = documents.successor(vendor.present().root, ROOT, NOW)
    documents.sign(root, vendor.holders[ROOT][:1])
    return Change(root=root)


def _root_skips(vendor: Vendor) -> Change:
    root = documents.successor(vendor.present().root, ROOT, NOW)
    root.signed.version += 1
    documents.sign(root, vendor.holders[ROOT])
    return Change(root=root)


def _same_again(vendor: Vendor) -> Change:
    return Change(roles={RELEASES: vendor.present().roles[RELEASES]})


def _an_earlier_one(vendor: Vendor) -> Change:
    change = vendor.roles(lambda _roles: None, RELEASES)
    vendor.release("1.2.0", "b3")
    return change


def _expired(vendor: Vendor) -> Change:
    releases = documents.successor(vendor.present().roles[RELEASES], RELEASES, NOW, -1)
    documents.sign(releases, vendor.holders[RELEASES])
    return Change(roles={RELEASES: releases})


def _targets_key_without_targets(vendor: Vendor) -> Change:
    return Change(
        root=vendor.next_root(lambda root: documents.set_holders(root, TARGETS, Holders((new_signer().public_key,), 1)))
    )


def _online_key_of_another_server(vendor: Vendor) -> Change:
    other: Key = new_signer().public_key
    return Change(root=vendor.next_root(lambda root: documents.set_holders(root, TIMESTAMP, Holders((other,), 1))))


def _below_the_floor(vendor: Vendor) -> Change:
    return Change(targets=vendor.next_targets(lambda targets: documents.set_floors(targets, {"pos": "1.0.1"})))


def _without_a_floor(vendor: Vendor) -> Change:
    return Change(targets=vendor.next_targets(lambda targets: documents.set_floors(targets, {})))


REFUSED: dict[str, tuple[Callable[[Vendor], Change], str]] = {
    "nothing": (lambda _vendor: Change(), "there is nothing to publish"),
    "unsigned": (_unsigned, "releases version 3 has 0 of the 1 signatures"),
    "by another key": (_by_another_key, "releases version 3 has 0 of the 1 signatures"),
    "one root key": (_one_root_key, "root version 2 has 1 of the 2 signatures"),
    "root skips": (_root_skips, "root has version 3, and the next one is 2"),
    "same again": (_same_again, "all of this is published already"),
    "an earlier one": (_an_earlier_one, "releases has version 3, and the next one is 4"),
    "expired": (_expired, "releases version 3 has expired"),
    "targets key without targets": (_targets_key_without_targets, "targets version 1 has 0 of the 1 signatures"),
    "online key of another server": (_online_key_of_another_server, "names timestamp keys that this registry does not have"),
    "below the floor": (_below_the_floor, "below the floor 1.0.1 of pos"),
    "without a floor": (_without_a_floor, "targets has no floor for pos"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_documents_that_a_machine_would_refuse_are_not_published(vendor: Vendor, name: str) -> None:
    make, text = REFUSED[name]
    change = make(vendor)
    before = vendor.present().versions()
    with pytest.raises(RegistryError, match=text):
        vendor.publish(change)
    assert vendor.present().versions() == before


CLASHES: dict[str, tuple[dict[str, Any], str]] = {
    "the build id": ({"version": "1.2.0", "build_id": "b1"}, "build id 'b1'"),
    "the version": ({"version": "1.0", "build_id": "b3"}, "of pos for till-mk1 in"),
    "the path": ({"version": "1.2.0", "build_id": "b3", "path": OLD}, "releases has a package"),
}


@pytest.mark.parametrize("name", CLASHES)
def test_two_packages_never_share(vendor: Vendor, name: str) -> None:
    """OT-01: a build id names one build for ever, and a version one build for each kind of machine."""
    members, text = CLASHES[name]
    package, source = vendor.package(**members)
    with pytest.raises(Conflict, match=text):
        vendor.publish(vendor.roles(lambda roles: packages.add(roles, package), RELEASES), {package.path: source})


def test_the_same_version_may_have_a_build_for_other_hardware(vendor: Vendor) -> None:
    assert vendor.release("1.0.0", "b3", hardware=("till-mk2",))


def test_a_role_has_at_most_a_thousand_packages(vendor: Vendor) -> None:
    roles = {RELEASES: documents.new_packages(RELEASES, NOW)}
    for number in range(1000):
        target = target_of(f"1.{number}", f"n{number}")
        roles[RELEASES].signed.targets[target.path] = documents.target_file(target)
    package, _ = vendor.package("2.0", "last")
    with pytest.raises(Conflict, match="more than 1000 packages"):
        packages.add(roles, package)


@pytest.mark.parametrize(("keys", "threshold"), [(0, 1), (1, 2), (2, 0), (17, 1)])
def test_a_threshold_that_cannot_be_reached_is_refused(keys: int, threshold: int) -> None:
    who = Holders(tuple(new_signer().public_key for _ in range(keys)), threshold)
    with pytest.raises(Invalid, match="a threshold of"):
        who.require(ROOT)


def test_a_holder_counts_once() -> None:
    key = new_signer().public_key
    with pytest.raises(Invalid, match="given twice"):
        Holders((key, key), 2).require(ROOT)


def test_a_forged_client_view_is_refused_by_the_client_itself(vendor: Vendor, tmp_path: Path) -> None:
    """That `Machine` judges at all: without this, the tests above could not fail."""
    machine = Machine(tmp_path / "machine", vendor.repository.read("1.root.json") or b"")
    folder = vendor.repository.directory / "metadata"
    shutil.copy(folder / "1.snapshot.json", folder / "3.snapshot.json")
    with pytest.raises((RepositoryError, DownloadError)):
        machine.look(vendor.repository.directory, NOW)
